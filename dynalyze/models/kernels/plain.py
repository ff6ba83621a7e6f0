"""Loss, gradient and Hessian columns of the attention head in NumPy, with no compiled code.

The functions take what those of `gradient` and `hessian` take and give the same. They stand in
for them under NUMBA_DISABLE_JIT=1, and the tests hold them against each other: the derivatives
are written here as the chain rule gives them, with all sums in full.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray


def _chunks(
    X: FloatArray, y: FloatArray, weight: FloatArray, bounds: IntArray
) -> Iterator[tuple[FloatArray, ...]]:
    """Tokens, targets and weights of each chunk, with one sample after the other."""
    for first, last in pairwise(bounds):
        x, targets = (
            np.moveaxis(values[first:last], -1, 1).reshape(-1, *values.shape[1:3])
            for values in (X, y)
        )
        yield x, targets, weight[first:last].reshape(-1, 1, 1)


def _softmax(logits: FloatArray) -> FloatArray:
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    return powers / powers.sum(axis=2, keepdims=True)


def _through_softmax(A: FloatArray, slope: FloatArray) -> FloatArray:
    """Product of the softmax's Jacobian, which is symmetric, and a matrix."""
    return A * (slope - (A * slope).sum(axis=2, keepdims=True))


def loss_and_gradient(
    X: FloatArray,
    y: FloatArray,
    weight: FloatArray,
    theta: FloatArray,
    bounds: IntArray,
    out: FloatArray,
) -> None:
    """As `gradient.loss_and_gradient`."""
    p, q = np.split(theta, 2)
    for rows, (x, targets, omega) in zip(out, _chunks(X, y, weight, bounds), strict=True):
        xT = x.transpose(0, 2, 1)
        A = _softmax((x * p) @ xT)
        M = A @ x
        r = q * M - targets
        E = _through_softmax(A, (q * r) @ xT)
        rows[:, :, 0] += [(omega * part).sum(axis=(0, 1)) for part in (x * (E @ x), r * M, r * r)]


def hessian_columns(
    X: FloatArray,
    y: FloatArray,
    weight: FloatArray,
    theta: FloatArray,
    p_columns: IntArray,
    q_columns: IntArray,
    bounds: IntArray,
    out: FloatArray,
) -> None:
    """As `hessian.hessian_columns`, with all of H_pp."""
    p, q = np.split(theta, 2)
    for rows, (x, targets, omega) in zip(out, _chunks(X, y, weight, bounds), strict=True):
        xT = x.transpose(0, 2, 1)
        A = _softmax((x * p) @ xT)
        M = A @ x
        r = q * M - targets
        D = (q * r) @ xT
        parts = []
        for k in p_columns:
            A_dot = _through_softmax(A, x[:, :, [k]] * xT[:, [k]])
            M_dot = A_dot @ x
            r_dot = q * M_dot
            E_dot = _through_softmax(A, (q * r_dot) @ xT) + A_dot * D
            E_dot -= A_dot * (A * D).sum(axis=2, keepdims=True)
            E_dot -= A * (A_dot * D).sum(axis=2, keepdims=True)
            parts += [x * (E_dot @ x), r_dot * M + r * M_dot]
        for k in q_columns:
            slope = (q[k] * M + r)[:, :, [k]] * xT[:, [k]]
            parts.append(x * (_through_softmax(A, slope) @ x))
        rows[:, :, 0] += [(omega * part).sum(axis=(0, 1)) for part in [*parts, M * M]]
