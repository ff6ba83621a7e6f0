"""What a subcommand leaves: files, then a table or JSON."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynalyze._core.atomic_file import replacing, writable_target
from dynalyze.cli.console import show
from dynalyze.errors import InvalidInputError, SavedFileError


def add_output(parser: argparse.ArgumentParser, what: str = "", *, json: bool = True) -> None:
    """Declare ``--out`` (if there is a `what` to save), ``--plot``, ``--quiet`` and ``--json``."""
    group = parser.add_argument_group("output")
    if what:
        group.add_argument("--out", metavar="FILE.npz", help=f"save the {what}, to be loaded again")
    group.add_argument("--plot", metavar="FILE", help="write a figure (.png, .pdf, .svg)")
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    if json:
        group.add_argument("--json", action="store_true", help="print JSON instead of the table")


def check_output(arguments: argparse.Namespace) -> None:
    """Refuse before the work begins, not after it, what cannot be written."""
    paths = {}
    if out := getattr(arguments, "out", None):
        paths["out"] = out
    if plot := getattr(arguments, "plot", None):
        paths["plot"] = _figure_path(plot)
    targets = set()
    for option, path in paths.items():
        try:
            targets.add(writable_target(path))
        except SavedFileError as error:
            raise InvalidInputError(f"--{option} {error}") from error
    if len(targets) < len(paths):
        raise InvalidInputError(f"--out {out} and --plot {plot} are one file: name two")
    if plot:
        _figure_format(plot)


def _figure_format(path: str) -> str:
    from matplotlib import rcParams
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix and suffix not in known:
        raise InvalidInputError(
            f"--plot {path}: figures cannot be written as .{suffix}; use one of "
            + ", ".join(f".{name}" for name in sorted(known))
        )
    return suffix or str(rcParams["savefig.format"])


def deliver(
    arguments: argparse.Namespace,
    text: Callable[[], str],
    *,
    save: Callable[[str], None] | None = None,
    plot: Callable[[], Any],
) -> None:
    """Write the files that were asked for, then print: a console may end the command.

    Parameters
    ----------
    arguments : Namespace
        With ``plot``, and with ``out`` if there is something to save.
    text : callable
        Returns what is to be printed, which happens even if a file cannot be written.
    save : callable, optional
        ``save(path)`` writes the result.
    plot : callable
        Returns Axes.
    """
    try:
        if save is not None and arguments.out:
            save(arguments.out)
        if arguments.plot:
            import matplotlib as mpl

            mpl.use("Agg")  # draws to files only, also where there is no display
            _write_figure(plot(), arguments.plot)
    finally:
        show(text())


def as_json(result: Any) -> str:
    """JSON of dicts, sequences, arrays and numbers; what is not finite becomes null."""
    from dynalyze._core.plain import plain

    return json.dumps(plain(result), indent=2, allow_nan=False)


def _figure_path(path: str) -> str:
    """The file that a figure goes to: a name without a suffix gets one, as matplotlib does it."""
    return path if Path(path).suffix else f"{path}.{_figure_format(path)}"


def _write_figure(ax: Any, path: str) -> None:
    drawn = io.BytesIO()
    try:
        ax.figure.savefig(drawn, dpi=150, format=_figure_format(path))
    except Exception as error:  # of the program that draws this format, such as a missing LaTeX
        raise InvalidInputError(
            f"--plot {path}: this format cannot be drawn here ({error}); use .png, .pdf or .svg"
        ) from error
    with replacing(_figure_path(path)) as file:
        file.write(drawn.getbuffer())
