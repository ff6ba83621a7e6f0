"""The loop of `train`: gradients of product weights, records, a guard against divergence."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from dynalyze._core.pytorch import torch
from dynalyze.models.torch.calculus import differentiable_attention
from dynalyze.training.batches import Samples
from dynalyze.training.engine import Engine
from dynalyze.training.graded import Grading
from dynalyze.training.loop import Loop
from dynalyze.training.precision import Comparison
from dynalyze.training.recording import Records
from dynalyze.training.trainable import Weights

# At a stable learning rate no column grows by much in so many steps.
_STEPS_PER_GRADING = 10


@dataclass
class ProductLoop(Loop):
    """Training of the product weights of one run or of many."""

    engine: Engine
    samples: Samples
    weights: Weights  # leaves that require gradients, updated in place by the optimizer
    optimizer: torch.optim.Optimizer
    n_steps: int
    change: float  # of a recorded quantity since the last record, that calls for another
    every: int
    check_every: int
    bound: Callable[[torch.Tensor], torch.Tensor]  # from initial losses to those of divergence
    identity: Mapping[str, Any]
    seeds: list[int | None]  # of the random order, one per run, where the library drew it
    grading: Grading | None = None  # of full weights at the smallest scales
    comparison: Comparison | None = None  # of gradients in lower precision
    records: list[Records] = field(default_factory=list)  # one per run
    diverged_at: dict[int, int] = field(default_factory=dict)  # run to step

    def __post_init__(self) -> None:
        first = next(iter(self.weights.values()))
        self.device = first.device
        observed = self._observe()
        n_runs = len(observed)
        self.records = [Records() for _ in range(n_runs)]
        self._last = observed.clone()  # (n_runs, n_recorded), at the last record of each run
        infinite = torch.full((n_runs,), torch.inf, dtype=torch.float64, device=self.device)
        self._initial, self._previous = infinite, infinite
        self.rises = torch.zeros(n_runs, dtype=torch.int64, device=self.device)
        # A rise within rounding is none, also where the loss has come down to it.
        self._rounding = 4500 * torch.finfo(first.dtype).eps

    @property
    def ended(self) -> bool:
        """Whether all steps are made, something stopped them, or every run has diverged."""
        return super().ended or len(self.diverged_at) == len(self.records)

    def surroundings(self) -> AbstractContextManager[Any]:
        """Attention by kernels that can be differentiated as often as need be."""
        return differentiable_attention()

    def final_weights(self) -> Weights:
        """The weights in their own columns."""
        return self.weights if self.grading is None else self.grading.undo(self.weights)

    def make_step(self) -> torch.Tensor:
        """Record what the schedule asks for, then make one optimizer step."""
        if self.grading is not None and self.step % _STEPS_PER_GRADING == 0:
            self.grading.grade(self.weights)
        if self.comparison is not None:
            self.comparison.look(self.step, self.weights, self.engine, self.samples)
        inputs, targets, size = self.samples.next_batch(self.engine.stacked)
        shared = self.samples.full_batch or not self.engine.stacked
        losses = self.engine.losses_and_gradients(
            self.weights, inputs, targets, size, shared=shared
        )
        losses = losses.reshape(len(self.records))
        if self.step == 0:
            self._initial = losses if self.samples.full_batch else self._whole_losses()
        if self.samples.full_batch:
            self.rises += losses > self._previous + self._rounding * self._initial.abs()
            self._previous = losses
        if self.step % self.check_every == 0:
            self._watch(losses)
        self.optimizer.step()
        self.step += 1
        return losses

    def _watch(self, losses: torch.Tensor) -> None:
        """Make the records that are due, and note the runs that diverge."""
        observed = self._observe()
        moved = (observed - self._last).abs().amax(1)
        # One look at the device for both.
        due, suspect = torch.stack([moved >= self.change, self._beyond(losses)]).tolist()
        whole = losses if self.samples.full_batch else None
        running = [run for run in range(len(self.records)) if run not in self.diverged_at]
        if any(suspect[run] for run in running):
            # A batch may be all outliers: what counts is the loss on all samples.
            whole = self._whole_losses() if whole is None else whole
            self._note_divergence(whole)
        wanted = [
            run
            for run in running
            if not self.records[run].steps
            or (
                run not in self.diverged_at
                and (due[run] or self.step - self.records[run].steps[-1] >= self.every)
            )
        ]
        if wanted:
            self._record(wanted, observed, self._whole_losses() if whole is None else whole)

    def _record(self, runs: list[int], observed: torch.Tensor, losses: torch.Tensor) -> None:
        rows, values = observed.detach().cpu(), losses.tolist()
        for run in runs:
            self.records[run].add(self.step, rows[run], values[run])
            self._last[run] = observed[run]

    def finish(self) -> None:
        """Record the end of every run that has not diverged."""
        losses = self._whole_losses()
        if self.step > 0:
            self._note_divergence(losses)
        sound = [run for run in range(len(self.records)) if run not in self.diverged_at]
        self._record(sound, self._observe(), losses)

    def _beyond(self, losses: torch.Tensor) -> torch.Tensor:
        return ~(losses <= self.bound(self._initial)) | ~losses.isfinite()

    def _note_divergence(self, whole: torch.Tensor) -> None:
        for run, is_bad in enumerate(self._beyond(whole).tolist()):
            if is_bad:
                self.diverged_at.setdefault(run, self.step)

    def _whole_losses(self) -> torch.Tensor:
        losses = self.engine.losses(self.weights, *self.samples.whole(), self.samples.n_samples)
        return losses.reshape(len(self.records))

    def _observe(self) -> torch.Tensor:
        with torch.no_grad():
            observed = self.engine.trainable.observe(self.weights)
        return observed if self.engine.stacked else observed[None]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "weights": self.weights,
            "rotations": None if self.grading is None else self.grading.rotations,
            "records": [records.state() for records in self.records],
            "last": self._last,
            "initial": self._initial,
            "previous": self._previous,
            "rises": self.rises,
            "seeds": self.seeds,
            "diverged_at": list(self.diverged_at.items()),
            "order": self.samples.state(),
            "chunk": self.engine.chunk,
            "looks": None if self.comparison is None else self.comparison.looks,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        if self.grading is not None:
            rotations = state["rotations"].items()
            self.grading.rotations |= {name: q.to(self.device) for name, q in rotations}
        self.records = [Records.from_state(records) for records in state["records"]]
        for name in ("last", "initial", "previous"):
            setattr(self, f"_{name}", state[name].to(self.device))
        self.rises = state["rises"].to(self.device)
        self.diverged_at = {int(run): int(step) for run, step in state["diverged_at"]}
        self.samples.restore(state["order"])
        self.engine.chunk = state["chunk"]
        if self.comparison is not None:
            self.comparison.looks = state["looks"]
