"""From the arguments of `train` to a loop, and from the loop to the runs."""

import hashlib
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import dynalyze
from dynalyze._collectives import world
from dynalyze._interrupts import held, interruptible, take
from dynalyze._torch import torch
from dynalyze._typing import Data, IntArray
from dynalyze._warn import warn
from dynalyze.errors import InvalidInputError, LearningRateWarning
from dynalyze.flow.initialization import Initialization
from dynalyze.models.losses import loss_name
from dynalyze.models.torch_calculus import differentiable_attention
from dynalyze.training.batches import Samples, Shuffle
from dynalyze.training.engine import Engine, chunk_near_caches
from dynalyze.training.graded import Grading
from dynalyze.training.loop import Loop
from dynalyze.training.options import Options
from dynalyze.training.progress import progress_bar
from dynalyze.training.recording import Recording
from dynalyze.training.trainable import Trainable, Weights, as_trainable, checked_samples
from dynalyze.training.training_run import TrainingRun

# Gradient descent at a stable learning rate lowers the loss at every step, but for rounding.
_TOLERATED_RISES = 0.01


@held()
@interruptible()
def run_all(
    model: object,
    data: Data,
    inits: Sequence[Initialization] | None,
    rngs: Sequence[np.random.Generator | int | None],
    options: Options,
    *,
    stacked: bool,
) -> tuple[TrainingRun, ...]:
    """Train from every initialization; None is the model's own weights."""
    trainable = as_trainable(model, device=options.device)
    inputs, targets, sample_loss = checked_samples(trainable, data, options.loss)
    starts = [trainable.own_initialization()] if inits is None else list(inits)
    # Adam and momentum act on entries, which a rotation of the columns would change.
    plain = options.optimizer != "adam" and not options.optimizer_options
    weights = _starting_weights(trainable, starts, stacked, graded=plain)
    shuffles = None
    if options.batch_size is not None:
        size, none = min(options.batch_size, len(inputs)), np.zeros(0, dtype=np.int64)
        shuffles = [Shuffle(len(inputs), size, np.random.default_rng(r), none) for r in rngs]
    recording = options.recording if options.recording is not None else Recording()
    place = trainable.model.device
    every, check_every = recording.resolved(
        options.n_steps, matrices=trainable.matrices, cuda=place.type == "cuda"
    )
    configuration: dict[str, Any] = {
        "model": type(trainable.model.module).__name__,
        "fixed weights": _digest(_fixed(trainable)),
        "data": _digest([inputs, targets]),
        "loss": loss_name(options.loss),
        "optimizer": options.optimizer,
        "optimizer_options": dict(options.optimizer_options or {}),
        "lr": options.lr,
        "batch_size": options.batch_size,
        "recording": [recording.change, recording.every, recording.check_every],
    }
    chunk = chunk_near_caches(inputs, len(starts)) if place.type == "cpu" else None
    loop = Loop(
        engine=Engine(trainable, sample_loss, stacked, chunk),
        samples=Samples(inputs, targets, place, shuffles),
        weights=weights,
        optimizer=options.make_optimizer(weights),
        n_steps=options.n_steps,
        grading=Grading(weights, trainable.pairs)
        if any(map(trainable.needs_grading, starts))
        else None,
        change=recording.change,
        every=every,
        check_every=check_every,
        identity=configuration
        | {
            "runs": len(starts),
            "initial weights": _digest(weights.values()),
            "random order": [shuffle.state()["generator"] for shuffle in shuffles or []],
        },
    )
    with (
        progress_bar(options.n_steps, show=options.progress) as advance,
        differentiable_attention(),
    ):
        loop.run(
            folder=None if options.checkpoint is None else Path(options.checkpoint),
            checkpoint_every=options.checkpoint_every,
            max_seconds=options.max_seconds,
            callback=options.callback,
            advance=advance,
        )
    configuration |= {
        "n_steps": options.n_steps,
        "device": str(place),
        "ranks": world()[1],
        "dynalyze": dynalyze.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    results = [
        _result(loop, run, start, options, configuration) for run, start in enumerate(starts)
    ]
    if take():
        results = [_interrupted_at_its_end(result) for result in results]
    return tuple(results)


def _result(
    loop: Loop,
    run: int,
    init: Initialization,
    options: Options,
    configuration: dict[str, Any],
) -> TrainingRun:
    records, lr, trainable = loop.records[run], options.lr, loop.engine.trainable
    if not records.steps:
        raise InvalidInputError(
            f"the loss is not finite at the initial weights of run {run}: check data and init"
        )
    rises = int(loop.rises[run])
    status: str = loop.status
    message = {
        "finished": f"all {loop.n_steps} steps made",
        "max_seconds": f"{loop.step} of {loop.n_steps} steps made: raise max_seconds, or go on "
        "from the checkpoint",
        "callback": f"the callback ended the run after {loop.step} steps",
        "interrupted": f"interrupted after {loop.step} steps: call again with the same "
        "checkpoint folder to go on",
    }.get(status, "")
    if run in loop.diverged_at:
        status = "diverged"
        message = (
            f"the loss exceeded 100 times its start, or became NaN, by step "
            f"{loop.diverged_at[run]}: lr={lr:g} is too large; try {lr / 4:g}"
        )
    elif options.optimizer == "gd" and rises > _TOLERATED_RISES * loop.step:
        message += (
            f"; the loss rose at {rises} of {loop.step} steps: lr={lr:g} is at the edge of "
            f"stability, and the run does not follow the gradient flow; try {lr / 4:g}"
        )
        warn(message, LearningRateWarning)
    if status == "diverged":
        warn(message, LearningRateWarning)
    final = {
        name: value.detach().cpu().numpy()[(run,) if loop.engine.stacked else ()].copy()
        for name, value in loop.final_weights().items()
    }
    observed = torch.stack(records.observed).numpy()
    number: IntArray = np.array(records.steps, dtype=np.int64)
    return TrainingRun(
        steps=number,
        theta=observed,
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


def _interrupted_at_its_end(run: TrainingRun) -> TrainingRun:
    if run.status != "finished":
        return run
    return replace(run, status="interrupted", message=f"interrupted at its end: {run.message}")


def _starting_weights(
    trainable: Trainable, starts: Sequence[Initialization], stacked: bool, *, graded: bool
) -> Weights:
    each = [trainable.initial_weights(start, graded=graded) for start in starts]
    weights = {name: torch.stack([w[name] for w in each]) for name in each[0]}
    if not stacked:
        weights = {name: value[0] for name, value in weights.items()}
    return {name: value.clone().requires_grad_() for name, value in weights.items()}


def _fixed(trainable: Trainable) -> list[torch.Tensor]:
    """What the module holds besides the weights that train."""
    trained = {name for pair in trainable.pairs for name in pair}
    held = trainable.model.module.state_dict()
    return [value for name, value in held.items() if name not in trained]


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
