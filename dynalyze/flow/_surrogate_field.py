"""The surrogate g(θ) ≈ P(s) − Hθ of the field, its derivative, and a step of it by RODAS."""

from typing import NamedTuple

import numpy as np

from dynalyze._compiled import njit
from dynalyze._typing import FloatArray, IntArray
from dynalyze.flow._rodas import CUBIC, GAMMA, QUADRATIC, A, C, factorize, solve

_ROUNDING = 1e-14


class Surrogate(NamedTuple):
    """The flow of y = (z, s) under dz/dt = P(s) − H θ(z), with s the arc length of θ.

    θ is in natural lengths.
    """

    up: FloatArray  # (p,), θ = e^{up + 2z} − e^{down − 2z}
    down: FloatArray  # (p,)
    active: IntArray  # (k,), coordinates whose Hessian columns are in use
    columns: FloatArray  # (p, k), H
    nodes: FloatArray  # (n,), P as `Polynomial`
    newton: FloatArray  # (m ≤ n, p), its coefficients
    s_last: float  # P is constant beyond


class Work(NamedTuple):
    """Arrays that one run of the integrator reuses."""

    rates: FloatArray  # (p + 1,), dy/dt
    theta: FloatArray  # (k,)
    slope: FloatArray  # (k,), dθ/dz
    remainder_slope: FloatArray  # (p,), dP/ds
    stages: FloatArray  # (6, p + 1)
    stage_rates: FloatArray  # (p + 1,)
    stage_theta: FloatArray  # (k,)
    stage_slope: FloatArray  # (k,)
    matrix: FloatArray  # (k + 1, k + 1)
    pivots: IntArray  # (k + 1,)
    x: FloatArray  # (k + 1,)


@njit(cache=True)
def work_space(p: int, k: int) -> Work:
    """Arrays for p coordinates, k of them active."""
    return Work(
        np.empty(p + 1),
        np.empty(k),
        np.empty(k),
        np.empty(p),
        np.empty((6, p + 1)),
        np.empty(p + 1),
        np.empty(k),
        np.empty(k),
        np.empty((k + 1, k + 1)),
        np.empty(k + 1, np.int64),
        np.empty(k + 1),
    )


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def surrogate_rates(
    flow: Surrogate, y: FloatArray, rates: FloatArray, theta: FloatArray, slope: FloatArray
) -> None:
    """(dz/dt, ds/dt); fills θ and dθ/dz of the active coordinates as well."""
    p, k, terms = flow.up.shape[0], flow.active.shape[0], flow.newton.shape[0]
    for a in range(k):
        i = flow.active[a]
        grown = np.exp(flow.up[i] + 2 * y[i])
        shrunk = np.exp(flow.down[i] - 2 * y[i])
        theta[a] = grown - shrunk
        slope[a] = 2 * (grown + shrunk)
    s = min(y[p], flow.s_last)
    for i in range(p):
        rates[i] = flow.newton[terms - 1, i]
    for m in range(terms - 2, -1, -1):
        distance = s - flow.nodes[m]
        for i in range(p):
            rates[i] = rates[i] * distance + flow.newton[m, i]
    noise = 0.0
    for a in range(k):
        noise = max(noise, slope[a] * abs(rates[flow.active[a]]))
    for i in range(p):
        value = 0.0
        for a in range(k):
            value += flow.columns[i, a] * theta[a]
        rates[i] -= value
    speed = 0.0
    for a in range(k):
        speed += (slope[a] * rates[flow.active[a]]) ** 2
    # On a plateau what is left of the rates is rounding, which must not add up to a length.
    rates[p] = max(np.sqrt(speed) - _ROUNDING * noise, 0.0)


