"""Eq. (11): the transition from one stationary point to the next, along the orbit ψ.

The orbit leaves θ^k along its unstable direction, with the activated product at a small
size, and is followed in log coordinates until Newton's method, started on the orbit,
certifies the stationary point at which it ends. The products off the support do not move it;
how their log coordinates drift meanwhile, ∫ g_i(ψ) ds, is what the times at finite α need.
"""

from dataclasses import dataclass

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.errors import FlowError, UndecidedTransitionError
from dynalyze.flow.coordinates import BalancedCoordinates
from dynalyze.flow.rest import FIRST_STEP, Rejection, StationaryPoint, polish, rest, scaled_spectrum
from dynalyze.flow.steppers.protocol import Segment, StepperFactory
from dynalyze.models.counted import counted
from dynalyze.models.protocol import Objective
from dynalyze.stages.orbit import (
    ARRIVED,
    LATEST,
    MOST_EVALUATIONS,
    ONSET,
    PRECISE,
    ROUGH,
    Orbit,
    onset,
    orbit_steps,
    sampled_orbit,
)

_GONE = 1e-4  # a shrinking product this small, against its largest value, may have left
_SMALL = 0.1  # one this small may have left where Newton's step takes it to this part of itself
_FIRST_TRY = 1e-4  # try Newton when the rate of loss has fallen by this factor from its peak,
_RETRY = 0.04  # and again when it has fallen by this one since the last try
_SHORT = 2 * ARRIVED  # a step of Newton's method beyond which it moves too far in all, ...
_EARLY = 3  # ... at so many tries: where it is too far away for long, longer ones show why
_FARTHEST = 1e15  # products that are on their way to infinity, in units of their natural size


@dataclass(frozen=True)
class Transition:
    """A transition that ended at a certified stationary point."""

    end: StationaryPoint
    departed: tuple[int, ...]  # products of the support that went to 0
    at_rest: tuple[int, ...]  # those of them whose field went to 0 as well
    orbit: Orbit | None = None  # None where the limit was found without following the flow


@dataclass(frozen=True)
class NoLimit:
    """A transition without a certified limit, and what was tried."""

    message: str


def limit_point(
    objective: Objective,
    start: StationaryPoint,
    coordinate: int,
    sign: int,
    *,
    negligible: FloatArray,
    tolerance: float,
    method: str | StepperFactory = "auto",
    deadline: float = np.inf,
    precise: bool = True,
) -> Transition | NoLimit:
    """θ^{k+1} of eq. (11): where the flow goes from θ^k when one more product activates.

    Parameters
    ----------
    objective : Objective
        The loss as a function of the products.
    start : StationaryPoint
        θ^k.
    coordinate, sign : int
        i_k and sgn g_{i_k}(θ^k).
    negligible : ndarray, shape (p,)
        |g_i| that counts as 0 off the support.
    tolerance : float
        Largest |g| on the support at the limit.
    method : str or StepperFactory
        Integrator, as for `simulate`.
    deadline : float
        Of `time.monotonic`.
    precise : bool
        Whether jump times will be taken from the orbit: it is followed to 1e-4 in log
        coordinates then, and else to 1e-3.

    Raises
    ------
    UndecidedTransitionError
        After the deadline, or after as many evaluations as one transition may take without
        coming to rest or showing why it never will.
    """
    objective = counted(objective)
    begun, latest = objective.nfev, LATEST / abs(start.field[coordinate])
    theta = onset(start, coordinate, sign)
    if not 0 < abs(theta[coordinate]) < np.inf:
        return NoLimit(
            f"with |g| = {abs(start.field[coordinate]):.3g} its natural size, |g| over "
            "the curvature of the loss, is beyond the range of floats: rescale the data"
        )
    chart = BalancedCoordinates(np.sign(theta))
    support = np.flatnonzero(theta)
    path: list[tuple[Segment, FloatArray]] = []
    peak = np.abs(theta)
    farthest = _FARTHEST * max(np.abs(start.theta).max(), abs(theta[coordinate]) / ONSET)
    rate_peak, rate_tried, tries = 0.0, np.inf, 0
    why = Rejection("the rate of loss never fell far enough for Newton's method to be tried")
    steps = orbit_steps(
        objective,
        chart,
        theta,
        method=method,
        most_evaluations=MOST_EVALUATIONS,
        latest=latest,
        deadline=deadline,
        tol=PRECISE if precise else ROUGH,
    )
    try:
        for segment, z, field in steps:
            path.append((segment, z))
            theta = chart.theta(z)
            peak = np.maximum(peak, np.abs(theta))
            if peak.max() > farthest:
                why = Rejection("it runs away, where the loss falls for ever", conclusive=True)
                break
            # −dL/dt = 2 Σ |θ_i| g_i²: does not depend on the units of the features, and
            # products that leave drop out of it by themselves
            rate = float(2 * np.abs(theta) @ field**2)
            rate_peak = max(rate_peak, rate)
            if rate > min(_FIRST_TRY * rate_peak, _RETRY * rate_tried):
                continue
            rate_tried, tries = rate, tries + 1
            leaving = _leaving(objective, theta, field, chart.signs, peak)
            end = _certify(
                objective,
                theta,
                chart.signs,
                leaving,
                negligible,
                tolerance,
                start.value,
                longest_step=_SHORT if tries <= _EARLY else FIRST_STEP,
            )
            if isinstance(end, StationaryPoint):
                departed = tuple(int(i) for i in np.setdiff1d(support, end.support))
                at_rest = fields_at_rest(end, departed, negligible)
                orbit = sampled_orbit(path, chart, end, coordinate)
                return Transition(end, departed, at_rest, orbit)
            why = end
    except FlowError as error:
        why = why if why.conclusive else Rejection(str(error), conclusive=True)
    t_end = path[-1][0].t_end if path else 0.0
    followed = (
        f"the orbit was followed for {objective.nfev - begun} evaluations, to flow time "
        f"{t_end:.3g} after the activation and products up to {np.abs(theta).max():.3g}"
    )
    if not why.conclusive and t_end < latest:
        raise UndecidedTransitionError(f"{followed}, and still moves: {why.reason}")
    return NoLimit(f"{followed}, and found no limit: {why.reason}")


