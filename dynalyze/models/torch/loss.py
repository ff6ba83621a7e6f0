"""Losses of a PyTorch model, one value per sample."""

from collections.abc import Callable
from typing import TypeAlias

from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.torch.operations import Operations

SampleLoss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``loss(output, target)``: one loss per sample, shape (batch,)."""
_TOLERANCE = 1e-9


def squared_loss(factor: float) -> SampleLoss:
    """½ factor ‖y − f(x)‖², summed over output entries."""

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        difference = (output - target).reshape(len(output), -1)
        return 0.5 * factor * torch.linalg.vecdot(difference, difference)

    return loss


def check_loss(
    loss: SampleLoss, output: torch.Tensor, targets: torch.Tensor, operations: Operations
) -> None:
    """Check a loss of the caller's own on a few samples; its operations are recorded.

    Raises
    ------
    InvalidInputError
        If it fails, does not return one value per sample, changes the targets, is random, or mixes
        the samples.
    """
    with torch.no_grad():
        try:
            with operations:
                values: object = loss(output.clone(), targets)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise InvalidInputError(
                f"loss does not run on outputs of shape {tuple(output.shape)} and targets of shape "
                f"{tuple(targets.shape)}, {targets.dtype}: {error}"
            ) from error
        if not isinstance(values, torch.Tensor) or values.shape != (len(output),):
            shape = (
                tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            )
            raise InvalidInputError(
                f"loss returns {shape} for {len(output)} samples: one loss per sample is needed, "
                f"shape ({len(output)},), as with reduction='none' in torch.nn.functional"
            )
        if values.dtype != torch.float64:
            raise InvalidInputError(
                f"loss returns {values.dtype} for outputs in torch.float64: remove the cast"
            )
        if targets._version:
            raise InvalidInputError(
                "loss changes the targets in place, which are the data: work on a copy"
            )
        scale = 1 + float(values.abs().max())
        alone = [loss(output[i : i + 1].clone(), targets[i : i + 1]) for i in range(len(output))]
        if any(value.shape != (1,) for value in alone):
            raise InvalidInputError("loss does not return one value for one sample alone")
        if float((torch.cat(alone) - values).abs().max()) > _TOLERANCE * scale:
            raise InvalidInputError(
                "the loss of a sample changes with the samples beside it, or from call to call: "
                "samples are worked through in chunks, so that the result would depend on "
                "memory_budget; return one loss per sample that uses this sample alone"
            )


def float_targets(targets: torch.Tensor, output: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Targets in float64, once their shape was seen to be that of the outputs."""
    expected = (n_samples, *output.shape[1:])
    if tuple(targets.shape) != expected:
        raise InvalidInputError(
            f"y has shape {tuple(targets.shape)} and the module's outputs {expected}: they must "
            "be equal, since broadcasting would change the loss"
        )
    return targets.to(torch.float64)
