"""The loop of `train`: gradients of product weights, records, a guard against divergence."""

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dynalyze._core.collectives import share
from dynalyze._core.interrupts import interruptible
from dynalyze._core.pytorch import torch
from dynalyze.flow.initialization import Initialization
from dynalyze.models.data import as_generator
from dynalyze.models.torch.calculus import differentiable_attention
from dynalyze.models.torch.data import fingerprint, fingerprint_besides
from dynalyze.models.torch.device import converted
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.models.torch.network import loss_in
from dynalyze.training.batches import Batch, Samples
from dynalyze.training.engine import Engine, chunk_near_caches
from dynalyze.training.graded import Grading
from dynalyze.training.identity import describe, describe_module
from dynalyze.training.loop import Loop
from dynalyze.training.options import ManyTrainings, OneTraining, Source
from dynalyze.training.precision import Comparison
from dynalyze.training.recording import Recording, Records
from dynalyze.training.trainable import Trainable, Weights

# Steps of a run in float32 at which its gradients are compared with those of float64.
_LOOKS = 10
# At a stable learning rate no column grows by much in so many steps.
_STEPS_PER_GRADING = 10


class ProductLoop(Loop):
    """Training of the product weights of one run or of many.

    Parameters
    ----------
    options : OneTraining or ManyTrainings
        What was asked for.
    trainable, exact : Trainable
        What is trained, in the precision asked for and in float64; the same where that is float64.
    problem : tuple
        Inputs and targets in float64, on the CPU, and the loss of a sample.
    weights : dict of Tensor
        Leaves that require gradients, updated in place by the optimizer.
    starts : sequence of Initialization
        One for each run.
    seeds : sequence of Generator or int
        Sources of the random order, one for each run.
    """

    engine_name = "torch"

    def __init__(
        self,
        options: OneTraining | ManyTrainings,
        trainable: Trainable,
        exact: Trainable,
        problem: tuple[torch.Tensor, torch.Tensor, SampleLoss],
        weights: Weights,
        starts: Sequence[Initialization],
        seeds: Sequence[Source],
    ) -> None:
        inputs, targets, loss = problem
        self.options, self.weights, self.n_steps = options, weights, options.n_steps
        self.device, dtype = trainable.model.device, trainable.dtype
        self.optimizer = options.make_optimizer(weights)
        generators = [] if options.batch_size is None else list(map(as_generator, seeds))
        # A checkpoint keeps those that are numbers; the state of the others is in its order.
        self.seeds = [operator.index(s) if isinstance(s, int | np.integer) else None for s in seeds]
        recording = options.recording if options.recording is not None else Recording()
        self._change = recording.change  # since the last record, that calls for another
        self._every, self.check_every = recording.resolved(
            self.n_steps, matrices=trainable.matrices, cuda=self.device.type == "cuda"
        )
        own_loss = loss if exact is trainable else loss_in(loss, dtype, self.device)
        chunk = chunk_near_caches(inputs, len(starts)) if self.device.type == "cpu" else None
        self.engine = Engine(trainable, own_loss, options.stacked, chunk)
        x, y = (converted(part, part.device, dtype) for part in (inputs, targets))
        self.samples = Samples(x, y, self.device, generators, options.batch_size)
        graded = any(map(trainable.needs_grading, starts))  # full weights, at the smallest scales
        self.grading = Grading(weights, trainable.pairs) if graded else None
        self.comparison: Comparison | None = None  # of gradients in lower precision
        if exact is not trainable:
            mine, every = share(len(inputs)), max(1, self.n_steps // _LOOKS)
            engine = Engine(exact, loss, options.stacked, chunk)
            whole = Batch(inputs[mine], targets[mine], len(inputs))
            self.comparison = Comparison(engine, whole, every)
        observed = self._observe()
        n_runs = len(observed)
        self.records = [Records() for _ in range(n_runs)]
        self.diverged_at: dict[int, int] = {}  # run to step
        self._last = observed.clone()  # (n_runs, n_recorded), at the last record of each run
        infinite = torch.full((n_runs,), torch.inf, dtype=torch.float64, device=self.device)
        self._initial, self._previous = infinite, infinite
        self.rises = torch.zeros(n_runs, dtype=torch.int64, device=self.device)
        # A rise within rounding is none, also where the loss has come down to it.
        self._rounding = 4500 * torch.finfo(dtype).eps
        self.identity = {
            "kind": "train",
            "model": describe_module(trainable.model.module),
            "products": [list(pair) for pair in trainable.pairs],
            "fixed weights": fingerprint_besides(trainable.pairs, trainable.model.module),
            "data": fingerprint([inputs, targets]),
            "loss": describe(options.loss),
            "optimizer": options.optimizer,
            "optimizer_options": describe(options.optimizer_options),
            "lr": options.lr,
            "batch_size": options.batch_size,
            "precision": options.precision,
            "recording": describe([recording.change, recording.every, recording.check_every]),
            "runs": len(starts),
            "initial weights": fingerprint(weights.values()),
            "random order": describe(generators),
        }

    @property
    def ended(self) -> bool:
        """Whether all steps are made, something stopped them, or every run has diverged."""
        return super().ended or len(self.diverged_at) == len(self.records)

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Attention by kernels that can be differentiated as often as need be."""
        with differentiable_attention(), interruptible():
            yield

    def final_weights(self) -> Weights:
        """The weights in their own columns."""
        return self.weights if self.grading is None else self.grading.undo(self.weights)

    def make_steps(self, most: int) -> torch.Tensor:
        """Record what the schedule asks for, then make one optimizer step."""
        if self.grading is not None and self.step % _STEPS_PER_GRADING == 0:
            self.grading.grade(self.weights)
        if self.comparison is not None:
            self.comparison.look(self.step, self.weights, self.engine, self.samples)
        batch = self.samples.next_batch(self.engine.stacked)
        losses = self.engine.losses_and_gradients(self.weights, batch)
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
        due, suspect = torch.stack([moved >= self._change, self._beyond(losses)]).tolist()
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
                and (due[run] or self.step - self.records[run].steps[-1] >= self._every)
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
        return ~(losses <= self.options.divergence_bound(self._initial)) | ~losses.isfinite()

    def _note_divergence(self, whole: torch.Tensor) -> None:
        for run, is_bad in enumerate(self._beyond(whole).tolist()):
            if is_bad:
                self.diverged_at.setdefault(run, self.step)

    def _whole_losses(self) -> torch.Tensor:
        losses = self.engine.losses(self.weights, self.samples.whole())
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
