"""The regression losses, and the units of time that follow from them."""

from collections.abc import Callable
from typing import Any, TypeAlias

from dynalyze.errors import InvalidInputError

Loss: TypeAlias = str | Callable[[Any, Any], Any]
"""Name of a loss; PyTorch models also take a function (output, target) to one value per sample."""

LOSSES = ("squared", "mse")


def squared_loss_factor(loss: str, n_outputs: int) -> float:
    """Factor by which `loss` exceeds the mean over samples of ½‖y − f(x)‖².

    Flow time scales with its inverse: under ``"mse"`` everything takes n_outputs / 2 times
    as long as under ``"squared"``.

    Parameters
    ----------
    loss : {"squared", "mse"}
        Name of the loss.
    n_outputs : int
        Number of entries of one sample's output.

    Raises
    ------
    InvalidInputError
        If `loss` is not one of the two names.
    """
    if loss == "squared":
        return 1.0
    if loss == "mse":
        return 2.0 / n_outputs
    raise InvalidInputError(
        f"loss={loss!r} is not known: choose one of {', '.join(map(repr, LOSSES))}"
    )


def loss_name(loss: Loss) -> str:
    """Name under which a loss is recorded: its own, for a function."""
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
