"""Losses and gradients of one run or of many at once, in chunks, and summed over ranks."""

from dataclasses import dataclass

from dynalyze._core.collectives import all_reduce, world
from dynalyze._core.pytorch import torch
from dynalyze.errors import DynalyzeError, InvalidInputError
from dynalyze.models.torch.device import is_device_error, is_out_of_memory
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.models.torch.network import with_weights
from dynalyze.training.batches import Batch
from dynalyze.training.trainable import Trainable, Weights

# Inputs of one pass on a CPU, counted once per run: measured on the paper's toy head, 1 to 32 runs
# at once take 10 to 30% longer in chunks of 4 MiB, and 32 over three times as long in one pass.
_CPU_PASS = 2**20


def chunk_near_caches(inputs: torch.Tensor, n_runs: int) -> int:
    """Samples per pass on a CPU for `n_runs` runs at once."""
    per_sample = inputs[0].numel() * inputs.element_size() * n_runs
    return max(1, _CPU_PASS // max(1, per_sample))


@dataclass
class Engine:
    """Evaluates L for the weights of one run, or of many runs at once by `torch.func.vmap`."""

    trainable: Trainable
    loss: SampleLoss
    stacked: bool  # whether weights have a leading axis of runs
    chunk: int | None = None  # samples per pass; halved where the device runs out of memory

    def losses(self, weights: Weights, batch: Batch) -> torch.Tensor:
        """Mean loss over a batch, shape () or (n_runs,)."""
        with torch.no_grad():
            return self._sum(weights, batch, gradient=False)[0]

    def losses_and_gradients(self, weights: Weights, batch: Batch) -> torch.Tensor:
        """The losses as by `losses`; the gradients are left in each weight's ``grad``."""
        total, *gradients = self._sum(weights, batch, gradient=True)
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            weight.grad = gradient
        return total

    def _sum(self, weights: Weights, batch: Batch, *, gradient: bool) -> list[torch.Tensor]:
        axis = 0 if batch.shared else 1
        n_mine = batch.inputs.shape[axis]
        first = next(iter(weights.values()))
        runs = first.shape[:1] if self.stacked else ()
        sums = [torch.zeros(runs, dtype=torch.float64, device=first.device)]
        if gradient:
            sums += [torch.zeros_like(weight) for weight in weights.values()]
        start = 0
        while start < n_mine:
            length = min(self.chunk or n_mine, n_mine - start)
            x, y = (t.narrow(axis, start, length) for t in (batch.inputs, batch.targets))
            try:
                parts = self._pass(weights, Batch(x, y, batch.size, batch.shared), gradient)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if length == 1:
                    raise DynalyzeError(
                        f"{first.device} ran out of memory on one sample: train fewer runs at "
                        "once, or on a device with more memory"
                    ) from error
                self.chunk = length // 2
                continue
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
            start += length
        return _over_ranks(sums)

    def _pass(self, weights: Weights, batch: Batch, gradient: bool) -> list[torch.Tensor]:
        def share_of_mean(some: Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.loss(self.trainable(some, x), y).sum() / batch.size

        def with_slopes(values: torch.Tensor) -> list[torch.Tensor]:
            if not gradient:
                return [values]
            # The runs do not meet: the gradient of their sum holds the gradient of each.
            return [values.detach(), *torch.autograd.grad(values.sum(), list(weights.values()))]

        x, y = batch.inputs, batch.targets
        if self.stacked:
            over = None if batch.shared else 0
            each = torch.func.vmap(share_of_mean, in_dims=(0, over, over))
            try:
                return with_slopes(each(weights, x, y))
            except RuntimeError as error:
                if is_out_of_memory(error) or is_device_error(error):
                    raise
                raise InvalidInputError(
                    f"the module cannot be batched over runs by torch.func.vmap ({error}): "
                    "train the runs one by one with train"
                ) from error

        # A checkpoint in the module is computed again while slopes are taken: with these weights.
        return with_weights(
            self.trainable.module,
            weights,
            lambda module: with_slopes(self.loss(module(x), y).sum() / batch.size),
        )


def _over_ranks(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    if world()[1] == 1:
        return tensors
    flat = all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(t).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]
