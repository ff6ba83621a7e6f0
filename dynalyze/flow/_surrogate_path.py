"""The surrogate flow, followed for as long as its field can be trusted.

It evaluates no gradient: its cost is k × k linear algebra for k active coordinates.
"""

import numpy as np

from dynalyze._compiled import njit
from dynalyze._typing import FloatArray
from dynalyze.flow._path import (
    ERROR_LIMIT,
    FAILED,
    NEWCOMER,
    PAUSED,
    REACHED_END,
    Limits,
    Path,
)
from dynalyze.flow._surrogate_field import (
    Surrogate,
    dense_coefficients,
    linearize,
    rosenbrock_step,
    work_space,
)

# Gauss–Legendre on [0, 1], for the integrals of the interpolation error along the path
_POINTS = np.array(
    [0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.930568155797026]
)
_WEIGHTS = np.array(
    [0.1739274225687269, 0.3260725774312731, 0.3260725774312731, 0.1739274225687269]
)
_MOST_STEPS = 1000
_PAUSE = 400
_OVERSHOOT = 0.1  # in log|θ|, at a newcomer's threshold


@njit(cache=True, error_model="numpy")
def _approach(
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
def _accumulate(
    integrals: FloatArray, h: float, s: FloatArray, bend: FloatArray, nodes: FloatArray
) -> None:
    """Add ∫ ω dt, ∫ ω s dt and ∫ ω (s − x_{m−1}) dt of one step to the rows of `integrals`."""
    for q in range(4):
        f = _POINTS[q]
        at = (1 - f) * s[0] + f * (s[1] + (1 - f) * (bend[0] + f * bend[1]))
        omega = h * _WEIGHTS[q]
        for m in range(1, integrals.shape[1]):
            integrals[0, m] += omega
            integrals[1, m] += omega * at
            omega *= at - nodes[m - 1]
            integrals[2, m] += omega


@njit(cache=True, error_model="numpy")
def _predicted_error(integrals: FloatArray, s: float, limits: Limits) -> tuple[float, int]:
    """Smallest error over m, in units of the targets, and that m."""
    smallest, best = np.inf, 1
    for m in range(1, integrals.shape[1]):
        step = abs(integrals[1, m] - s * integrals[0, m]) / limits.target
        error = limits.sizes[m] * max(step, abs(integrals[2, m]) / limits.predictor_target)
        if error < smallest:
            smallest, best = error, m
    return smallest, best


@njit(cache=True, error_model="numpy")
def follow(  # noqa: PLR0912, PLR0915 — its state is in local variables, as Numba likes it
    flow: Surrogate,
    y0: FloatArray,
    t0: float,
    t_end: float,
    first_step: float,
    tol: float,
    limits: Limits,
) -> Path:
    """Follow the surrogate from (y0, t0) to t_end, or until one of the limits.

    Parameters
    ----------
    flow : Surrogate
        The field.
    y0 : ndarray, shape (p + 1,)
        (z, s) at t0.
    t0, t_end : float
        Flow times.
    first_step : float
        Step to try first.
    tol : float
        Absolute error of y per inner step.
    limits : Limits
        Reasons to stop before.
    """
    p, n = flow.up.shape[0], y0.shape[0]
    t_out, y_out = np.empty(_MOST_STEPS + 1), np.empty((_MOST_STEPS + 1, n))
    rates_out = np.empty((_MOST_STEPS + 1, p))
    quadratic, cubic = np.empty((_MOST_STEPS, n)), np.empty((_MOST_STEPS, n))
    work = work_space(p, flow.active.shape[0])
    integrals = np.zeros((3, limits.sizes.shape[0]))
    trial = np.zeros((3, limits.sizes.shape[0]))
    new, s, bend = np.empty(n), np.empty(2), np.empty(2)
    t_out[0], y_out[0] = t0, y0
    h, count, best, status = first_step, 0, 1, 0
    predicted, reached = 0.0, False
    linearize(flow, y_out[0], work)
    for _ in range(4 * _MOST_STEPS):
        t, y = t_out[count], y_out[count]
        last = t + h * (1 + 1e-7) >= t_end
        if last:
            h = t_end - t
        if not h > 1e-15 * abs(t) + 1e-300:
            status = FAILED
            break
        error = rosenbrock_step(flow, y, h, work, new) / tol
        if error > 1.0:
            h *= max(0.1, 0.9 * error**-0.25)
            continue
        if limits.free:
            fraction, reached = _approach(flow, y, new, limits.thresholds)
            if fraction < 1.0:
                h *= fraction
                continue
        dense_coefficients(work, quadratic[count], cubic[count])
        s[0], s[1] = y[p], new[p]
        bend[0], bend[1] = quadratic[count, p], cubic[count, p]
        trial[:] = integrals
        _accumulate(trial, h, s, bend, limits.nodes)
        if limits.free:
            predicted, best = _predicted_error(trial, float(new[p]), limits)
            if predicted > 1.3:
                h *= max(0.2, min(0.9, predicted ** (-1.0 / (best + 1))))
                continue
        integrals[:] = trial
        rates_out[count] = work.rates[:p]
        count += 1
        t_out[count] = t_end if last else t + h
        y_out[count] = new
        h *= min(6.0, 0.9 * max(error, 1e-8) ** -0.25)
        linearize(flow, y_out[count], work)
        if last:
            status = REACHED_END
        elif limits.free and reached:
            status = NEWCOMER
        elif limits.free and predicted > 0.6:
            status = ERROR_LIMIT
        elif limits.free and count >= _PAUSE:
            status = PAUSED
        elif count == _MOST_STEPS:
            status = FAILED
        if status != 0:
            break
    rates_out[count] = work.rates[:p]
    return Path(
        status if status != 0 else FAILED,
        t_out[: count + 1].copy(),
        y_out[: count + 1].copy(),
        rates_out[: count + 1].copy(),
        quadratic[:count].copy(),
        cubic[:count].copy(),
        integrals[0].copy(),
        integrals[1].copy(),
        best,
        h,
    )
