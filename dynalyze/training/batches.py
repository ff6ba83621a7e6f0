"""The samples of each step, the same for every rank and every resumed run."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dynalyze._collectives import share
from dynalyze._torch import torch
from dynalyze._typing import IntArray
from dynalyze.training.checkpoints import random_state, restore_random_state


@dataclass
class Shuffle:
    """Order in which one run of SGD goes through the samples: a new permutation every epoch."""

    n_samples: int
    batch_size: int
    generator: np.random.Generator
    order: IntArray  # (n_samples,), or empty before the first epoch
    position: int = 0

    def next_batch(self) -> IntArray:
        """Indices of the next batch; the last one of an epoch may be shorter."""
        if self.position >= len(self.order):
            self.order = self.generator.permutation(self.n_samples)
            self.position = 0
        batch = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        return batch

    def state(self) -> dict[str, Any]:
        """State for a checkpoint's JSON."""
        return {
            "position": self.position,
            "order": self.order.tolist(),
            "generator": random_state(self.generator),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.position = int(state["position"])
        self.order = np.array(state["order"], dtype=np.int64)
        self.generator = restore_random_state(state["generator"])


class Samples:
    """All samples on the device, and the part of each step's batch that is this rank's.

    Parameters
    ----------
    inputs, targets : Tensor, shape (n_samples, ...)
        All samples, on the CPU.
    device : torch.device
        Where they are used.
    shuffles : list of Shuffle, or None
        One for each run of SGD; None takes all samples at every step.
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        device: torch.device,
        shuffles: list[Shuffle] | None,
    ) -> None:
        self.n_samples = len(inputs)
        self.shuffles = shuffles
        # Full batches need this rank's share only; of a random batch any sample may be ours.
        mine = share(self.n_samples) if shuffles is None else slice(None)
        self._inputs, self._targets = inputs[mine].to(device), targets[mine].to(device)
        self._share = share(self.n_samples)

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Share of this rank in all samples, shape (n_mine, ...)."""
        if self.shuffles is None:
            return self._inputs, self._targets
        return self._inputs[self._share], self._targets[self._share]

    def next_batch(self, stacked: bool) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Share of this rank in the next batch, and the size of the whole batch.

        With `stacked`, each run has a batch of its own and the shape is (n_runs, n_mine, ...).
        """
        if self.shuffles is None:
            return self._inputs, self._targets, self.n_samples
        batches = [shuffle.next_batch() for shuffle in self.shuffles]
        size = len(batches[0])
        indices = torch.from_numpy(np.stack(batches)[:, share(size)]).to(self._inputs.device)
        if not stacked:
            indices = indices[0]
        return self._inputs[indices], self._targets[indices], size
