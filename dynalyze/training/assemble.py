"""From the arguments of `train` to a loop, and from the loop to the runs."""

import operator
import secrets
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from dynalyze._core.arrays import IntArray
from dynalyze._core.collectives import every_rank, of_first_rank, share
from dynalyze._core.interrupts import held, interruptible
from dynalyze._core.pytorch import torch
from dynalyze._core.warn import warn
from dynalyze.errors import DynalyzeWarning, InvalidInputError, LearningRateWarning
from dynalyze.flow.initialization import Initialization
from dynalyze.models.data import as_generator
from dynalyze.models.losses import loss_name
from dynalyze.models.torch.data import fingerprint, fingerprint_besides
from dynalyze.models.torch.device import converted, type_named
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.models.torch.network import loss_in
from dynalyze.training.batches import Samples
from dynalyze.training.checkpoints import Checkpoint
from dynalyze.training.engine import Engine, chunk_near_caches
from dynalyze.training.graded import Grading
from dynalyze.training.identity import describe, describe_module
from dynalyze.training.loop import run_loop, told_of_late_interrupts
from dynalyze.training.options import ManyTrainings, OneTraining, Options, Source
from dynalyze.training.precision import Comparison, check_precision
from dynalyze.training.product_loop import ProductLoop
from dynalyze.training.recording import Recording
from dynalyze.training.result import TrainingRun
from dynalyze.training.trainable import Trainable, Weights, as_trainable, checked_samples

# Gradient descent at a stable learning rate lowers the loss at every step, but for rounding.
_TOLERATED_RISES = 0.01
# Steps of a run in float32 at which its gradients are compared with those of float64.
_LOOKS = 10


@held()
@interruptible()
def run_all(options: OneTraining | ManyTrainings) -> tuple[TrainingRun, ...]:
    """Train from every initialization."""
    with every_rank() as stated:
        trainable = as_trainable(options.model, device=options.device)
        dtype = type_named(options.precision)
        problem = checked_samples(trainable, options.data, options.loss)
        exact = trainable
        if dtype != trainable.dtype:
            trainable = trainable.in_precision(dtype)
        starts = options.starts or [trainable.own_initialization()]
        # Adam and momentum act on entries, which a rotation of the columns would change.
        plain = options.optimizer != "adam" and not options.optimizer_options
        graded = plain and dtype == torch.float64
        weights = _starting_weights(trainable, starts, options.stacked, graded=graded)
        stated["runs"] = len(starts)
        if dtype != torch.float64:
            first = {name: w[0] if options.stacked else w for name, w in weights.items()}
            check_precision(trainable, first, problem[0])
    drawn = of_first_rank([secrets.randbits(128) for _ in starts])

    def build(found: Checkpoint | None) -> ProductLoop:
        kept = [] if found is None else found.state.get("changing", {}).get("seeds", [])
        seeds = [
            (old if old is not None else new) if rng is None else rng
            for rng, old, new in zip_longest(options.sources, kept[: len(starts)], drawn)
        ]
        return _loop(options, trainable, exact, problem, weights, starts, seeds)

    loop = run_loop(build, options)
    configuration = {
        **loop.configuration,
        "loss": loss_name(options.loss),
        "n_steps": options.n_steps,
        "seeds": loop.seeds if options.batch_size is not None else [],
    }
    if list(loop.diverged_at.values()) == [0] * len(starts):
        raise InvalidInputError(
            "the loss is not finite at the initial weights of run 0: check data and init"
        )
    return told_of_late_interrupts(
        _result(loop, run, start, options, configuration) for run, start in enumerate(starts)
    )


