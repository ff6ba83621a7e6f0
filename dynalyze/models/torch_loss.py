"""Losses of a PyTorch model, one value per sample."""

from collections.abc import Callable
from typing import TypeAlias

from dynalyze._torch import torch
from dynalyze.errors import InvalidInputError

SampleLoss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``loss(output, target)``: one loss per sample, shape (batch,)."""


def squared_loss(factor: float) -> SampleLoss:
    """½ factor ‖y − f(x)‖², summed over output entries."""

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 0.5 * factor * ((output - target) ** 2).reshape(len(output), -1).sum(1)

    return loss


def checked_loss(loss: SampleLoss, output: torch.Tensor, targets: torch.Tensor) -> SampleLoss:
    """`loss`, once it was seen to return one value per sample on a few of them."""
    values: object = loss(output, targets)
    if not isinstance(values, torch.Tensor) or values.shape != (len(output),):
        shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise InvalidInputError(
            f"loss returns {shape} for {len(output)} samples: one loss per sample is needed, "
            f"shape ({len(output)},), as with reduction='none' in torch.nn.functional"
        )
    return loss


def float_targets(targets: torch.Tensor, output: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Targets in float64, once their shape was seen to be that of the outputs."""
    expected = (n_samples, *output.shape[1:])
    if tuple(targets.shape) != expected:
        raise InvalidInputError(
            f"y has shape {tuple(targets.shape)} and the module's outputs {expected}: they must "
            "be equal, since broadcasting would change the loss"
        )
    return targets.to(torch.float64)
