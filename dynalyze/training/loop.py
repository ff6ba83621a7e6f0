"""The training loop: steps, records, guard, checkpoints. `train` is its public face."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dynalyze._core.collectives import all_reduce, world
from dynalyze._core.interrupts import interruptible, take
from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.training.batches import Samples
from dynalyze.training.checkpoints import Checkpoint, save_checkpoint
from dynalyze.training.engine import Engine
from dynalyze.training.graded import Grading
from dynalyze.training.identity import check_same_run
from dynalyze.training.precision import Comparison
from dynalyze.training.recording import Records
from dynalyze.training.trainable import Weights

Status = Literal["finished", "diverged", "max_seconds", "callback", "interrupted"]
Callback = Callable[[int, torch.Tensor], bool | None]
"""Called as ``callback(step, losses)`` at every check; the run stops where it returns True."""

# At a stable learning rate no column grows by much in so many steps.
_STEPS_PER_GRADING = 10


@dataclass
class Loop:
    """State of a training of one run or of many; everything in it goes into a checkpoint."""

    engine: Engine
    samples: Samples
    weights: Weights  # leaves that require gradients, updated in place by the optimizer
    optimizer: torch.optim.Optimizer
    n_steps: int
    change: float  # of a recorded quantity since the last record, that calls for another
    every: int
    check_every: int
    bound: Callable[[torch.Tensor], torch.Tensor]  # from initial losses to those of divergence
    identity: Mapping[str, Any]  # what a run that goes on must have in common with its checkpoint
    seeds: list[int | None]  # of the random order, one per run, where the library drew it
    grading: Grading | None = None  # of full weights at the smallest scales
    comparison: Comparison | None = None  # of gradients in lower precision
    step: int = 0
    status: Status = "finished"
    records: list[Records] = field(default_factory=list)  # one per run
    diverged_at: dict[int, int] = field(default_factory=dict)  # run to step

    def __post_init__(self) -> None:
        observed = self._observe()
        n_runs = len(observed)
        self.records = [Records() for _ in range(n_runs)]
        self._last = observed.clone()  # (n_runs, n_recorded), at the last record of each run
        infinite = torch.full((n_runs,), torch.inf, dtype=torch.float64, device=self._device)
        self._initial, self._previous = infinite, infinite
        self.rises = torch.zeros(n_runs, dtype=torch.int64, device=self._device)
        # A rise within rounding is none, also where the loss has come down to it.
        precision = next(iter(self.weights.values())).dtype
        self._rounding = 4500 * torch.finfo(precision).eps

    @property
    def _device(self) -> torch.device:
        return next(iter(self.weights.values())).device

    def run(
        self,
        *,
        folder: Path | None,
        checkpoint_every: int,
        max_seconds: float | None,
        callback: Callback | None,
        advance: Callable[[int], object],
    ) -> None:
        """Train to the end."""
        advance(self.step)
        started = time.monotonic()
        with interruptible():
            while self.step < self.n_steps and len(self.diverged_at) < len(self.records):
                losses = self._one_step()
                advance(1)
                if folder is not None and self.step % checkpoint_every == 0:
                    self._save(folder)
                if self.step % self.check_every == 0:
                    interrupted = take()
                    late = max_seconds is not None and time.monotonic() - started > max_seconds
                    told = callback is not None and bool(callback(self.step, losses))
                    stop = self._on_any_rank([interrupted, late, told])
                    reasons: tuple[Status, ...] = ("interrupted", "max_seconds", "callback")
                    if any(stop):
                        self.status = reasons[stop.index(True)]
                        break
        if folder is not None:
            # Before the closing record, which a run that goes on does not make here.
            self._save(folder)
        self._record_end()

    def final_weights(self) -> Weights:
        """The weights in their own columns."""
        return self.weights if self.grading is None else self.grading.undo(self.weights)

    def _one_step(self) -> torch.Tensor:
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

    def _record_end(self) -> None:
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

    def _on_any_rank(self, flags: list[bool]) -> list[bool]:
        # Ranks must stop at the same step, or the others wait for them for ever.
        if world()[1] == 1:
            return flags
        counts = torch.tensor(flags, dtype=torch.float64, device=self._device)
        return [count > 0 for count in all_reduce(counts).tolist()]

    def _save(self, folder: Path) -> None:
        if world()[0] != 0:
            return
        tensors = {f"weights.{name}": value for name, value in self.weights.items()}
        if self.grading is not None:
            tensors |= {f"rotation.{name}": q for name, q in self.grading.rotations.items()}
        for index, slot in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{index}.{key}": value
                for key, value in slot.items()
                if value is not None
            }
        for run, records in enumerate(self.records):
            tensors |= records.tensors(f"records.{run}")
        tensors |= {
            "last": self._last,
            "initial": self._initial,
            "previous": self._previous,
            "rises": self.rises,
        }
        state = {
            "identity": dict(self.identity),
            "seeds": self.seeds,
            "diverged_at": list(self.diverged_at.items()),
            "order": self.samples.state(),
            "chunk": self.engine.chunk,
            "comparison": None if self.comparison is None else self.comparison.looks,
        }
        save_checkpoint(folder, self.step, tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same run."""
        check_same_run(checkpoint, self.identity)
        if checkpoint.step > self.n_steps:
            raise InvalidInputError(
                f"the checkpoint {checkpoint.path} has made {checkpoint.step} steps, and only "
                f"{self.n_steps} are asked for: give at least as many, or another folder"
            )
        tensors = {name: value.to(self._device) for name, value in checkpoint.tensors.items()}
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[f"weights.{name}"])
        if self.grading is not None:
            rotations = self.grading.rotations
            rotations |= {name: tensors[f"rotation.{name}"] for name in rotations}
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in checkpoint.tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                slots.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.records = [
            Records.from_tensors(f"records.{run}", checkpoint.tensors)
            for run in range(len(self.records))
        ]
        self._last, self._initial = tensors["last"], tensors["initial"]
        self._previous, self.rises = tensors["previous"], tensors["rises"]
        state = checkpoint.state
        self.diverged_at = {int(run): int(step) for run, step in state["diverged_at"]}
        self.samples.restore(state["order"])
        self.engine.chunk = state["chunk"]
        if self.comparison is not None:
            self.comparison.looks = state["comparison"]
        self.step = checkpoint.step
