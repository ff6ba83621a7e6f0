"""The orbit ψ of a transition, as it was followed: its clock, its path, and the drift along it."""

from dataclasses import dataclass

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.flow.coordinates import BalancedCoordinates
from dynalyze.flow.rest import StationaryPoint, scaled_spectrum
from dynalyze.flow.steppers.protocol import Segment

ONSET = 1e-6  # size of the activated product at the onset, relative to its natural scale
ARRIVED = 0.01  # an orbit has arrived when Newton's method moves no log|θ| by more than this
_RESOLVED = 0.05  # steps that change the log|θ| of the activated product by more are subdivided
_SAMPLES = 4  # samples of a step that is subdivided


@dataclass(frozen=True)
class Orbit:
    """The orbit ψ between two plateaus, on a clock that starts at the onset."""

    times: FloatArray  # (m,), flow time since the activated product had size exp(log_size[0])
    log_size: FloatArray  # (m,), log|θ| of the activated product
    z_end: FloatArray  # (p,), z at times[-1] relaxed onto the plateau; off the support, its drift
    z_lowest: FloatArray  # (p,), smallest z along the orbit; off the support, of its drift
    z_highest: FloatArray  # (p,), largest z along the orbit
    duration: float  # flow time from 1% of the activated product's limit to 1% from the plateau


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
