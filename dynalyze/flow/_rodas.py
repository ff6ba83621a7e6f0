"""The Rosenbrock method RODAS: its coefficients, and the linear algebra of its stages.

Six stages, order 4 with an embedded 3, stiffly accurate and L-stable, dense output of order 3:
Hairer & Wanner, Solving Ordinary Differential Equations II, section IV.7.
"""

import numpy as np

from dynalyze._compiled import njit
from dynalyze._typing import FloatArray, IntArray

GAMMA = 0.25
A = np.array(
    [
        [0.0, 0.0, 0.0, 0.0],
        [1.544, 0.0, 0.0, 0.0],
        [0.9466785280815826, 0.2557011698983284, 0.0, 0.0],
        [3.314825187068521, 2.896124015972201, 0.9986419139977817, 0.0],
        [1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950],
    ]
)
C = np.zeros((6, 5))
C[1, :1] = -5.6688
C[2, :2] = -2.430093356833875, -0.2063599157091915
C[3, :3] = -0.1073529058151375, -9.594562251023355, -20.47028614809616
C[4, :4] = 7.496443313967647, -10.24680431464352, -33.99990352819905, 11.70890893206160
C[5] = [
    8.083246795921522,
    -7.981132988064893,
    -31.52159432874371,
    16.31930543123136,
    -6.058818238834054,
]
# z(f) = (1 − f) z_0 + f (z_1 + (1 − f) (quadratic + f cubic))
QUADRATIC = np.array(
    [
        10.12623508344586,
        -7.487995877610167,
        -34.80091861555747,
        -7.992771707568823,
        1.025137723295662,
    ]
)
CUBIC = np.array(
    [
        -0.6762803392806898,
        6.087714651680015,
        16.43084320892478,
        24.76722511418386,
        -6.594389125716872,
    ]
)


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def factorize(matrix: FloatArray, pivots: IntArray) -> None:
    """LU factors with partial pivoting, in place; LAPACK's call costs more at this size."""
    n = matrix.shape[0]
    for c in range(n):
        best = c
        for i in range(c + 1, n):
            if abs(matrix[i, c]) > abs(matrix[best, c]):
                best = i
        pivots[c] = best
        if best != c:
            for j in range(n):
                swap = matrix[c, j]
                matrix[c, j] = matrix[best, j]
                matrix[best, j] = swap
        inverse = 1.0 / matrix[c, c]
        for i in range(c + 1, n):
            factor = matrix[i, c] * inverse
            matrix[i, c] = factor
            if factor != 0.0:
                for j in range(c + 1, n):
                    matrix[i, j] -= factor * matrix[c, j]


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def solve(factors: FloatArray, pivots: IntArray, x: FloatArray) -> None:
    """Solve with the factors, in place."""
    n = factors.shape[0]
    for c in range(n):
        q = pivots[c]
        swap = x[c]
        x[c] = x[q]
        x[q] = swap
    for i in range(n):
        value = x[i]
        for j in range(i):
            value -= factors[i, j] * x[j]
        x[i] = value
    for i in range(n - 1, -1, -1):
        value = x[i]
        for j in range(i + 1, n):
            value -= factors[i, j] * x[j]
        x[i] = value / factors[i, i]