def fields_at_rest(
    end: StationaryPoint, departed: tuple[int, ...], negligible: FloatArray
) -> tuple[int, ...]:
    """Products that left while their field went to 0 as well."""
    return tuple(i for i in departed if abs(end.field[i]) <= negligible[i])


def _leaving(
    objective: Objective,
    theta: FloatArray,
    field: FloatArray,
    signs: FloatArray,
    peak: FloatArray,
) -> IntArray:
    """Products that may be on their way to 0.

    They decay exponentially if their field stays negative. If it goes to 0 with them they decay
    like 1/t, and show by Newton's step, which goes to 0 as well.
    """
    support, size = np.flatnonzero(signs), np.abs(theta)
    inward = signs * field < 0
    leaving = inward & (size < _GONE * peak)
    small = inward & ~leaving & (size < _SMALL * peak)
    if small.any():
        goal = theta.copy()
        columns = objective.hessian_columns(theta, support)
        goal[support] += scaled_spectrum(columns, support).solve(field[support])
        leaving |= small & (signs * goal < _SMALL * size)
    return np.flatnonzero(leaving)


def _certify(
    objective: Objective,
    theta: FloatArray,
    signs: FloatArray,
    leaving: IntArray,
    negligible: FloatArray,
    tolerance: float,
    value_before: float,
    *,
    longest_step: float,
) -> StationaryPoint | Rejection:
    """Stationary point that certainly attracts the orbit at θ, or why there is none yet.

    Products in `leaving` are taken to go to 0, but for those that the field at the point so
    found would move away from 0 again: they shrink to a small value, and stay.
    """
    while True:
        staying = np.setdiff1d(np.flatnonzero(signs), leaving)
        end = polish(objective, theta, staying, tolerance=tolerance, longest_step=longest_step)
        if isinstance(end, Rejection):
            return end
        outward = signs[leaving] * end.field[leaving] > negligible[leaving]
        if not outward.any():
            break
        leaving = leaving[~outward]
    moved = np.abs(np.log(end.theta[staying] / theta[staying]))
    if moved.size and moved.max() > ARRIVED:
        return Rejection(f"Newton's method moves a product by {np.expm1(moved.max()):.1%}")
    # Where a field goes to 0 with its product, the Hessian decides whether the product stays 0.
    at_rest = leaving[np.abs(end.field[leaving]) <= negligible[leaving]]
    if at_rest.size:
        whole = np.concatenate([staying, at_rest])
        columns = objective.hessian_columns(end.theta, whole)
        if scaled_spectrum(columns, whole).eigenvalues[0] <= 0:
            return Rejection("a product and its field go to 0 together, at no minimum")
    return rest(end, value_before - end.value)
