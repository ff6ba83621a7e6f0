"""The surrogate field and one step along it by the Rosenbrock method RODAS.

The surrogate flow of y = (z, s) is dz/dt = P(s) − Hθ(z), ds/dt = |dθ/dt|, with θ in units in which
arc length is measured. RODAS has six stages, order 4 with an embedded 3, is stiffly accurate and
L-stable, and has dense output of order 3: Hairer & Wanner, Solving Ordinary Differential
Equations II, section IV.7.
"""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.core import config
from numba.np.linalg import _LAPACK
from scipy.linalg.lapack import dgetrf

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze._core.compiled import njit

_GAMMA = 0.25
_A = np.array(
    [
        [0.0, 0.0, 0.0, 0.0],
        [1.544, 0.0, 0.0, 0.0],
        [0.9466785280815826, 0.2557011698983284, 0.0, 0.0],
        [3.314825187068521, 2.896124015972201, 0.9986419139977817, 0.0],
        [1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950],
    ]
)
_C = np.zeros((6, 5))
_C[1, :1] = -5.6688
_C[2, :2] = -2.430093356833875, -0.2063599157091915
_C[3, :3] = -0.1073529058151375, -9.594562251023355, -20.47028614809616
_C[4, :4] = 7.496443313967647, -10.24680431464352, -33.99990352819905, 11.70890893206160
_C[5] = [
    8.083246795921522,
    -7.981132988064893,
    -31.52159432874371,
    16.31930543123136,
    -6.058818238834054,
]
# z(f) = (1 − f) z_0 + f (z_1 + (1 − f) (quadratic + f cubic))
_QUADRATIC = np.array(
    [
        10.12623508344586,
        -7.487995877610167,
        -34.80091861555747,
        -7.992771707568823,
        1.025137723295662,
    ]
)
_CUBIC = np.array(
    [
        -0.6762803392806898,
        6.087714651680015,
        16.43084320892478,
        24.76722511418386,
        -6.594389125716872,
    ]
)
_getrf = _LAPACK().numba_xxgetrf(types.float64)  # Numba's own door to LAPACK's dgetrf


@njit(cache=True)
def _compiled_factorize(matrix: FloatArray, pivots: IntArray) -> None:
    """Replace a matrix, stored column by column, by its factors."""
    n = matrix.shape[0]
    _getrf(100, n, n, matrix.ctypes, n, pivots.ctypes)  # 100: "d"


def _plain_factorize(matrix: FloatArray, pivots: IntArray) -> None:
    factors, first, _ = dgetrf(matrix.T)
    matrix[:], pivots[:] = factors.T, first + 1


_compiles = not getattr(config, "DISABLE_JIT")  # noqa: B009 - an attribute its types do not tell
_factorize = _compiled_factorize if _compiles else _plain_factorize


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _solve(factors: FloatArray, pivots: IntArray, x: FloatArray) -> None:
    """Solve in place with the factors of LAPACK, which are stored column by column."""
    n = x.shape[0]
    for c in range(n):
        q = pivots[c] - 1
        swap = x[c]
        x[c] = x[q]
        x[q] = swap
    for c in range(n):
        value = x[c]
        for i in range(c + 1, n):
            x[i] -= factors[c, i] * value
    for c in range(n - 1, -1, -1):
        x[c] /= factors[c, c]
        value = x[c]
        for i in range(c):
            x[i] -= factors[c, i] * value


class Surrogate(NamedTuple):
    """The flow of y = (z, s) under dz/dt = P(s) − Hθ(z), with s the arc length of θ.

    z counts from the start of the step, and θ is in units in which arc length is measured, W θ.
    """

    up: FloatArray  # (p,), θ = e^{up + 2z} − e^{down − 2z}, in units of arc length
    down: FloatArray  # (p,)
    active: IntArray  # (k,), coordinates that have Hessian columns
    columns: FloatArray  # (p, k), H/W: the Hessian columns for θ in these units
    block: FloatArray  # (k, k), the transpose of its active rows
    nodes: FloatArray  # (n,), nodes of P in Newton's form
    newton: FloatArray  # (m ≤ n, p), its coefficients
    s_last: float  # P is constant beyond
    floor: FloatArray  # (p,), rates below it are rounding, and count as 0


class Point(NamedTuple):
    """The surrogate field at some y, and what its Jacobian is made of."""

    rates: FloatArray  # (p + 1,), dy/dt
    theta: FloatArray  # (k,), θ
    slope: FloatArray  # (k,), dθ/dz
    remainder_slope: FloatArray  # (p,), dP/ds


class Work(NamedTuple):
    """Arrays that one run of the integrator reuses."""

    start: Point  # of a step
    inner: Point  # of its last stage
    stages: FloatArray  # (6, p + 1)
    matrix: FloatArray  # (k + 1, k + 1)
    pivots: IntArray  # (k + 1,)
    x: FloatArray  # (k + 1,)


