"""The loop of `train` on the library's own kernels: gradient descent of diagonal heads on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze._core.collectives import world
from dynalyze._core.interrupts import held
from dynalyze._core.pytorch import torch
from dynalyze.models.kernels import LANES, loss_and_gradient, sample_lanes, zeros
from dynalyze.models.losses import squared_loss_factor
from dynalyze.training.descent import Batches, Lanes, Rule, Runs, Watch, collect, descend, prepare
from dynalyze.training.heads import DiagonalHead
from dynalyze.training.identity import HOOKS
from dynalyze.training.options import ManyTrainings, OneTraining
from dynalyze.training.product_loop import ProductLoop
from dynalyze.training.trainable import Trainable

_OPTIONS = {"momentum", "dampening", "nesterov", "weight_decay"}
# Operations between two looks at the clock and at Ctrl-C: a few hundredths of a second.
_WORK_AT_ONCE = 2e8
_MOST_AT_ONCE = 10_000  # steps


def runs_natively(options: OneTraining | ManyTrainings, trainable: Trainable) -> bool:
    """Whether `NativeLoop` can make the steps: the same as PyTorch's, up to rounding.

    It does for a `DiagonalHead` without hooks (or an `AttentionHead`) in float64, on the CPU, in
    one process, by "gd" or "sgd" with momentum, Nesterov's or not, and weight decay, under the
    losses with a name.
    """
    module, given = trainable.module, options.optimizer_options or {}
    return (
        type(module) is DiagonalHead
        and trainable.pairs == module.products
        and len({id(parameter) for parameter in module.parameters()}) == 4
        and "forward" not in vars(module)
        and not any(getattr(module, name) for name in HOOKS)
        and trainable.dtype == torch.float64
        and trainable.model.device.type == "cpu"
        and world()[1] == 1
        and isinstance(options.loss, str)
        and options.optimizer in ("gd", "sgd")
        and given.keys() <= _OPTIONS
        and all(isinstance(value, int | float) for value in given.values())
    )


class NativeLoop(ProductLoop):
    """A `ProductLoop` whose steps are made by compiled kernels, many in one call.

    Its state is that of a `ProductLoop`, in the same tensors, which the kernels see as arrays.
    """

    engine_name = "native"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Kernels are compiled for one order of axes.
        X, y = map(np.ascontiguousarray, (self.samples.inputs, self.samples.targets))
        n_samples, n_tokens, d = X.shape
        n_runs = len(self.records)
        size = self.options.batch_size or n_samples
        assert isinstance(self.options.loss, str)  # as `runs_natively` asks for
        factor = squared_loss_factor(self.options.loss, n_tokens * d)
        self._whole = _lanes(X, y, factor)
        self._lanes, self._source = self._whole, (X, y)
        if not self.samples.full_batch:
            self._lanes = _lanes(np.zeros((size, n_tokens, d)), np.zeros((size, n_tokens, d)), 1.0)
        self._size, self._factor = size, factor
        given = self.options.optimizer_options or {}
        self._rule = Rule(
            lr=self.options.lr,
            momentum=float(given.get("momentum", 0.0)),
            dampening=float(given.get("dampening", 0.0)),
            weight_decay=float(given.get("weight_decay", 0.0)),
            nesterov=bool(given.get("nesterov", False)),
        )
        self._losses, self._slopes = np.zeros(n_runs), np.zeros((n_runs, 2, d))
        self._all_samples = np.zeros((n_runs, 0), dtype=np.int64)  # no order of batches
        self._previous = self._previous.clone()  # changed in place, unlike the initial losses
        work = 8.0 * min(size, n_samples) * n_tokens**2 * d * n_runs
        self.at_once = int(np.clip(_WORK_AT_ONCE / work, 1, _MOST_AT_ONCE))

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Ctrl-C waits for the kernels, a second one too."""
        with held():
            yield

    def make_steps(self, most: int) -> torch.Tensor:
        """Make `most` steps, with records as the schedule asks for them."""
        end, evaluated = self.step + most, False
        runs, watch = self._runs(), self._what_calls_for_a_look()
        while self.step < end:
            evaluated = self._descend(runs, watch, end, evaluated)
            if evaluated:
                losses = torch.from_numpy(self._losses.copy())
                if self.step == 0:
                    full = self.samples.full_batch
                    self._initial = losses if full else self._whole_losses()
                self._watch(losses)
                watch = self._what_calls_for_a_look()
                if self.ended:
                    end = self.step + 1  # PyTorch's loop makes this step too
        return torch.from_numpy(self._losses.copy())

    def _descend(self, runs: Runs, watch: Watch, end: int, evaluated: bool) -> bool:
        """Make steps up to `end`, an epoch's end or a step to look at; whether it is the latter."""
        orders, before = self._all_samples, self.step
        if not self.samples.full_batch:
            orders = self.samples.orders_to_come()
            end = min(end, before - (-orders.shape[1] // self._size))
        batches = Batches(*self._source, orders, self._size, self._factor)
        self.step, due = descend(
            self._lanes, batches, self._rule, runs, watch, before, end, evaluated
        )
        if not self.samples.full_batch:
            self.samples.skip((self.step - before) * self._size)
        return bool(due)

    def _what_calls_for_a_look(self) -> Watch:
        n_runs = len(self.records)
        recorded = [r.steps[-1] if r.steps else -self._every for r in self.records]
        return Watch(
            last=self._last.numpy().reshape(self._slopes.shape),
            recorded=np.array(recorded),
            alive=np.array([run not in self.diverged_at for run in range(n_runs)]),
            bound=self.options.divergence_bound(self._initial).numpy(),
            initial=self._initial.numpy(),
            previous=self._previous.numpy(),
            rises=self.rises.numpy(),
            rounding=self._rounding,
            change=float(self._change),
            every=self._every,
            check_every=self.check_every,
        )

    def _runs(self) -> Runs:
        velocities = weights = [_table(w, self._slopes) for w in self.weights.values()]
        if self._rule.momentum:
            slots = [self.optimizer.state[w] for w in self.weights.values()]
            for slot, weight in zip(slots, self.weights.values(), strict=True):
                if "momentum_buffer" not in slot:
                    slot["momentum_buffer"] = torch.zeros_like(weight)
            velocities = [_table(slot["momentum_buffer"], self._slopes) for slot in slots]
        d = self._slopes.shape[2]
        room = np.zeros(2 * d), zeros(1, 3, d)
        return Runs(tuple(weights), tuple(velocities), self._losses, self._slopes, *room)

    def _whole_losses(self) -> torch.Tensor:
        n_runs, _, d = self._slopes.shape
        runs = self._runs()._replace(losses=np.zeros(n_runs), slopes=np.zeros((n_runs, 2, d)))
        for run in range(n_runs):
            prepare(runs, run)
            loss_and_gradient(*self._whole[:3], runs.theta, self._whole.bounds, runs.sums)
            collect(runs, run)
        return torch.from_numpy(runs.losses)


def _table(tensor: torch.Tensor, like: FloatArray) -> FloatArray:
    """The entries of a weight in place, shape (n_runs, d)."""
    return tensor.detach().numpy().reshape(len(like), -1)


def _lanes(X: FloatArray, y: FloatArray, factor: float) -> Lanes:
    weight = zeros(-(-len(X) // LANES))
    weight.flat[: len(X)] = factor / len(X)
    return Lanes(sample_lanes(X), sample_lanes(y), weight, np.array([0, len(weight)]))
