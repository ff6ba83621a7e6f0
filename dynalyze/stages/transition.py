"""Eq. (11): the transition from one stationary point to the next, along the orbit ψ.

The orbit leaves θ^k along its unstable direction, with the activated product at a small
size, and is followed in log coordinates until Newton's method, started on the orbit,
certifies the stationary point at which it ends. The products off the support do not move it;
how their log coordinates drift meanwhile, ∫ g_i(ψ) ds, is what the times at finite α need.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dynalyze._typing import FloatArray, IntArray
from dynalyze.errors import FlowError
from dynalyze.flow.coordinates import BalancedCoordinates
from dynalyze.flow.stepper import Segment, Stepper
from dynalyze.models.counted import CountedObjective
from dynalyze.models.protocol import Objective
from dynalyze.stages.stationary import StationaryPoint, polish

ONSET = 1e-6  # size of the activated product at the onset, relative to its natural scale
_NEGLIGIBLE = 1e-4  # a shrinking product this small, against its largest value, may have left
_ARRIVED = 0.01  # the orbit has arrived when Newton moves no log|θ| by more than this
_FIRST_TRY = 1e-3  # try Newton when the rate of loss has fallen by this factor from its peak,
_RETRY = 0.04  # and again when it has fallen by this one since the last try
_LATEST = 1e15  # flow time to give up at, in units of 1/|g| of the activated product
_SAMPLES_PER_STEP = 4

StepperFactory = Callable[[Objective, BalancedCoordinates, FloatArray], Stepper]


@dataclass(frozen=True)
class Orbit:
    """The orbit ψ between two plateaus, on a clock that starts at the onset."""

    times: FloatArray  # (m,), flow time since the activated product had size exp(log_size[0])
    log_size: FloatArray  # (m,), log|θ| of the activated product
    z_end: FloatArray  # (p,), z at times[-1] relaxed onto the plateau; off the support, its drift
    z_lowest: FloatArray  # (p,), smallest z along the orbit; off the support, of its drift
    z_highest: FloatArray  # (p,), largest z along the orbit
    duration: float  # flow time from 1% of the activated product's limit to 1% from the plateau


@dataclass(frozen=True)
class Transition:
    """A transition that ended at a certified stationary point."""

    end: StationaryPoint
    left: tuple[int, ...]  # products of the support that went to 0
    orbit: Orbit


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
    tolerance: float,
    stepper: StepperFactory,
    max_steps: int = 20_000,
    max_evaluations: int = 2_000,
) -> Transition | NoLimit:
    """θ^{k+1} of eq. (11): where the flow goes from θ^k when one more product activates.

    Parameters
    ----------
    objective : Objective
        The loss as a function of the products.
    start : StationaryPoint
        θ^k with its Hessian columns.
    coordinate, sign : int
        i_k and sgn g_{i_k}(θ^k).
    tolerance : float
        Largest |g| on the support at the limit.
    stepper : callable
        Makes the integrator from (objective, chart, z0).
    max_steps, max_evaluations : int
        Steps, and evaluations of the field, after which the limit is given up.
    """
    objective = CountedObjective(objective)
    latest = _LATEST / abs(start.field[coordinate])
    theta = onset(objective, start, coordinate, sign)
    chart = BalancedCoordinates(np.sign(theta))
    support = np.flatnonzero(theta)
    segments: list[Segment] = []
    peak = np.abs(theta)
    rate_peak, rate_tried = 0.0, np.inf
    why = "the rate of loss never fell, so Newton's method was not tried"
    try:
        flow = stepper(objective, chart, chart.z_of_theta(theta))
        while len(segments) < max_steps and objective.nfev < max_evaluations and flow.t < latest:
            segments.append(flow.step())
            theta, field = chart.theta(flow.z), flow.field
            peak = np.maximum(peak, np.abs(theta))
            # −dL/dt = 2 Σ |θ_i| g_i²: does not depend on the units of the features, and
            # products that leave drop out of it by themselves
            rate = float(2 * np.abs(theta) @ field**2)
            rate_peak = max(rate_peak, rate)
            if rate > min(_FIRST_TRY * rate_peak, _RETRY * rate_tried):
                continue
            rate_tried = rate
            shrinking = (chart.signs * field < 0) & (np.abs(theta) < _NEGLIGIBLE * peak)
            end = _certify(objective, theta, chart.signs, np.flatnonzero(shrinking), tolerance)
            if isinstance(end, StationaryPoint):
                left = tuple(int(i) for i in np.setdiff1d(support, end.support))
                orbit = _orbit(segments, chart, flow.z, end, coordinate)
                return Transition(end, left, orbit)
            why = end
    except FlowError as error:
        why = str(error)
    reached = segments[-1].t_end if segments else 0.0
    return NoLimit(
        f"the orbit was followed for {len(segments)} steps and {objective.nfev} evaluations, to "
        f"flow time {reached:.3g} after the activation and products up to "
        f"{np.abs(theta).max():.3g}, and found no limit: {why}"
    )


def onset(objective: Objective, start: StationaryPoint, coordinate: int, sign: int) -> FloatArray:
    """Point on the unstable manifold of θ^k at which the activated product is just visible.

    The product has the size `ONSET` times the smaller of two scales: that at which it would
    balance its own field, |g_j|/|H_jj|, and that at which it would move some active product
    by its own size. To first order the active products then stand at θ^k + v ε with
    v = −(H_SS + |g_j| diag(1/|θ_S|))⁻¹ H_Sj, the direction in which both grow like e^{2|g_j| t}.

    Returns
    -------
    ndarray, shape (p,)
    """
    active, growth = start.support, abs(start.field[coordinate])
    column = objective.hessian_columns(start.theta, np.array([coordinate]))[:, 0]
    scales = [growth / abs(column[coordinate])] if column[coordinate] != 0 else [1.0]
    direction = np.zeros(active.size)
    if active.size:
        size = np.abs(start.theta[active])
        root = np.sqrt(size)
        scaled = root[:, None] * start.hessian[active] * root + growth * np.eye(active.size)
        direction = -root * np.linalg.solve(scaled, root * column[active])
        with np.errstate(divide="ignore"):
            scales.append(float((size / np.abs(direction)).min()))
    epsilon = ONSET * min(scales)
    theta = start.theta.copy()
    theta[active] += sign * epsilon * direction
    theta[coordinate] = sign * epsilon
    return theta


def _certify(
    objective: Objective,
    theta: FloatArray,
    signs: FloatArray,
    leaving: IntArray,
    tolerance: float,
) -> StationaryPoint | str:
    """Stationary point that certainly attracts the orbit at θ, or why there is none yet.

    Products in `leaving` are taken to go to 0, but for those that the field at the point so
    found would move away from 0 again: they shrink to a small value, and stay.
    """
    while True:
        staying = np.setdiff1d(np.flatnonzero(signs), leaving)
        end = polish(objective, theta, staying, tolerance=tolerance)
        if isinstance(end, str):
            return end
        outward = signs[leaving] * end.field[leaving] >= -tolerance
        if not outward.any():
            break
        leaving = leaving[~outward]
    moved = np.abs(np.log(end.theta[staying] / theta[staying]))
    if moved.size and moved.max() > _ARRIVED:
        return f"Newton's method moves a product by {np.expm1(moved.max()):.1%}"
    if end.curvature <= 0:
        return f"the nearest stationary point is a saddle (relative curvature {end.curvature:.1e})"
    return end


def _orbit(
    segments: list[Segment],
    chart: BalancedCoordinates,
    z: FloatArray,
    end: StationaryPoint,
    coordinate: int,
) -> Orbit:
    """Sample the orbit, and relax its end onto the plateau in closed form."""
    fractions = np.arange(1, _SAMPLES_PER_STEP + 1) / _SAMPLES_PER_STEP
    times = np.concatenate(
        [[segments[0].t_start]] + [s.t_start + fractions * (s.t_end - s.t_start) for s in segments]
    )
    samples = np.concatenate(
        [segments[0].z(times[:1])]
        + [
            s.z(times[1 + i * _SAMPLES_PER_STEP : 1 + (i + 1) * _SAMPLES_PER_STEP])
            for i, s in enumerate(segments)
        ]
    )
    log_sizes = 2 * chart.signs * samples
    log_limit = 2 * chart.signs * chart.z_of_theta(end.theta)
    return Orbit(
        times=times,
        log_size=log_sizes[:, coordinate],
        z_end=_relaxed(z, chart, end),
        z_lowest=samples.min(axis=0),
        z_highest=samples.max(axis=0),
        duration=_duration(times, log_sizes, log_limit, end.support, coordinate),
    )


def _relaxed(z: FloatArray, chart: BalancedCoordinates, end: StationaryPoint) -> FloatArray:
    """Z once the active products have relaxed, less what the plateau's own field adds.

    Near the plateau g_i − g_i(θ^{k+1}) = H_iA H_AA⁻¹ g_A, and ∫ g_A is the distance that z_A has
    still to go.
    """
    active = end.support
    relaxed = z.copy()
    if not active.size:
        return relaxed
    to_go = chart.z_of_theta(end.theta)[active] - z[active]
    relaxed += end.hessian @ np.linalg.solve(end.hessian[active], to_go)
    relaxed[active] = z[active] + to_go
    return relaxed


def _duration(
    times: FloatArray,
    log_sizes: FloatArray,
    log_limit: FloatArray,
    active: IntArray,
    coordinate: int,
) -> float:
    """Flow time between leaving the old plateau and arriving at the new one, both at 1%."""
    log_size = log_sizes[:, coordinate]
    first = int(np.argmax(log_size > log_size.max() + np.log(_ARRIVED)))
    away = np.abs(log_sizes[:, active] - log_limit[active]).max(axis=1, initial=0.0) > _ARRIVED
    last = int(np.flatnonzero(away)[-1]) if away.any() else first
    return float(times[min(last + 1, times.size - 1)] - times[first])