def _loop(
    options: OneTraining | ManyTrainings,
    trainable: Trainable,
    exact: Trainable,
    problem: tuple[torch.Tensor, torch.Tensor, SampleLoss],
    weights: Weights,
    starts: Sequence[Initialization],
    seeds: Sequence[Source],
) -> ProductLoop:
    """The loop at its first step."""
    inputs, targets, loss = problem
    place, dtype = trainable.model.device, trainable.dtype
    generators = [] if options.batch_size is None else list(map(as_generator, seeds))
    recording = options.recording if options.recording is not None else Recording()
    every, check_every = recording.resolved(
        options.n_steps, matrices=trainable.matrices, cuda=place.type == "cuda"
    )
    chunk = chunk_near_caches(inputs, len(starts)) if place.type == "cpu" else None
    comparison = None
    if exact is not trainable:
        mine = share(len(inputs))
        comparison = Comparison(
            Engine(exact, loss, options.stacked, chunk),
            inputs[mine],
            targets[mine],
            len(inputs),
            max(1, options.n_steps // _LOOKS),
        )
    identity = {
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
    return ProductLoop(
        engine=Engine(
            trainable,
            loss if exact is trainable else loss_in(loss, dtype, place),
            options.stacked,
            chunk,
        ),
        samples=Samples(
            converted(inputs, inputs.device, dtype),
            converted(targets, targets.device, dtype),
            place,
            generators,
            options.batch_size,
        ),
        weights=weights,
        optimizer=options.make_optimizer(weights),
        n_steps=options.n_steps,
        grading=Grading(weights, trainable.pairs)
        if any(map(trainable.needs_grading, starts))
        else None,
        change=recording.change,
        every=every,
        check_every=check_every,
        bound=options.divergence_bound,
        identity=identity,
        seeds=[operator.index(s) if isinstance(s, int | np.integer) else None for s in seeds],
        comparison=comparison,
    )


def _result(
    loop: ProductLoop,
    run: int,
    init: Initialization,
    options: Options,
    configuration: dict[str, Any],
) -> TrainingRun:
    records, lr, trainable = loop.records[run], options.lr, loop.engine.trainable
    rises = int(loop.rises[run])
    status: str = loop.status
    message = loop.message
    if loop.diverged_at.get(run) == 0:
        status = "diverged"
        message = f"the loss is not finite at the initial weights of run {run}: check init"
        warn(message, DynalyzeWarning)
    elif run in loop.diverged_at:
        status = "diverged"
        message = (
            f"the loss exceeded 100 times its start, or is not finite, by step "
            f"{loop.diverged_at[run]}: lr={lr:g} is too large; try {lr / 4:g}"
        )
        warn(message, LearningRateWarning)
    elif options.optimizer == "gd" and rises > _TOLERATED_RISES * loop.step:
        message += (
            f"; the loss rose at {rises} of {loop.step} steps: lr={lr:g} is at the edge of "
            f"stability, and the run does not follow the gradient flow; try {lr / 4:g}"
        )
        warn(message, LearningRateWarning)
    if loop.comparison is not None:
        message += f"; {loop.comparison.summary(run)}"
        steps, errors = loop.comparison.errors(run)
        looks = {"steps": steps.tolist(), "relative": errors.tolist()}
        configuration = {**configuration, "gradient_errors": looks}
    final = {
        name: value.detach().cpu().numpy()[(run,) if loop.engine.stacked else ()].copy()
        for name, value in loop.final_weights().items()
    }
    observed = torch.stack(records.observed).numpy()
    number: IntArray = np.array(records.steps, dtype=np.int64)
    return TrainingRun(
        steps=number,
        values=observed,
        losses=np.array(records.losses),
        lr=lr,
        optimizer=options.optimizer,
        init=init,
        product_names=trainable.product_names,
        weights=final,
        singular_values=trainable.matrices,
        loss_rises=rises,
        status=status,
        message=message,
        configuration=configuration,
    )


def _starting_weights(
    trainable: Trainable, starts: Sequence[Initialization], stacked: bool, *, graded: bool
) -> Weights:
    each = [trainable.initial_weights(start, graded=graded) for start in starts]
    weights = {name: torch.stack([w[name] for w in each]) for name in each[0]}
    if not stacked:
        weights = {name: value[0] for name, value in weights.items()}
    return {name: value.clone().requires_grad_() for name, value in weights.items()}
