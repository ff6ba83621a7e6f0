"""The samples of each step, the same for every rank and every resumed run."""

from typing import Any, NamedTuple

import numpy as np

from dynalyze._core.arrays import IntArray
from dynalyze._core.collectives import share
from dynalyze._core.pytorch import torch
from dynalyze.training.checkpoints import random_state


class Batch(NamedTuple):
    """Share of this rank in the samples of one step."""

    inputs: torch.Tensor  # (n_mine, ...), or (n_runs, n_mine, ...) where each run has its own
    targets: torch.Tensor
    size: int  # samples over all ranks
    shared: bool = True  # whether all runs see the same samples


class Samples:
    """All samples on the device, and the part of each step's batch that is this rank's.

    Parameters
    ----------
    inputs, targets : Tensor, shape (n_samples, ...)
        All samples, on the CPU.
    device : torch.device
        Where they are used.
    generators : list of numpy.random.Generator
        One for each run that goes through the samples in batches, in a new order every epoch;
        if there are none, all samples are taken at every step.
    batch_size : int, optional
        Samples of a step; the last one of an epoch may have fewer.
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        device: torch.device,
        generators: list[np.random.Generator],
        batch_size: int | None,
    ) -> None:
        self.n_samples = len(inputs)
        self.full_batch = not generators
        self._share = share(self.n_samples)
        # Full batches need this rank's share only; of a random batch any sample may be ours.
        mine = self._share if self.full_batch else slice(None)
        self.inputs, self.targets = inputs[mine].to(device), targets[mine].to(device)
        self._batch_size = batch_size or self.n_samples
        self._generators = generators
        self._orders: IntArray = np.zeros((len(generators), 0), dtype=np.int64)
        self._on_device: torch.Tensor | None = None  # the orders, (n_runs, n_samples)
        self._position = 0

    def whole(self) -> Batch:
        """All samples."""
        if self.full_batch:
            return Batch(self.inputs, self.targets, self.n_samples)
        return Batch(self.inputs[self._share], self.targets[self._share], self.n_samples)

    def next_batch(self, stacked: bool) -> Batch:
        """The samples of the next step; with `stacked`, each run has its own."""
        if self.full_batch:
            return self.whole()
        size = min(self._batch_size, self.orders_to_come().shape[1])
        if self._on_device is None:
            # Once per epoch: a copy at every step would wait for the device.
            self._on_device = torch.from_numpy(self._orders).to(self.inputs.device)
        start, mine = self._position, share(size)
        indices = self._on_device[:, start + mine.start : start + mine.stop]
        self.skip(size)
        if not stacked:
            indices = indices[0]
        return Batch(self.inputs[indices], self.targets[indices], size, not stacked)

    def orders_to_come(self) -> IntArray:
        """The samples to come in this epoch, (n_runs, n); where none are left a new one begins."""
        if self._position >= self._orders.shape[1]:
            orders = [generator.permutation(self.n_samples) for generator in self._generators]
            self._orders, self._position, self._on_device = np.stack(orders), 0, None
        return self._orders[:, self._position :]

    def skip(self, n_samples: int) -> None:
        """Leave out so many samples, or what is left of the epoch."""
        self._position = min(self._position + n_samples, self.n_samples)

    def state(self) -> dict[str, Any]:
        """State of the random order, for a checkpoint."""
        return {
            "position": self._position,
            "orders": torch.from_numpy(self._orders),
            "generators": [random_state(generator) for generator in self._generators],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._position, self._on_device = int(state["position"]), None
        self._orders = state["orders"].numpy()
        for generator, random in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = random
