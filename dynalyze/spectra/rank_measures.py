"""Measures of rank from singular values: the stable rank, and bounds of the entropy rank."""

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray


def stable_rank(frobenius: FloatArray, spectral: FloatArray) -> FloatArray:
    """‖M‖_F² / ‖M‖_2², and 0 for zero matrices."""
    return (
        np.divide(frobenius, spectral, out=np.zeros_like(frobenius), where=np.asarray(spectral) > 0)
        ** 2
    )


def effective_rank_bounds(
    values: FloatArray, frobenius: FloatArray, largest_rank: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Bounds of the entropy rank exp(−Σ p log p), p_i = σ_i² / ‖M‖_F², from the leading values.

    What the leading k values leave of ‖M‖_F² is known. The entropy is smallest if as few values
    as possible hold it, each no larger than the last one known, and largest if all share it.

    Parameters
    ----------
    values : ndarray, shape (..., k)
        Leading singular values, descending.
    frobenius : ndarray, shape (...)
        Frobenius norms.
    largest_rank : ndarray, broadcastable to shape (...)
        Number of all singular values; the bounds meet where it is k.

    Returns
    -------
    lower, upper : ndarray, shape (...)
        0 for zero matrices.
    """
    total = np.where(frobenius > 0, frobenius, 1.0) ** 2
    shares = values**2 / total[..., None]
    known = -_x_log_x(shares).sum(-1)
    n_left = np.maximum(largest_rank - values.shape[-1], 0)
    rest = np.where(n_left > 0, np.clip(1.0 - shares.sum(-1), 0.0, None), 0.0)
    top = np.where(shares[..., -1] > 0, shares[..., -1], 1.0)
    n_full = np.floor(rest / top)
    lower = known - n_full * _x_log_x(top) - _x_log_x(rest - n_full * top)
    upper = known - _x_log_x(rest / np.maximum(n_left, 1)) * np.maximum(n_left, 1)
    alive = frobenius > 0
    low = np.where(alive, np.exp(lower), 0.0)
    return low, np.where(alive, np.maximum(np.exp(upper), low), 0.0)


def _x_log_x(x: FloatArray) -> FloatArray:
    positive = x > 0
    return np.where(positive, x * np.log(np.where(positive, x, 1.0)), 0.0)
