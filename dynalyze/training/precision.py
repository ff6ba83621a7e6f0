"""Training in float32, with the error of its gradients measured against float64's."""

from dataclasses import dataclass, field

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.torch.device import converted
from dynalyze.training.batches import Batch, Samples
from dynalyze.training.engine import Engine
from dynalyze.training.trainable import Trainable, Weights


def check_precision(trainable: Trainable, weights: Weights, inputs: torch.Tensor) -> None:
    """Check that a module computes in the precision of its weights.

    Raises
    ------
    InvalidInputError
        If its output for the first sample is of another.
    """
    probe = converted(inputs[:1], trainable.model.device, trainable.dtype)
    with torch.no_grad():
        found = trainable(weights, probe).dtype
    if found != trainable.dtype:
        raise InvalidInputError(
            f"the module returns {found} although its weights and inputs are {trainable.dtype}: "
            f"remove the cast inside forward, or leave out precision={str(trainable.dtype)[6:]!r}"
        )


@dataclass
class Comparison:
    """Gradients of the loss on all samples in float32 and in float64, at a few points of a run."""

    exact: Engine  # in float64
    samples: Batch  # all of them, in float64, on the CPU
    every: int  # steps from look to look
    looks: list[list[float]] = field(default_factory=list)  # step, then the error of each run

    def look(self, step: int, weights: Weights, engine: Engine, samples: Samples) -> None:
        """Compare at `weights`, if it is time; what stood in their ``grad`` is lost."""
        if step % self.every:
            return
        double = {name: w.detach().double().requires_grad_() for name, w in weights.items()}
        device = next(iter(double.values())).device
        inputs, targets = self.samples.inputs.to(device), self.samples.targets.to(device)
        self.exact.losses_and_gradients(
            double, self.samples._replace(inputs=inputs, targets=targets)
        )
        engine.losses_and_gradients(weights, samples.whole())
        pairs = [(w.grad, double[name].grad) for name, w in weights.items()]
        squares = [
            torch.stack([_square(a.double() - b, engine.stacked), _square(b, engine.stacked)])
            for a, b in pairs
            if a is not None and b is not None
        ]
        difference, size = torch.stack(squares).sum(0).sqrt()
        self.looks.append([step, *(difference / size).reshape(-1).tolist()])

    def summary(self, run: int) -> str:
        """The errors of one run in words."""
        steps, errors = self.errors(run)
        if not len(errors):
            return "in float32, whose gradients were not compared with float64's"
        worst = int(np.argmax(errors))
        return (
            f"in float32, whose gradients differ from float64's by {np.median(errors):.1e} of "
            f"their size in the median of {len(errors)} looks, and by {errors[worst]:.1e} at most, "
            f"at step {steps[worst]:.0f}"
        )

    def errors(self, run: int) -> tuple[FloatArray, FloatArray]:
        """Steps and relative errors of one run where they are finite."""
        table = np.array(self.looks, dtype=np.float64).reshape(len(self.looks), -1)
        if not len(table):
            return np.zeros(0), np.zeros(0)
        finite = np.isfinite(table[:, 1 + run])
        return table[finite, 0], table[finite, 1 + run]


def _square(tensor: torch.Tensor, stacked: bool) -> torch.Tensor:
    """Square of the norm: of each run if there are many, shape (n_runs,)."""
    return tensor.flatten(1).square().sum(1) if stacked else tensor.square().sum()
