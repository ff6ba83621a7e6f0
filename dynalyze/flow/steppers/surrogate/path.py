"""The surrogate flow, followed for as long as its field can be trusted, and the path that it makes.

It evaluates no gradient: its cost is k × k linear algebra for k active coordinates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze._core.compiled import njit
from dynalyze.flow.steppers.surrogate.rosenbrock import (
    Surrogate,
    dense_coefficients,
    rosenbrock_step,
    surrogate_rates,
    work_space,
)

FAILED = -1
REACHED_END = 1
THRESHOLD = 2  # a passive coordinate has grown to where it needs a Hessian column
ERROR_LIMIT = 3  # the predicted error has reached its target
TURN = 4  # the coordinates that moved have come to rest, and others move instead
PAUSED = 5  # many inner steps were made

# Gauss–Legendre on [0, 1], for the integrals of the interpolation error along the path
GAUSS_POINTS = np.array(
    [0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.930568155797026]
)
_WEIGHTS = np.array(
    [0.1739274225687269, 0.3260725774312731, 0.3260725774312731, 0.1739274225687269]
)
# Bernstein's polynomials of degree 3 at these points, (4, 4)
_CUBICS = GAUSS_POINTS[:, None] ** np.arange(4) * (1 - GAUSS_POINTS[:, None]) ** np.arange(
    3, -1, -1
)
_CUBICS *= np.array([1.0, 3.0, 3.0, 1.0])
MOST_STEPS = 2000  # inner steps of a path
PAUSE = 500  # inner steps after which a free path ends
_TURNED = 1.2  # factor by which the speed has grown again at a turn
_SLOWED = 0.5  # factor by which it has fallen before
_KNOWN = 1e-2  # error at lowest order, in units of its target, below which a turn does not matter
_OVERSHOOT = 0.1  # in log|θ|, at a threshold


class StoppingCriteria(NamedTuple):
    """When to stop before the end time.

    With m nodes x the remainder is known up to an error of about E_m ∏ (s − x_i). Its integral
    along the path is the error of the predictor; with the path's end as the newest of the m
    nodes, that of the step once the field is known there.
    """

    free: bool  # False: nothing but the end time stops
    sizes: FloatArray  # (M + 1,), E_m for m = 1 … M
    target: float = 1.0  # largest error of the step, in z
    predictor_target: float = 1.0  # largest error of the predictor, in z
    # log|θ| from which a coordinate needs a column, or ∞; (p,)
    thresholds: FloatArray = np.zeros(0)
    resolution: float = 0.0  # arc length below which two places are the same


@dataclass(frozen=True, eq=False)
class Path:
    """A solution of the surrogate flow, in times and z that count from the start of the step."""

    status: int  # one of the constants of this module
    t: FloatArray  # (n + 1,), ends of the inner steps
    y: FloatArray  # (n + 1, p + 1), z and s
    rates: FloatArray  # (n + 1, p), dz/dt
    # y in between: coefficients of Bernstein's polynomials, (n, 4, p + 1), or n functions of t
    dense: FloatArray | Sequence[Callable[[FloatArray], FloatArray]]
    integrals: (
        FloatArray  # (3, M + 1), ∫ ω dt, ∫ ω s dt, ∫ ω (s − x_{m−1}) dt, ω = ∏_{i<m−1}(s − x_i)
    )
    order: int  # m of the smallest predicted error
    inner_step: float  # to go on with


def follow(
    flow: Surrogate,
    s: float,
    duration: float,
    first_step: float,
    tol: float,
    stopping: StoppingCriteria,
) -> Path:
    """Follow the surrogate for a time, or until one of the stopping criteria.

    Parameters
    ----------
    flow : Surrogate
        The field.
    s : float
        Arc length at the start, where z counts from.
    duration : float
        Flow time to follow it for.
    first_step : float
        Inner step to try first.
    tol : float
        Absolute error of z per inner step.
    stopping : StoppingCriteria
        Reasons to stop before.
    """
    result = _follow(flow, s, duration, min(first_step, duration), tol, stopping)
    status, n, t, y, rates, dense, integrals, order, inner_step = result
    y, rates = y[: n + 1], rates[: n + 1]
    return Path(status, t[: n + 1], y, rates, dense[:n], integrals, order, inner_step)


@njit(cache=True, error_model="numpy")
def approach(
    flow: Surrogate, y: FloatArray, new: FloatArray, thresholds: FloatArray
) -> tuple[float, bool]:
    """Fraction of a step up to the first threshold that it oversteps; whether one is reached."""
    fraction, reached = 1.0, False
    for i in range(thresholds.shape[0]):
        if thresholds[i] < np.inf:
            after = max(flow.up[i] + 2 * new[i], flow.down[i] - 2 * new[i]) - thresholds[i]
            reached |= after > -_OVERSHOOT / 2
            if after > _OVERSHOOT:
                before = max(flow.up[i] + 2 * y[i], flow.down[i] - 2 * y[i]) - thresholds[i]
                target = max(before, 0.0)
                if after > target + _OVERSHOOT:
                    # passive coordinates are nearly linear in t
                    part = (target + _OVERSHOOT / 5 - before) / (after - before)
                    fraction = min(fraction, part)
    return fraction, reached


@njit(cache=True, error_model="numpy")
def accumulate(
    integrals: FloatArray,
    sums: FloatArray,
    h: float,
    arc: FloatArray,
    nodes: FloatArray,
    resolution: float,
) -> None:
    """Fill `sums` with the integrals after one more step, with s = `arc` at its Gauss points."""
    for j in range(3):
        for m in range(integrals.shape[1]):
            sums[j, m] = integrals[j, m]
    for q in range(4):
        at, omega = arc[q], h * _WEIGHTS[q]
        for m in range(1, integrals.shape[1]):
            sums[0, m] += omega
            sums[1, m] += omega * at
            distance = at - nodes[m - 1]
            omega *= distance if abs(distance) > resolution else 0.0
            sums[2, m] += omega


@njit(cache=True, error_model="numpy")
def predicted_error(
    integrals: FloatArray, s: float, stopping: StoppingCriteria
) -> tuple[float, int]:
    """Smallest error over m, in units of the targets, and that m."""
    smallest, order = np.inf, 1
    for m in range(1, integrals.shape[1]):
        step = abs(integrals[1, m] - s * integrals[0, m]) / stopping.target
        error = 0.0  # even where the integrals overflow
        if stopping.sizes[m] > 0:
            error = stopping.sizes[m] * max(step, abs(integrals[2, m]) / stopping.predictor_target)
        if error < smallest:
            smallest, order = error, m
    return smallest, order


@njit(cache=True, error_model="numpy")
def lowest_order_error(integrals: FloatArray, stopping: StoppingCriteria) -> float:
    """Error of the predictor with the fewest nodes, in units of its target."""
    m = 1 if stopping.sizes[1] < np.inf or stopping.sizes.shape[0] == 2 else 2
    return stopping.sizes[m] * abs(integrals[2, m]) / stopping.predictor_target


@njit(cache=True, error_model="numpy")
def _follow(  # noqa: PLR0912, PLR0915 — its state is in local variables, as Numba likes it
    flow: Surrogate,
    s0: float,
    t_end: float,
    first_step: float,
    tol: float,
    stopping: StoppingCriteria,
) -> tuple[
    int,
    int,
    FloatArray,
    FloatArray,
    FloatArray,
    FloatArray,
    FloatArray,
    int,
    float,
]:
    """See `follow`; returns the arrays, of which n + 1 or n rows are filled."""
    p = flow.up.shape[0]
    t, y = np.zeros(MOST_STEPS + 1), np.empty((MOST_STEPS + 1, p + 1))
    rates = np.empty((MOST_STEPS + 1, p))
    dense = np.empty((MOST_STEPS, 4, p + 1))
    work = work_space(p, flow.active.shape[0])
    terms = stopping.sizes.shape[0]
    integrals, sums = np.zeros((3, terms)), np.zeros((3, terms))
    new, arc = np.empty(p + 1), np.empty(4)
    for i in range(p):
        y[0, i] = 0.0
    y[0, p] = s0
    h, n, order, status = first_step, 0, 1, 0
    predicted, reached = 0.0, False
    surrogate_rates(flow, y[0], work.start)
    first_speed = slowest = work.start.rates[p]
    resting = False
    for _ in range(4 * MOST_STEPS):
        last = t[n] + h * (1 + 1e-7) >= t_end
        if last:
            h = t_end - t[n]
        if not h > 1e-15 * t[n] + 1e-300:
            status = FAILED
            break
        error = rosenbrock_step(flow, y[n], h, work, new) / tol
        if error > 1.0:
            h *= max(0.1, 0.9 * error**-0.25)
            continue
        if stopping.free:
            fraction, reached = approach(flow, y[n], new, stopping.thresholds)
            if fraction < 1.0:
                h *= fraction
                continue
        dense_coefficients(work, y[n], new, dense[n])
        for q in range(4):
            arc[q] = 0.0
            for j in range(4):
                arc[q] += _CUBICS[q, j] * dense[n, j, p]
        accumulate(integrals, sums, h, arc, flow.nodes, stopping.resolution)
        if stopping.free and not resting:
            predicted, order = predicted_error(sums, float(new[p]), stopping)
            if predicted > 1.3:
                h *= max(0.2, min(0.9, predicted ** (-1.0 / (order + 1))))
                continue
        integrals, sums = sums, integrals
        n += 1
        t[n] = t_end if last else t[n - 1] + h
        for i in range(p):
            rates[n - 1, i] = work.start.rates[i]
            y[n, i] = new[i]
        y[n, p] = new[p]
        h *= min(6.0 if error > 1e-8 else 100.0, 0.9 * max(error, 1e-10) ** -0.25)
        surrogate_rates(flow, y[n], work.start)
        slowest = min(slowest, work.start.rates[p])
        # At rest for good: nothing moves, and by no more than rounding is that uncertain.
        unknown = predicted * stopping.predictor_target if stopping.free else np.inf
        resting = True
        for i in range(p):
            resting &= work.start.rates[i] == 0.0 and unknown <= 10 * flow.floor[i] * t[n]
        if resting and not last:
            h = t_end - t[n]  # nothing moves any more
        turned = slowest < _SLOWED * first_speed and work.start.rates[p] > _TURNED * slowest
        if last:
            status = REACHED_END
        elif stopping.free and reached:
            status = THRESHOLD
        elif stopping.free and predicted > 0.6 and not resting:
            status = ERROR_LIMIT
        elif stopping.free and turned and lowest_order_error(integrals, stopping) > _KNOWN:
            status = TURN
        elif stopping.free and n >= PAUSE:
            status = PAUSED
        elif n == MOST_STEPS:
            status = FAILED
        if status != 0:
            break
    for i in range(p):
        rates[n, i] = work.start.rates[i]
    if status == 0:
        status = FAILED
    return status, n, t, y, rates, dense, integrals, order, h
