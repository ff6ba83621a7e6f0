"""The command ``dynalyze``: one module per subcommand, listed in `COMMANDS`.

A subcommand module has ``add_parser(subparsers)``, which declares its arguments and sets
``run``, a function of the parsed arguments that returns the exit code. Numerical packages are
imported inside ``run``, so that ``--help`` is instant.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from dynalyze import __version__
from dynalyze.cli import _arguments, compare, predict, simulate, track, train
from dynalyze.errors import DynalyzeError, DynalyzeWarning

COMMANDS = (predict, simulate, compare, train, track)

EXIT_CODES = """\
exit codes:
  0    finished
  2    bad input; one line on standard error says which, and the remedy
  3    ended before the last stage: a tie, no limit point or a budget; what was found is printed
  130  interrupted; predict and simulate print and save what was found
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="dynalyze",
        description="Predict, simulate and track the stages in which networks with product "
        "weights learn.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dynalyze {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warnings(arguments.command, warnings.showwarning)
            _arguments.check_output(arguments)
            return int(arguments.run(arguments))
    except (DynalyzeError, OSError) as error:
        text = f"{error.filename}: no such file" if _is_missing_file(error) else str(error)
        message = " ".join(text.split())
        print(f"dynalyze {arguments.command}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"dynalyze {arguments.command}: interrupted", file=sys.stderr)
        return 130


def _is_missing_file(error: Exception) -> TypeGuard[FileNotFoundError]:
    return isinstance(error, FileNotFoundError) and error.filename is not None


def _one_line_warnings(command: str, otherwise: Callable[..., None]) -> Callable[..., None]:
    """`warnings.showwarning` that prints the library's own warnings as it prints errors."""

    def show(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
        if issubclass(category, DynalyzeWarning):
            print(f"dynalyze {command}: warning: {message}", file=sys.stderr)
        else:
            otherwise(message, category, *args, **options)

    return show