@njit(cache=True, error_model="numpy")
def linearize(flow: Surrogate, y: FloatArray, work: Work) -> None:
    """Rates at y, and all that the Jacobian there is made of."""
    surrogate_rates(flow, y, work.rates, work.theta, work.slope)
    p, terms = flow.up.shape[0], flow.newton.shape[0]
    s = y[p]
    for i in range(p):
        derivative = 0.0
        if s < flow.s_last:
            value = flow.newton[terms - 1, i]
            for m in range(terms - 2, -1, -1):
                derivative = derivative * (s - flow.nodes[m]) + value
                value = value * (s - flow.nodes[m]) + flow.newton[m, i]
        work.remainder_slope[i] = derivative


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _iteration_matrix(flow: Surrogate, work: Work, shift: float) -> None:
    """I/(hγ) − J of the active coordinates and s; the passive ones follow explicitly."""
    k = flow.active.shape[0]
    matrix, slope = work.matrix, work.slope
    speed = work.rates[work.rates.shape[0] - 1]
    for a in range(k):
        i = flow.active[a]
        for b in range(k):
            matrix[a, b] = flow.columns[i, b] * slope[b]
        matrix[a, a] += shift
        matrix[a, k] = -work.remainder_slope[i]
    for b in range(k):
        matrix[k, b] = 0.0
    matrix[k, k] = shift
    if speed > 1e-200:
        for a in range(k):
            i = flow.active[a]
            along = slope[a] * work.rates[i] / speed
            matrix[k, a] -= along * 4 * work.theta[a] * work.rates[i]
            weight = along * slope[a]
            for b in range(k):
                matrix[k, b] += weight * flow.columns[i, b] * slope[b]
            matrix[k, k] -= weight * work.remainder_slope[i]


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def rosenbrock_step(  # noqa: PLR0912 — one loop nest, which calls would only scatter
    flow: Surrogate, y: FloatArray, h: float, work: Work, new: FloatArray
) -> float:
    """Step of length h from y into `new`, after `linearize` there; returns the error of z."""
    p, k = flow.up.shape[0], flow.active.shape[0]
    stages, rates, x = work.stages, work.stage_rates, work.x
    shift = 1.0 / (h * GAMMA)
    _iteration_matrix(flow, work, shift)
    factorize(work.matrix, work.pivots)
    for stage in range(6):
        if stage == 0:
            new[:] = y
            rates[:] = work.rates
        else:
            if stage < 5:
                new[:] = y
                for j in range(stage):
                    for i in range(p + 1):
                        new[i] += A[stage, j] * stages[j, i]
            else:
                new += stages[4]
            surrogate_rates(flow, new, rates, work.stage_theta, work.stage_slope)
        for j in range(stage):
            factor = C[stage, j] / h
            for i in range(p + 1):
                rates[i] += factor * stages[j, i]
        for a in range(k):
            x[a] = rates[flow.active[a]]
        x[k] = rates[p]
        solve(work.matrix, work.pivots, x)
        for a in range(k):
            work.stage_theta[a] = work.slope[a] * x[a]
        for i in range(p):
            value = rates[i] + work.remainder_slope[i] * x[k]
            for a in range(k):
                value -= flow.columns[i, a] * work.stage_theta[a]
            stages[stage, i] = value / shift
        for a in range(k):
            stages[stage, flow.active[a]] = x[a]
        stages[stage, p] = x[k]
    new += stages[5]
    error = 0.0
    for i in range(p + 1):
        size = abs(stages[5, i])
        if i == p and k > 0:
            # as an error of log|θ|, which those of z are as well
            size /= np.max(work.slope)
        error = max(error, size if size < 1e100 else 1e100)
    return error


@njit(cache=True, error_model="numpy")
def dense_coefficients(work: Work, quadratic: FloatArray, cubic: FloatArray) -> None:
    """Coefficients of the last step's dense output, each (p + 1,)."""
    for i in range(quadratic.shape[0]):
        second, third = 0.0, 0.0
        for j in range(5):
            second += QUADRATIC[j] * work.stages[j, i]
            third += CUBIC[j] * work.stages[j, i]
        quadratic[i], cubic[i] = second, third
