"""Arguments that several subcommands share, and what they stand for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dynalyze.errors import InvalidInputError

if TYPE_CHECKING:
    from dynalyze.datasets import Dataset
    from dynalyze.flow.initialization import Initialization

BUILT_IN = ("diabetes", "digits", "toy-head")


class Problem(NamedTuple):
    """A model with its data."""

    model: Any  # a Model
    data: tuple[Any, Any]  # (X, y)


def add_problem(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Declare ``--model``, ``--data`` and ``--loss``."""
    group = parser.add_argument_group("problem")
    group.add_argument(
        "--data",
        required=required,
        metavar="FILE|" + "|".join(BUILT_IN),
        help="an .npz file with arrays X and y, or a built-in set: diabetes (442 × 10, "
        "standardized), digits (8 × 8 images as 8 tokens, each predicting the next row), "
        "toy-head (the paper's: 1000 Gaussian sequences, labelled by a sparse head)",
    )
    group.add_argument(
        "--model",
        choices=("linear", "head"),
        help="diagonal linear network, or attention head with diagonal weights "
        "(default: linear for X of 2 axes, head for X of 3)",
    )
    group.add_argument(
        "--loss",
        choices=("squared", "mse"),
        default="squared",
        help="mean over samples of ½‖y − f‖², or mean over all entries of the squared error "
        "(default: %(default)s); sets the unit of time",
    )


def add_initialization(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declare ``--log10-alpha`` and ``--seed``."""
    group = parser.add_argument_group("initialization")
    group.add_argument(
        "--log10-alpha",
        type=float,
        required=required,
        metavar="A",
        help="log10 of the scale α of Gaussian initial weights, such as -8 for 1e-8; any size",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="seed of the initial weights (default: %(default)s)"
    )


def add_flow(parser: argparse.ArgumentParser) -> None:
    """Declare ``--until``, ``--until-rescaled``, ``--method`` and ``--tol``."""
    group = parser.add_argument_group("flow")
    end = group.add_mutually_exclusive_group()
    end.add_argument("--until", type=float, metavar="T", help="flow time at which to end")
    end.add_argument(
        "--until-rescaled",
        type=float,
        metavar="T",
        help="the same in rescaled time, flow time / log(1/α)",
    )
    group.add_argument(
        "--method", default="auto", help="integrator, as in dynalyze.simulate (default: auto)"
    )
    group.add_argument(
        "--tol",
        type=float,
        default=1e-6,
        help="error of log|w|, as in dynalyze.simulate (default: %(default)s)",
    )


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Declare ``--threshold``."""
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.05,
        metavar="SIZE",
        help="|θ| at which a product counts as active (default: %(default)s)",
    )


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare ``--out``, ``--plot`` and ``--quiet``."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="FILE.npz", help=f"save the {what}, to be loaded again")
    group.add_argument("--plot", metavar="FILE", help="write a figure (.png, .pdf, .svg)")
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def check_output(arguments: argparse.Namespace) -> None:
    """Refuse before the work begins, not after it, what cannot be written."""
    for option in ("out", "plot"):
        path = getattr(arguments, option, None)
        if path and not Path(path).absolute().parent.is_dir():
            raise InvalidInputError(f"--{option} {path}: there is no such folder; create it first")
    if path := getattr(arguments, "plot", None):
        _check_figure_format(path)


def _check_figure_format(path: str) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix and suffix not in known:
        raise InvalidInputError(
            f"--plot {path}: figures cannot be written as .{suffix}; use one of "
            + ", ".join(f".{name}" for name in sorted(known))
        )


def show_progress(arguments: argparse.Namespace) -> bool:
    """Whether a progress bar is wanted: on a terminal, unless ``--quiet``."""
    return not arguments.quiet and sys.stderr.isatty()


def load_problem(arguments: argparse.Namespace) -> Problem:
    """Model and data that the arguments name."""
    from dynalyze.models import AttentionHead, DiagonalLinear

    dataset = _dataset(arguments.data)
    kind = arguments.model or ("linear" if dataset.X.ndim == 2 else "head")
    expected = 2 if kind == "linear" else 3
    if dataset.X.ndim != expected:
        raise InvalidInputError(
            f"--model {kind} needs X with {expected} axes, and {arguments.data} has X of shape "
            f"{dataset.X.shape}: use --model {'head' if kind == 'linear' else 'linear'}, or "
            "reshape the data"
        )
    width = dataset.X.shape[-1]
    if width == 0:
        raise InvalidInputError(f"{arguments.data} is empty: X has shape {dataset.X.shape}")
    model = (
        DiagonalLinear(width, feature_names=dataset.feature_names)
        if kind == "linear"
        else AttentionHead(width)
    )
    return Problem(model, (dataset.X, dataset.y))


def load_initialization(arguments: argparse.Namespace, n_products: int) -> Initialization | None:
    """Gaussian initialization that the arguments name, or None without ``--log10-alpha``."""
    if arguments.log10_alpha is None:
        return None
    from dynalyze.flow.initialization import Initialization

    return Initialization.gaussian(
        n_products, log10_alpha=arguments.log10_alpha, rng=arguments.seed
    )


def write_figure(ax: Any, path: str) -> None:
    """Save the figure that `ax` belongs to; `check_output` has seen to the format."""
    ax.figure.savefig(path, dpi=150)


def use_headless_backend() -> None:
    """Draw to files only, also where there is no display."""
    import matplotlib as mpl

    mpl.use("Agg")


def _dataset(name: str) -> Dataset:
    from dynalyze import datasets

    if name == "diabetes":
        return datasets.diabetes()
    if name == "digits":
        return datasets.digits()
    if name == "toy-head":
        return datasets.toy_head(rng=0)
    dataset = datasets.load_npz(name)
    if dataset.X.ndim not in (2, 3):
        raise InvalidInputError(
            f"{name} has X of shape {dataset.X.shape}: give (n_samples, n_features) for a linear "
            "model, or (n_samples, n_tokens, d_model) for a head"
        )
    return dataset
