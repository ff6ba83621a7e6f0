"""Gradient flow from a small initialization, at any scale α: `simulate`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from dynalyze._core.arrays import ArrayLike, Data
from dynalyze._core.interrupts import held
from dynalyze.errors import InvalidInputError
from dynalyze.flow.follow import FlowState, Simulation
from dynalyze.flow.initialization import Initialization, check_initialization
from dynalyze.flow.steppers.protocol import StepperFactory
from dynalyze.flow.trajectory import Trajectory
from dynalyze.models.binding import bind
from dynalyze.models.losses import Loss, loss_name
from dynalyze.models.protocol import Model, Objective

_ROUNDINGS = 100  # of z, that add up along a flow
_SAME_LOSS = 1e-6  # relative difference of losses that another device or order of sums may make


@held()
def simulate(
    model: Model | Objective,
    data: Data = None,
    init: Initialization | None = None,
    *,
    until: float | None = None,
    until_rescaled: float | None = None,
    loss: Loss = "squared",
    sample_weight: ArrayLike | None = None,
    method: str | StepperFactory = "auto",
    tol: float = 1e-6,
    stationary_rtol: float = 1e-8,
    start: Trajectory | None = None,
    max_steps: int = 100_000,
    max_seconds: float | None = None,
    callback: Callable[[FlowState], Any] | None = None,
    progress: bool = False,
) -> Trajectory:
    """Follow the gradient flow (4) of arXiv 2306.07042 in log coordinates.

    The flow of the products is dz/dt = g(θ(z)), exact for every α: the conservation law (5)
    holds by construction, and α = 1e-1000 is as representable as 1e-4.

    Parameters
    ----------
    model : Model or Objective
        What is trained; an `Objective`, which has its data, goes with ``data=None``.
    data : pair of arrays (X, y), optional
        Inputs and targets.
    init : Initialization
        Initial weights; not needed with `start`.
    until : float, optional
        Flow time at which to end. Without `until` and `until_rescaled` the flow is followed
        until nothing outside the support grows any more.
    until_rescaled : float, optional
        The same in rescaled time, t / log(1/α) with the natural logarithm.
    loss, sample_weight
        As in `Model.bind`; flow time depends on the loss.
    method : {"auto", "surrogate", "CVODE", "LSODA", "BDF", "Radau"} or StepperFactory
        Integrator. ``"surrogate"`` is the library's own, made for this flow; "auto" is it. One of
        your own is given as a factory: see `dynalyze.flow.steppers.protocol`.
    tol : float, optional
        ``"surrogate"`` keeps |g_i| |Δt|, the error of z_i = log|w_i| where |θ_i| crosses a level,
        to about `tol` (docs/integrator.md has the measured distribution); one step of the other
        methods may make an error of `tol` in z.
    stationary_rtol : float, optional
        Without an end time: largest |g|, in units of the largest seen, that counts as zero.
    start : Trajectory, optional
        Continue this trajectory; the result holds both parts. The model must be the same.
    max_steps : int, optional
        Steps that the integrator may make.
    max_seconds : float, optional
        Wall-clock time that this call may take.
    callback : callable, optional
        Called with a `FlowState` after each step, or segment of one; stops the run by returning
        something true.
    progress : bool, optional
        Show a progress bar over rescaled time.

    Returns
    -------
    Trajectory
        Its `status` and `message` say how the run ended. Running out of a budget, Ctrl-C, a
        field that is not a number and a flow without limit all leave the steps so far.

    Raises
    ------
    InvalidInputError
        If an argument cannot be used, or `start` came from another loss.
    MissingDependencyError
        If the method needs a package that is not installed.
    """
    objective = bind(model, data, loss=loss, sample_weight=sample_weight)
    init = _initialization(objective, init, start)
    if start is not None:
        _check_same_problem(objective, start)
    t_bound = _end_time(init, until, until_rescaled, start)
    _check_tolerance(tol, init)
    _check_budgets(stationary_rtol, max_steps, max_seconds)
    run = Simulation(
        objective,
        init,
        start,
        t_bound=t_bound,
        method=method,
        tol=tol,
        stationary_rtol=stationary_rtol,
        max_steps=max_steps,
        max_seconds=max_seconds,
        callback=callback,
    )
    with tqdm(
        total=None if t_bound is None else t_bound / init.log_inverse_alpha,
        disable=not progress,
        unit="log(1/α)",
    ) as bar:
        status, message = run.follow(bar)
    return run.trajectory(status, message, loss=loss_name(loss))


def _initialization(
    objective: Objective, init: Initialization | None, start: Trajectory | None
) -> Initialization:
    """Initialization that was given or comes with `start`, checked against the model."""
    if start is not None:
        if init is not None and init is not start.init:
            raise InvalidInputError(
                "init and start were both given: a trajectory is continued with the "
                "initialization it began from; leave init out"
            )
        init = start.init
    if init is None:
        raise InvalidInputError(
            "init=None: give the initial weights, such as "
            f"Initialization.gaussian({objective.n_products}, log10_alpha=-8, rng=0), or start="
        )
    check_initialization(init, objective.n_products)
    if init.n_products != objective.n_products:
        raise InvalidInputError(
            f"the initialization has {init.n_products} products and the model has "
            f"{objective.n_products}: give u0 and v0 one entry for each product of the model"
        )
    return init


def _check_same_problem(objective: Objective, start: Trajectory) -> None:
    """Refuse to continue a trajectory with another model, data or loss than it came from."""
    ends = start.theta[[0, -1]]
    if start.saved_losses is not None:
        before = start.saved_losses[[0, -1]]
    elif start.objective is not None and start.objective is not objective:
        before = np.array([start.objective.value(theta) for theta in ends])
    else:
        return
    now = np.array([objective.value(theta) for theta in ends])
    if not np.allclose(
        now, before, rtol=_SAME_LOSS, atol=_SAME_LOSS * abs(before[0]), equal_nan=True
    ):
        raise InvalidInputError(
            f"start ends at the loss {before[-1]:.8g}, and there the loss of this model on these "
            f"data is {now[-1]:.8g}: continue with the model, data, loss and sample_weight that it "
            "began with"
        )


def _end_time(
    init: Initialization,
    until: float | None,
    until_rescaled: float | None,
    start: Trajectory | None,
) -> float | None:
    """Flow time at which to end, None for never."""
    if until is not None and until_rescaled is not None:
        raise InvalidInputError(
            f"until={until} and until_rescaled={until_rescaled} were both given: give the end "
            "either in flow time or in rescaled time t / log(1/α)"
        )
    if until is None and until_rescaled is None:
        return None
    name, value = ("until", until) if until is not None else ("until_rescaled", until_rescaled)
    unit = 1.0 if until is not None else init.log_inverse_alpha
    begin = 0.0 if start is None else float(start.t[-1])
    if value is None or not begin < value * unit < np.inf:
        raise InvalidInputError(
            f"{name}={value} must be finite and after the start, which is at {begin / unit:.6g}"
        )
    return value * unit


def _check_tolerance(tol: float, init: Initialization) -> None:
    """Refuse a tolerance that rounding of z, which grows to log(1/α), cannot keep."""
    largest = float(np.max(np.abs(init.log_abs_c))) / 2
    least = max(1e-13, _ROUNDINGS * np.finfo(float).eps * largest)
    if not least <= tol < 1:
        raise InvalidInputError(
            f"tol={tol} must be between {least:.2g} and 1: it is an absolute error of z = log|w|, "
            f"which grows to {largest:.3g} from this initialization, and float64 resolves no less"
        )


def _check_budgets(stationary_rtol: float, max_steps: int, max_seconds: float | None) -> None:
    if not 0 < stationary_rtol < 1:
        raise InvalidInputError(
            f"stationary_rtol={stationary_rtol} must be between 0 and 1: it is a fraction of the "
            "largest |g|"
        )
    if max_steps < 1:
        raise InvalidInputError(f"max_steps={max_steps} must be at least 1")
    if max_seconds is not None and not max_seconds > 0:
        raise InvalidInputError(f"max_seconds={max_seconds} must be positive")
