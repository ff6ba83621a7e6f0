"""Arguments that several subcommands share, and what they stand for."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dynalyze.errors import InvalidInputError

if TYPE_CHECKING:
    from dynalyze.datasets import Dataset
    from dynalyze.flow.initialization import Initialization

_T = TypeVar("_T")
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
        help="an .npz file with arrays X and y, a .csv file with a header (and --target), or a "
        "built-in set: diabetes (442 × 10, standardized), digits (8 × 8 images as 8 tokens, each "
        "predicting the next row), toy-head (the paper's: 1000 Gaussian sequences, labelled by a "
        "sparse head)",
    )
    group.add_argument(
        "--target",
        metavar="NAME",
        help="column of the .csv file to be learned; the others are the features",
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
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="seed of the initial weights (default: %(default)s)",
    )


def seed(text: str) -> int:
    """Type of an argument that is an integer from 0 on."""
    return _number(text, int, lambda n: n >= 0, "an integer, 0 or larger")


def positive_integer(text: str) -> int:
    """Type of an argument that is an integer from 1 on."""
    return _number(text, int, lambda n: n > 0, "a positive integer")


def positive(text: str) -> float:
    """Type of an argument that is a positive number, and finite."""
    return _number(text, float, lambda x: 0 < x < math.inf, "positive and finite")


def seconds(text: str) -> float:
    """Type of an argument that is a duration."""
    return _number(text, float, lambda x: 0 <= x < math.inf, "a number of seconds, 0 or larger")


def _number(text: str, kind: Callable[[str], _T], good: Callable[[_T], bool], what: str) -> _T:
    with contextlib.suppress(ValueError):
        if good(number := kind(text)):
            return number
    raise argparse.ArgumentTypeError(f"{text!r} must be {what}")


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
        type=positive,
        metavar="SIZE",
        help="|θ| at which a jump is called (default: 5%% of the value that the product jumps to)",
    )


def show_progress(arguments: argparse.Namespace) -> bool:
    """Whether a progress bar is wanted: on a terminal, unless ``--quiet``."""
    return not arguments.quiet and sys.stderr is not None and sys.stderr.isatty()


def load_problem(arguments: argparse.Namespace) -> Problem:
    """Model and data that the arguments name."""
    from dynalyze import models

    dataset = _dataset(arguments.data, arguments.target)
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
        models.DiagonalLinear(width, feature_names=dataset.feature_names)
        if kind == "linear"
        else models.AttentionHead(width)
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


def _dataset(name: str, target: str | None) -> Dataset:
    from dynalyze import datasets

    if name.lower().endswith(".csv"):
        return datasets.load_csv(name, target=target)
    if target is not None:
        raise InvalidInputError(
            f"--target {target} names a column of a .csv file, and --data is {name}: leave it out"
        )
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
