"""Losses and gradients of one run or of many at once, in chunks, and summed over ranks."""

from dataclasses import dataclass

from dynalyze._core.collectives import all_reduce, world
from dynalyze._core.pytorch import torch
from dynalyze.errors import DynalyzeError, InvalidInputError
from dynalyze.models.torch.device import is_device_error, is_out_of_memory
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.models.torch.network import with_weights
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

    def losses(
        self, weights: Weights, inputs: torch.Tensor, targets: torch.Tensor, size: int
    ) -> torch.Tensor:
        """Mean loss over `size` samples, of which those given are this rank's.

        Returns
        -------
        Tensor, shape () or (n_runs,)
        """
        with torch.no_grad():
            (total,) = self._sum(weights, inputs, targets, size, shared=True, gradient=False)
        return total

    def losses_and_gradients(
        self,
        weights: Weights,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        size: int,
        *,
        shared: bool,
    ) -> torch.Tensor:
        """The losses as by `losses`; the gradients are left in each weight's ``grad``.

        With `shared` all runs see the same samples, else `inputs` and `targets` have a leading
        axis of runs.
        """
        total, *gradients = self._sum(weights, inputs, targets, size, shared=shared, gradient=True)
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            weight.grad = gradient
        return total

    def _sum(
        self,
        weights: Weights,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        size: int,
        *,
        shared: bool,
        gradient: bool,
    ) -> list[torch.Tensor]:
        axis = 0 if shared else 1
        n_mine = inputs.shape[axis]
        first = next(iter(weights.values()))
        runs = first.shape[:1] if self.stacked else ()
        sums = [torch.zeros(runs, dtype=torch.float64, device=first.device)]
        if gradient:
            sums += [torch.zeros_like(weight) for weight in weights.values()]
        start = 0
        while start < n_mine:
            length = min(self.chunk or n_mine, n_mine - start)
            x, y = (t.narrow(axis, start, length) for t in (inputs, targets))
            try:
                parts = self._pass(weights, x, y, size, shared=shared, gradient=gradient)
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

    def _pass(
        self,
        weights: Weights,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        size: int,
        *,
        shared: bool,
        gradient: bool,
    ) -> list[torch.Tensor]:
        def share_of_mean(
            some: Weights, inputs: torch.Tensor, targets: torch.Tensor
        ) -> torch.Tensor:
            return self.loss(self.trainable(some, inputs), targets).sum() / size

        def with_slopes(values: torch.Tensor) -> list[torch.Tensor]:
            if not gradient:
                return [values]
            # The runs do not meet: the gradient of their sum holds the gradient of each.
            return [values.detach(), *torch.autograd.grad(values.sum(), list(weights.values()))]

        if self.stacked:
            over = None if shared else 0
            try:
                return with_slopes(
                    torch.func.vmap(share_of_mean, in_dims=(0, over, over))(
                        weights, inputs, targets
                    )
                )
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
            lambda module: with_slopes(self.loss(module(inputs), targets).sum() / size),
        )


def _over_ranks(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    if world()[1] == 1:
        return tensors
    flat = all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(t).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]
