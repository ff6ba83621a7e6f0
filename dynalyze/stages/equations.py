"""Eqs. (8)–(10): which product activates next, after how long, and the log-scales then.

Times are rescaled: the flow time divided by log(1/α). The log-scale b_i says w_i ≈ α^{b_i}
for w = u + v; it starts at 1, is 0 for an active positive product, 2 for an active negative
one, and β = 1 − b is the log coordinate z in units of log(1/α).
"""

from typing import NamedTuple

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray


class Activation(NamedTuple):
    """The minimum of eq. (9), with the runner-up that says how clear it is."""

    coordinate: int
    sign: int  # ±1: the sign with which the product grows
    wait: float  # Δ_k(i_k): rescaled time since the last, or flow time on a clock of finite α
    runner_up: int  # −1 if no other product ever activates
    runner_up_wait: float  # in the same time; inf if there is no runner-up


def initial_log_scale(n_products: int) -> FloatArray:
    """b^0 = 1 for every product, shape (p,), since log_α w(0) → 1.

    The pseudocode of Algorithm 1 prints b^0 = 0, which contradicts T_1 = min 1/|g_i(0)|.
    """
    return np.ones(n_products)


def time_until_active(
    b: FloatArray, field: FloatArray, active: BoolArray, *, negligible: float | FloatArray = 0.0
) -> FloatArray:
    """Δ_k(i) = (b_i − 1 + sgn g_i) / g_i of eq. (8), in rescaled time, shape (p,).

    Parameters
    ----------
    b : ndarray, shape (p,)
        Log-scales b^k, each in [0, 2].
    field : ndarray, shape (p,)
        g(θ^k).
    active : ndarray of bool, shape (p,)
        Support of θ^k. Active products have g = 0 up to rounding and wait forever.
    negligible : float or ndarray, shape (p,)
        Fields of at most this size count as 0, which makes the wait infinite.

    Returns
    -------
    ndarray, shape (p,)
        b/g where g > 0, (2 − b)/|g| where g < 0, ∞ where g = 0 and on the support.
    """
    waits = np.full(b.shape, np.inf)
    moving = ~active & (np.abs(field) > negligible)
    waits[moving] = (b[moving] - 1 + np.sign(field[moving])) / field[moving]
    return waits


def activation(waits: FloatArray, field: FloatArray) -> Activation | None:
    """i_k = argmin Δ_k(i) of eq. (9); None if every wait is infinite (the last stage).

    Parameters
    ----------
    waits : ndarray, shape (p,)
        Times until active, in the clock's own unit.
    field : ndarray, shape (p,)
        g(θ^k), whose sign is the sign with which the product grows.
    """
    first, *others = np.argsort(waits, kind="stable")[:2]
    if not np.isfinite(waits[first]):
        return None
    runner_up = int(others[0]) if others and np.isfinite(waits[others[0]]) else -1
    return Activation(
        coordinate=int(first),
        sign=int(np.sign(field[first])),
        wait=float(waits[first]),
        runner_up=runner_up,
        runner_up_wait=float(waits[runner_up]) if runner_up >= 0 else np.inf,
    )


def log_scale(b: FloatArray, field: FloatArray, active: BoolArray, wait: float) -> FloatArray:
    """b^{k+1} = b^k − g(θ^k) Δ_k(i_k) of eq. (10), shape (p,).

    Active products keep their 0 or 2: there g is 0 and only its rounding would be added.
    The result is clipped to [0, 2], which it leaves by rounding alone.

    Parameters
    ----------
    b : ndarray, shape (p,)
        Log-scales b^k.
    field : ndarray, shape (p,)
        g(θ^k).
    active : ndarray of bool, shape (p,)
        Support of θ^k.
    wait : float
        Δ_k(i_k), rescaled time.
    """
    moved = np.where(active, b, b - field * wait)
    return np.clip(moved, 0.0, 2.0)


def active_log_scale(sign: int) -> float:
    """b of an active product: 0 if it is positive, 2 if it is negative."""
    return 1.0 - sign
