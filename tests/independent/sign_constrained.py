"""Oracle for the diagonal linear network: the recursion by sign-constrained least squares.

Written from Pesme & Flammarion (arXiv 2304.00488) with SciPy's non-negative least squares; it
shares no line with the library. β = 1 − b are the log coordinates in units of log(1/α).
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls


class Stages(NamedTuple):
    times: list[float]
    coordinates: list[int]
    signs: list[int]
    theta: list[np.ndarray]
    departed: list[tuple[int, ...]]


def stages_by_least_squares(X, y, *, field_rtol):
    n, p = X.shape
    beta, theta, t = np.zeros(p), np.zeros(p), 0.0
    found = Stages([], [], [], [theta], [])
    scale = np.abs(X.T @ y / n).max()
    while True:
        g = X.T @ (y - X @ theta) / n
        free = (theta == 0) & (np.abs(g) > field_rtol * scale)
        if not free.any():
            return found
        waits = np.full(p, np.inf)
        waits[free] = (1 - np.sign(g[free]) * beta[free]) / np.abs(g[free])
        j = int(np.argmin(waits))
        t += waits[j]
        beta = np.where(theta == 0, beta + g * waits[j], np.sign(theta))
        beta[j] = np.sign(g[j])
        before, theta = theta, sign_constrained_least_squares(X, y, beta)
        found.times.append(t)
        found.coordinates.append(j)
        found.signs.append(int(np.sign(g[j])))
        found.theta.append(theta)
        was_active = (before != 0) | (np.arange(p) == j)
        found.departed.append(tuple(int(i) for i in np.flatnonzero(was_active & (theta == 0))))


def sign_constrained_least_squares(X, y, beta):
    """argmin ‖y − Xθ‖ with θ_i β_i ≥ 0 where |β_i| = 1 and θ_i = 0 elsewhere."""
    theta = np.zeros(X.shape[1])
    free = np.abs(beta) == 1
    signed = X[:, free] * beta[free]
    # columns of unit length condition the active-set method; the answer is scaled back
    lengths = np.linalg.norm(signed, axis=0)
    values, _ = nnls(signed / lengths, y, maxiter=100 * X.shape[1])
    # the active set is exact; refine the values on it by an orthogonal factorization
    on = values > 0
    refined = np.zeros_like(values)
    refined[on] = np.linalg.lstsq(signed[:, on] / lengths[on], y, rcond=None)[0]
    theta[free] = beta[free] * refined / lengths
    return theta
