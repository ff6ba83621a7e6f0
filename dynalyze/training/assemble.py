"""From the arguments of `train` to a loop, and from the loop to the runs."""

import secrets
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from dynalyze._core.collectives import every_rank, of_first_rank
from dynalyze._core.interrupts import held, interruptible
from dynalyze._core.pytorch import torch
from dynalyze._core.status import Status
from dynalyze._core.warn import warn
from dynalyze.errors import DynalyzeWarning, InvalidInputError, LearningRateWarning
from dynalyze.flow.initialization import Initialization
from dynalyze.models.losses import loss_name
from dynalyze.models.torch.device import type_named
from dynalyze.training.checkpoints import Checkpoint
from dynalyze.training.loop import run_loop, told_of_late_interrupts
from dynalyze.training.native_loop import NativeLoop, runs_natively
from dynalyze.training.options import ManyTrainings, OneTraining
from dynalyze.training.precision import check_precision
from dynalyze.training.product_loop import ProductLoop
from dynalyze.training.result import TrainingRun
from dynalyze.training.trainable import Trainable, Weights, as_trainable, checked_samples

# Gradient descent at a stable learning rate lowers the loss at every step, but for rounding.
_TOLERATED_RISES = 0.01


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
        kind = NativeLoop if runs_natively(options, trainable) else ProductLoop
        return kind(options, trainable, exact, problem, weights, starts, seeds)

    loop = run_loop(build, options)
    configuration = {
        **loop.configuration,
        "loss": loss_name(options.loss),
        "engine": loop.engine_name,
        "n_steps": options.n_steps,
        "seeds": loop.seeds if options.batch_size is not None else [],
    }
    if list(loop.diverged_at.values()) == [0] * len(starts):
        raise InvalidInputError(
            "the loss is not finite at the initial weights of run 0: check data and init"
        )
    return told_of_late_interrupts(
        _result(loop, run, start, configuration) for run, start in enumerate(starts)
    )


def _result(
    loop: ProductLoop,
    run: int,
    init: Initialization,
    configuration: dict[str, Any],
) -> TrainingRun:
    records, trainable = loop.records[run], loop.engine.trainable
    lr, optimizer = loop.options.lr, loop.options.optimizer
    rises = int(loop.rises[run])
    status, message = loop.status, loop.message
    if loop.diverged_at.get(run) == 0:
        status = Status.DIVERGED
        message = f"the loss is not finite at the initial weights of run {run}: check init"
        warn(message, DynalyzeWarning)
    elif run in loop.diverged_at:
        status = Status.DIVERGED
        message = (
            f"the loss exceeded 100 times its start, or is not finite, by step "
            f"{loop.diverged_at[run]}: lr={lr:g} is too large; try {lr / 4:g}"
        )
        warn(message, LearningRateWarning)
    elif optimizer == "gd" and rises > _TOLERATED_RISES * loop.step:
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
    return TrainingRun(
        steps=np.array(records.steps, dtype=np.int64),
        values=torch.stack(records.observed).numpy(),
        losses=np.array(records.losses),
        lr=lr,
        optimizer=optimizer,
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
