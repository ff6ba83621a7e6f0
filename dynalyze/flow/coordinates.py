"""Log coordinates z of the gradient flow, in which any initialization scale is representable.

With c = u(0)² − v(0)², conserved by eq. (5), and w = u + v = √|c| e^z, the flow (4) becomes

    θ = (|c|/2) sinh(2z),      dz/dt = g(θ)

exactly: p equations instead of 2p, and the conservation law holds by construction. Only log|c|
is ever stored, so that α = 1e-1000 is no harder to hold than 1e-4.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray

_LOG_MAX = 700.0  # exp stays finite below; beyond it the flow has long diverged


class Chart(Protocol):
    """How the products depend on the log coordinates that the flow dz/dt = g(θ(z)) moves."""

    def theta(self, z: FloatArray) -> FloatArray:
        """Products θ(z), elementwise; shape of z."""

    def dtheta_dz(self, z: FloatArray) -> FloatArray:
        """Return dθ/dz, elementwise and positive or zero; shape of z."""


@dataclass(frozen=True)
class LogCoordinates:
    """The exact chart θ = (|c|/2) sinh(2z) of the flow from an unbalanced initialization.

    Parameters
    ----------
    log_abs_c : ndarray, shape (p,)
        log|u_i(0)² − v_i(0)²|, of any magnitude.
    """

    log_abs_c: FloatArray  # (p,)

    def theta(self, z: FloatArray) -> FloatArray:
        """Products at log coordinates z, shape (p,) or (..., p)."""
        return np.sign(z) * np.exp(self.log_abs_theta(z))

    def log_abs_theta(self, z: FloatArray) -> FloatArray:
        """log|θ|, which is finite where θ itself underflows (−∞ only at z = 0)."""
        size = np.abs(z)
        with np.errstate(divide="ignore"):
            tail = np.log(-np.expm1(-4 * size))
        exponent = 2 * size + self.log_abs_c - np.log(4) + tail
        return np.minimum(exponent, _LOG_MAX)

    def dtheta_dz(self, z: FloatArray) -> FloatArray:
        """|c| cosh(2z), shape of z."""
        size = np.abs(z)
        exponent = 2 * size + self.log_abs_c - np.log(2) + np.log1p(np.exp(-4 * size))
        return np.exp(np.minimum(exponent, _LOG_MAX))

    def log_amplitudes(self) -> tuple[FloatArray, FloatArray]:
        """Return a, b of shape (p,) such that θ = e^{a + 2z} − e^{b − 2z}."""
        amplitude = self.log_abs_c - np.log(4)
        return amplitude, amplitude

    def z_of_theta(self, theta: FloatArray) -> FloatArray:
        """Inverse of `theta`: z = ½ arsinh(2θ/|c|), without forming |c|."""
        theta = np.asarray(theta, dtype=float)
        with np.errstate(divide="ignore", over="ignore"):
            log_ratio = np.log(np.abs(theta)) + np.log(2) - self.log_abs_c
            # arsinh(e^r) = r + log(1 + sqrt(1 + e^{-2r})) for large r
            large = log_ratio + np.log1p(np.sqrt(1 + np.exp(-2 * np.maximum(log_ratio, 0))))
            small = np.arcsinh(np.exp(np.minimum(log_ratio, 0)))
        return 0.5 * np.sign(theta) * np.where(log_ratio > 0, large, small)


@dataclass(frozen=True)
class BalancedCoordinates:
    """The limit |c| → 0 of the chart on a support, where |u| = |v| and signs never change.

    Coordinates of the support have z = ½ s log|θ|, so that dz/dt = g still holds; the others
    stay at θ = 0 and their z only drifts, by the integral of g. This is the flow ψ of eq. (11).

    Parameters
    ----------
    signs : ndarray, shape (p,)
        Sign s of each product on the support, ±1; 0 off the support.
    """

    signs: FloatArray  # (p,)

    @property
    def support(self) -> BoolArray:
        """Mask of the coordinates that move, shape (p,)."""
        mask: BoolArray = self.signs != 0
        return mask

    def theta(self, z: FloatArray) -> FloatArray:
        """Products s e^{2 s z} on the support, 0 elsewhere; shape of z."""
        return self.signs * np.exp(np.minimum(2 * self.signs * z, _LOG_MAX))

    def dtheta_dz(self, z: FloatArray) -> FloatArray:
        """2|θ|, shape of z."""
        return 2 * np.abs(self.theta(z))

    def log_amplitudes(self) -> tuple[FloatArray, FloatArray]:
        """Return a, b of shape (p,) such that θ = e^{a + 2z} − e^{b − 2z}; −∞ for no term."""
        return (
            np.where(self.signs > 0, 0.0, -np.inf),
            np.where(self.signs < 0, 0.0, -np.inf),
        )

    def z_of_theta(self, theta: FloatArray) -> FloatArray:
        """½ s log|θ| on the support, 0 elsewhere; shape of theta."""
        z = np.zeros_like(theta)
        on = self.signs != 0
        with np.errstate(divide="ignore"):
            z[..., on] = 0.5 * self.signs[on] * np.log(np.abs(theta[..., on]))
        return z
