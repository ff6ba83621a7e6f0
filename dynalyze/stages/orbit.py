"""The orbit ψ of a transition, as it was followed: its clock, its path, and the drift along it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.errors import FlowError, UndecidedTransitionError
from dynalyze.flow.coordinates import BalancedCoordinates
from dynalyze.flow.rest import StationaryPoint, scaled_spectrum
from dynalyze.flow.steppers.methods import stepper_factory
from dynalyze.flow.steppers.protocol import Segment, StepperFactory
from dynalyze.models.counted import CountedObjective, counted
from dynalyze.models.protocol import Objective

ONSET = 1e-6  # size of the activated product at the onset, relative to its natural scale
ARRIVED = 0.01  # an orbit has arrived when Newton's method moves no log|θ| by more than this
_RESOLVED = 0.05  # steps that change the log|θ| of the activated product by more are subdivided
_SAMPLES = 4  # samples of a step that is subdivided
_NEARBY = 0.5 * ARRIVED  # change of log|θ| to go at which an orbit's linear end has begun
LATEST = 1e15  # flow time to give up at, in units of 1/|g| of the activated product
PRECISE = 1e-4  # error of log coordinates along an orbit, for jump times
ROUGH = 1e-3  # the same where its limit and its duration alone are asked for
MOST_EVALUATIONS = 2_000  # of the field in one transition


@dataclass(frozen=True)
class Orbit:
    """The orbit ψ between two plateaus, on a clock that starts at the onset."""

    times: FloatArray  # (m,), flow time since the activated product had size exp(log_size[0])
    log_size: FloatArray  # (m,), log|θ| of the activated product
    z_end: FloatArray  # (p,), z at times[-1] relaxed onto the plateau; off the support, its drift
    z_lowest: FloatArray  # (p,), smallest z along the orbit; off the support, of its drift
    z_highest: FloatArray  # (p,), largest z along the orbit
    duration: float  # flow time from 1% of the activated product's largest size to 1% from the end


def onset(start: StationaryPoint, coordinate: int, sign: int) -> FloatArray:
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
    column = start.column(coordinate)
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


def orbit_steps(
    objective: CountedObjective,
    chart: BalancedCoordinates,
    theta: FloatArray,
    *,
    method: str | StepperFactory = "auto",
    most_evaluations: float = np.inf,
    latest: float = np.inf,
    deadline: float = np.inf,
    tol: float = PRECISE,
) -> Iterator[tuple[Segment, FloatArray, FloatArray]]:
    """Follow ψ of eq. (11) from θ; gives each step with z and g at its end, until a budget ends.

    `theta` has the signs of the chart. `method` and `deadline` are as in `limit_point`, `latest` is
    a flow time, and `tol` the error of z that is asked of the integrator.

    Raises
    ------
    UndecidedTransitionError
        After the deadline.
    FlowError
        If no step can be made.
    """
    begun, t = objective.nfev, 0.0
    make, z = stepper_factory(method), chart.z_of_theta(theta)
    flow = make(objective, chart, z, t=t, t_bound=np.inf, tol=tol)
    while objective.nfev < begun + most_evaluations and t < latest:
        if time.monotonic() > deadline:
            raise UndecidedTransitionError("max_seconds passed")
        segment = flow.step()
        t = segment.t_end
        yield segment, flow.z, flow.field


def follow_to(
    objective: Objective,
    start: StationaryPoint,
    coordinate: int,
    sign: int,
    end: StationaryPoint,
    *,
    method: str | StepperFactory = "auto",
    deadline: float = np.inf,
    max_evaluations: int = MOST_EVALUATIONS,
) -> Orbit:
    """The orbit of eq. (11) to a limit point that is known.

    Parameters
    ----------
    objective, start, coordinate, sign, method, deadline
        As in `limit_point`.
    end : StationaryPoint
        θ^{k+1}.
    max_evaluations : int
        Of the field.

    Raises
    ------
    FlowError
        If the flow cannot be followed until its active products have come within 0.5% of `end`.
    """
    objective = counted(objective)
    begun, path = objective.nfev, list[tuple[Segment, FloatArray]]()
    theta = onset(start, coordinate, sign)
    chart = BalancedCoordinates(np.sign(theta))
    steps = orbit_steps(
        objective,
        chart,
        theta,
        method=method,
        most_evaluations=max_evaluations,
        latest=LATEST / abs(start.field[coordinate]),
        deadline=deadline,
    )
    goal = chart.z_of_theta(end.theta)[end.support]
    for segment, z, _ in steps:
        path.append((segment, z))
        # An orbit may pass a saddle nearby before it ends, but not its own end.
        if 2 * np.abs(z[end.support] - goal).max(initial=0.0) <= _NEARBY:
            return sampled_orbit(path, chart, end, coordinate)
    raise FlowError(
        f"the orbit was followed for {objective.nfev - begun} evaluations, to flow time "
        f"{path[-1][0].t_end if path else 0.0:.3g} after "
        "the activation, and has not come to rest: its slowest product takes longer than that"
    )


def sampled_orbit(
    steps: list[tuple[Segment, FloatArray]],
    chart: BalancedCoordinates,
    end: StationaryPoint,
    coordinate: int,
) -> Orbit:
    """Sample a path, and relax its end onto the plateau `end` in closed form.

    Parameters
    ----------
    steps : list of (Segment, ndarray)
        The steps, and z at the end of each, shape (p,).
    chart : BalancedCoordinates
        The products θ(z) on the orbit's support.
    end : StationaryPoint
        Where the orbit goes.
    coordinate : int
        The activated product.
    """
    segments, ends = [segment for segment, _ in steps], np.array([z for _, z in steps])
    start = segments[0].z(segments[0].t_start)
    change = np.diff(ends[:, coordinate], prepend=start[coordinate])
    fractions = np.arange(1, _SAMPLES) / _SAMPLES
    times, samples = [np.array([segments[0].t_start])], [start[None]]
    for segment, z, step in zip(segments, ends, change, strict=True):
        if 2 * abs(step) > _RESOLVED:
            inside = segment.t_start + fractions * (segment.t_end - segment.t_start)
            times.append(inside)
            samples.append(segment.z(inside))
        times.append(np.array([segment.t_end]))
        samples.append(z[None])
    t, path = np.concatenate(times), np.concatenate(samples)
    log_sizes = 2 * chart.signs * path
    log_limit = 2 * chart.signs * chart.z_of_theta(end.theta)
    return Orbit(
        times=t,
        log_size=log_sizes[:, coordinate],
        z_end=_relaxed(ends[-1], chart, end),
        z_lowest=path.min(axis=0),
        z_highest=path.max(axis=0),
        duration=_duration(t, log_sizes, log_limit, end.support, coordinate),
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
    relaxed += end.hessian @ scaled_spectrum(end.hessian, active).solve(to_go)
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
    distance = np.abs(log_sizes[:, active] - log_limit[active]).max(axis=1, initial=0.0)
    leaving = _crossing(times, log_size - (log_size.max() + np.log(ARRIVED)), last=False)
    with np.errstate(divide="ignore"):
        arriving = _crossing(times, np.log(distance) - np.log(ARRIVED), last=True)
    return max(arriving - leaving, 0.0)


def _crossing(times: FloatArray, level: FloatArray, *, last: bool) -> float:
    """Time of the first, or last, change of sign of `level`, (m,); the start if there is none."""
    changes = np.flatnonzero((level[:-1] > 0) != (level[1:] > 0))
    if not changes.size:
        return float(times[0])
    i = int(changes[-1 if last else 0])
    if not np.isfinite(level[i + 1]):
        return float(times[i + 1])
    part = level[i] / (level[i] - level[i + 1])
    return float(times[i] + part * (times[i + 1] - times[i]))
