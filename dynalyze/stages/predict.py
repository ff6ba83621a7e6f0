"""`predict_stages`: what will be learned, in which order and when, before any training."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from dynalyze._core.arrays import ArrayLike, Data
from dynalyze._core.interrupts import delivering, held, interruptible, take
from dynalyze._core.status import Status
from dynalyze._core.warn import warn
from dynalyze.errors import InvalidInputError, StagesOverlapWarning
from dynalyze.flow.initialization import Initialization, check_initialization
from dynalyze.flow.rest import StationaryPoint, at_origin
from dynalyze.flow.steppers.methods import method_name, stepper_factory
from dynalyze.flow.steppers.protocol import StepperFactory
from dynalyze.models.binding import bind, check_origin
from dynalyze.models.counted import CountedObjective
from dynalyze.models.data import as_positive_int
from dynalyze.models.losses import Loss, loss_name
from dynalyze.models.protocol import Model, Objective
from dynalyze.stages.algorithm import (
    Ending,
    NegligibleField,
    Options,
    Stage,
    TransitionCache,
    recurse,
)
from dynalyze.stages.assemble import assemble
from dynalyze.stages.clocks import FiniteScaleClock, LeadingOrderClock
from dynalyze.stages.finite import FiniteScaleStages
from dynalyze.stages.orbit import ONSET
from dynalyze.stages.prediction import StagePrediction

_MOST_FINITE = 2  # stages at a finite α, in units of those of the limit
_STATIONARY = 1e-10  # |g| on the support at a limit point, relative to max|g(0)|


@held()
def predict_stages(
    model: Model | Objective,
    data: Data = None,
    *,
    loss: Loss = "squared",
    sample_weight: ArrayLike | None = None,
    init: Initialization | None = None,
    max_stages: int | None = None,
    max_seconds: float | None = None,
    field_rtol: float = 1e-9,
    tie_rtol: float = 1e-9,
    method: str | StepperFactory = "auto",
    progress: bool = False,
    callback: Callable[[Stage], Any] | None = None,
) -> StagePrediction:
    """Predict the stages in which gradient flow from a vanishing initialization learns.

    Algorithm 1 of *Transformers learn through gradual rank increase* (arXiv 2306.07042), from
    the data alone: no training run is made.

    Parameters
    ----------
    model : Model or Objective
        `DiagonalLinear`, `AttentionHead`, or anything that satisfies the `Model` protocol; or
        an `Objective`, which brings its data with it.
    data : pair of arrays (X, y)
        What `model.bind` takes; None with an `Objective`.
    loss : {"squared", "mse"}
        Mean over samples of ½‖y − f(x)‖², or the mean over all entries of the squared error
        (torch.nn.MSELoss). It sets the unit of time. PyTorch models take a function too: see
        `TorchModel.bind`.
    sample_weight : array_like, shape (n_samples,), optional
        Non-negative weights of the samples.
    init : Initialization, optional
        Weights to start from. Adds the jump times at that finite α, `jump_times`, which also
        know the transitions' own duration and the differences between the initial weights.
    max_stages : int, optional
        Stop after that many stages.
    max_seconds : float, optional
        Stop when that much wall-clock time has passed. A transition that is then being followed is
        given up; the stages before it are kept.
    field_rtol : float
        The recursion has converged when every |g_i| off the support is at most this fraction
        of max|g(0)|, less by as much as the units of its feature are smaller than the largest.
    tie_rtol : float
        Two products whose waiting times differ by at most this fraction tie, and the
        recursion stops: the theory does not say which comes first (Assumption 4.2).
    method : str or StepperFactory
        Integrator of the transitions' orbits, as for `simulate`.
    progress : bool
        Show a progress bar, one tick per stage.
    callback : callable, optional
        Called with every `Stage` of the limit α → 0 when it is known; stops the recursion by
        returning something true.

    Returns
    -------
    StagePrediction
        Its `status` says how the recursion ended, Ctrl-C included; all stages before that are
        in it.

    Raises
    ------
    InvalidInputError
        If the data or an argument cannot be used.

    Warns
    -----
    StagesOverlapWarning
        If, from `init`, a transition begins before the one before it has ended.
    """
    started = time.monotonic()
    _check_options(max_stages, max_seconds, field_rtol, tie_rtol)
    stepper_factory(method)  # refuses what no orbit could be followed with
    bound = bind(model, data, loss=loss, sample_weight=sample_weight)
    _check_rounding(bound)
    objective = CountedObjective(bound)
    if init is not None:
        check_initialization(init, objective.n_products)
        if init.n_products != objective.n_products:
            raise InvalidInputError(
                f"init has {init.n_products} products and the model {objective.n_products}: "
                "they must be the same"
            )
    names = objective.product_names
    origin = at_origin(objective)
    check_origin(type(model).__name__, origin.value, origin.field)
    negligible = NegligibleField(objective, origin, field_rtol)
    options = Options(negligible, tie_rtol, max_stages)
    tolerance = _STATIONARY * float(np.abs(origin.field).max(initial=0.0))
    transitions = TransitionCache(
        objective,
        method,
        deadline=started + (np.inf if max_seconds is None else max_seconds),
        tolerance=tolerance,
        follow=init is not None,
    )
    stages: list[Stage] = []
    clock = LeadingOrderClock(objective.n_products)
    with tqdm(desc="stages", unit=" stages", total=max_stages, disable=not progress) as bar:

        def record(stage: Stage) -> Any:
            stages.append(stage if init is not None else stage.without_hessians())
            bar.update()
            bar.set_postfix(loss=f"{stage.transition.end.value:.3g}", refresh=False)
            with interruptible():
                return callback is not None and callback(stage)

        try:
            with delivering():
                ending = recurse(origin, clock, transitions, options, names, record)
        except KeyboardInterrupt:
            ending = Ending(Status.INTERRUPTED, "interrupted; the stages before that are kept")
            transitions.deadline = started  # jump times of what is known, no more
    at_alpha = None
    if init is not None:
        # What the callback ended, ends from `init` too.
        most = len(stages) if ending.status is Status.CALLBACK else max_stages
        at_alpha, interrupted = _at_finite_scale(
            origin, init, stages, transitions, replace(options, max_stages=most), names
        )
        if interrupted:
            ending = Ending(
                Status.INTERRUPTED,
                f"interrupted at the jump times, of which {len(at_alpha.coordinates)} are known; "
                f"the limit α → 0 before: {ending.status}, {ending.message}",
            )
    stats = objective.stats(time.monotonic() - started)
    configuration = {
        "model": repr(model),
        "loss": loss_name(loss),
        "weighted": sample_weight is not None,
        "max_stages": max_stages,
        "field_rtol": field_rtol,
        "method": method_name(method),
    }
    del transitions  # with the factorizations and the orbits that only they needed
    prediction = assemble(
        origin, stages, names, ending, stats, options, at_alpha, configuration, bound
    )
    if take() and ending.status is not Status.INTERRUPTED:
        message = f"interrupted at its end: {ending.status}, {ending.message}"
        prediction = replace(prediction, status=Status.INTERRUPTED, message=message)
    if init is not None and prediction.status is not Status.INTERRUPTED:
        _warn_of_overlap(prediction, init.log10_alpha)
    return prediction


def _check_rounding(objective: Objective) -> None:
    rounding = getattr(objective, "rounding", 0.0)
    if rounding > _STATIONARY:
        raise InvalidInputError(
            f"the field of the model has a relative error of {rounding:.1e}, as in float32, and "
            f"limit points are found to {_STATIONARY:g}: give the model precision='float64'; "
            "simulate and train take float32"
        )


def _at_finite_scale(
    origin: StationaryPoint,
    init: Initialization,
    leading: list[Stage],
    transitions: TransitionCache,
    options: Options,
    names: tuple[str, ...],
) -> tuple[FiniteScaleStages, bool]:
    """Run the recursion again on the clock of `init`; it shares the transitions found.

    Also returns whether it was interrupted: what was found before is kept.
    """
    if not leading:
        return FiniteScaleStages.from_stages([], [], init), False
    units = options.negligible.units
    largest = max(float((units * np.abs(s.transition.end.theta)).max()) for s in leading)
    # Where no transition ends before the next begins, products come and go without end.
    most = _MOST_FINITE * len(leading)
    options = replace(options, max_stages=min(most, options.max_stages or most))
    stages: list[Stage] = []
    clock = FiniteScaleClock(init, ONSET * largest / units)
    interrupted = False
    try:
        with delivering():
            recurse(origin, clock, transitions, options, names, stages.append)
    except KeyboardInterrupt:
        interrupted = True
    return FiniteScaleStages.from_stages(stages, clock.overlaps, init), interrupted


def _warn_of_overlap(prediction: StagePrediction, log10_alpha: float) -> None:
    overlapping = np.flatnonzero(~prediction.separated) + 1
    if not overlapping.size:
        return
    listed = ", ".join(map(str, overlapping[:10])) + (", …" if overlapping.size > 10 else "")
    warn(
        f"α = 1e{log10_alpha:g} does not separate {overlapping.size} of {prediction.n_stages} "
        f"stages ({listed}): in them, or before them, two transitions overlap, and their order "
        "and jump times are less certain. For smaller α see log10_alpha_separated",
        StagesOverlapWarning,
    )


def _check_options(
    max_stages: int | None, max_seconds: float | None, field_rtol: float, tie_rtol: float
) -> None:
    if max_stages is not None:
        as_positive_int(max_stages, "max_stages")
    if max_seconds is not None and not max_seconds > 0:
        raise InvalidInputError(f"max_seconds={max_seconds!r} must be positive")
    for name, value in (("field_rtol", field_rtol), ("tie_rtol", tie_rtol)):
        if not 0 < value < 1:
            raise InvalidInputError(
                f"{name}={value!r} must lie between 0 and 1: it is a fraction, such as 1e-9"
            )