@njit(cache=True)
def work_space(p: int, k: int) -> Work:
    """Arrays for p coordinates, k of them active."""
    return Work(
        Point(np.empty(p + 1), np.empty(k), np.empty(k), np.empty(p)),
        Point(np.empty(p + 1), np.empty(k), np.empty(k), np.empty(p)),
        np.empty((6, p + 1)),
        np.empty((k + 1, k + 1)),
        np.empty(k + 1, np.int32),
        np.empty(k + 1),
    )


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def newton_value(
    nodes: FloatArray, newton: FloatArray, s: float, value: FloatArray, slope: FloatArray
) -> None:
    """Fill the value at s of a polynomial in Newton's form, and its derivative, each (p,)."""
    last = newton.shape[0] - 1
    for i in range(value.shape[0]):
        value[i], slope[i] = newton[last, i], 0.0
    for m in range(last - 1, -1, -1):
        distance = s - nodes[m]
        for i in range(value.shape[0]):
            slope[i] = slope[i] * distance + value[i]
            value[i] = value[i] * distance + newton[m, i]


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def surrogate_rates(flow: Surrogate, y: FloatArray, at: Point) -> None:
    """Fill in dy/dt at y, and all that the Jacobian there is made of."""
    p, k = flow.up.shape[0], flow.active.shape[0]
    for a in range(k):
        i = flow.active[a]
        grown = np.exp(flow.up[i] + 2 * y[i])
        shrunk = np.exp(flow.down[i] - 2 * y[i])
        at.theta[a] = grown - shrunk
        at.slope[a] = 2 * (grown + shrunk)
    newton_value(flow.nodes, flow.newton, min(y[p], flow.s_last), at.rates[:p], at.remainder_slope)
    if y[p] >= flow.s_last:
        at.remainder_slope[:] = 0.0
    for i in range(p):
        value = 0.0
        for a in range(k):
            value += flow.columns[i, a] * at.theta[a]
        rate = at.rates[i] - value
        at.rates[i] = 0.0 if abs(rate) < flow.floor[i] else rate
    speed = 0.0
    for a in range(k):
        speed += (at.slope[a] * at.rates[flow.active[a]]) ** 2
    at.rates[p] = np.sqrt(speed)


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def iteration_matrix(flow: Surrogate, work: Work, shift: float) -> None:
    """I/(hγ) − J of the active coordinates and s, column by column as LAPACK wants it."""
    k = flow.active.shape[0]
    active, block, matrix, slope = flow.active, flow.block, work.matrix, work.start.slope
    rates = work.start.rates
    speed = rates[rates.shape[0] - 1]
    for b in range(k):
        for a in range(k):
            matrix[b, a] = block[b, a] * slope[b]
        matrix[b, b] += shift
        matrix[b, k] = 0.0
    for a in range(k):
        matrix[k, a] = -work.start.remainder_slope[active[a]]
    matrix[k, k] = shift
    if speed > 1e-200:
        # ds/dt = |dθ/dt| with dθ_a/dt = slope_a rate_a, and d(slope)/dz = 4θ
        for a in range(k):
            work.x[a] = slope[a] ** 2 * rates[active[a]] / speed
        for b in range(k):
            value = 0.0
            for a in range(k):
                value += work.x[a] * block[b, a]
            rate = rates[active[b]]
            matrix[b, k] = (value - 4 * work.start.theta[b] * rate * (rate / speed)) * slope[b]
        for a in range(k):
            matrix[k, k] -= work.x[a] * work.start.remainder_slope[active[a]]


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def rosenbrock_step(  # noqa: PLR0912 — one loop nest, which calls would only scatter
    flow: Surrogate, y: FloatArray, h: float, work: Work, new: FloatArray
) -> float:
    """Step of length h from y into `new`, where `work.start` is; returns the error of z.

    The passive coordinates follow explicitly, without linear algebra.
    """
    p, k = flow.up.shape[0], flow.active.shape[0]
    active, stages, x = flow.active, work.stages, work.x
    rates, theta = work.inner.rates, work.inner.theta
    shift = 1.0 / (h * _GAMMA)
    iteration_matrix(flow, work, shift)
    _factorize(work.matrix, work.pivots)
    for stage in range(6):
        if stage == 0:
            for i in range(p + 1):
                rates[i] = work.start.rates[i]
        else:
            for i in range(p + 1):
                value = y[i] if stage < 5 else new[i] + stages[4, i]
                if stage < 5:
                    for j in range(stage):
                        value += _A[stage, j] * stages[j, i]
                new[i] = value
            surrogate_rates(flow, new, work.inner)
            for j in range(stage):
                factor = _C[stage, j] / h
                for i in range(p + 1):
                    rates[i] += factor * stages[j, i]
        for a in range(k):
            x[a] = rates[active[a]]
        x[k] = rates[p]
        _solve(work.matrix, work.pivots, x)
        for a in range(k):
            theta[a] = work.start.slope[a] * x[a]
        for i in range(p):
            value = rates[i] + work.start.remainder_slope[i] * x[k]
            for a in range(k):
                value -= flow.columns[i, a] * theta[a]
            stages[stage, i] = value / shift
        for a in range(k):
            stages[stage, active[a]] = x[a]
        stages[stage, p] = x[k]
    error, steepest = 0.0, 0.0
    for a in range(k):
        steepest = max(steepest, work.start.slope[a])
    for i in range(p + 1):
        new[i] += stages[5, i]
        size = abs(stages[5, i])
        if i == p:
            # As an error of log|θ|, which those of z are as well; it moves nothing where P is
            # constant, and at rest it is the sum of rounding of dθ/dt, in absolute value.
            size = size / steepest if flow.newton.shape[0] > 1 and k > 0 else 0.0
        error = max(error, size if size < 1e100 else 1e100)
    return error


@njit(cache=True, error_model="numpy")
def dense_coefficients(work: Work, y: FloatArray, new: FloatArray, dense: FloatArray) -> None:
    """Fill Bernstein's coefficients, (4, p + 1), of the last step, from y to `new`."""
    for i in range(y.shape[0]):
        quadratic, cubic = 0.0, 0.0
        for j in range(5):
            quadratic += _QUADRATIC[j] * work.stages[j, i]
            cubic += _CUBIC[j] * work.stages[j, i]
        dense[0, i], dense[3, i] = y[i], new[i]
        dense[1, i] = (2 * y[i] + new[i] + quadratic) / 3
        dense[2, i] = (y[i] + 2 * new[i] + quadratic + cubic) / 3
