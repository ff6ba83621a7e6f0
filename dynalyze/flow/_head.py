"""The end of the path found so far, from which the surrogate flow is followed on."""

import numpy as np

from dynalyze._typing import FloatArray
from dynalyze.flow._frozen_hessian import FrozenHessian
from dynalyze.flow._path import Limits, Path
from dynalyze.flow._remainder import Polynomial


class Head:
    """Point (t, z, s) that the corrected path has reached.

    Active z count from an origin nearby: there they are small, and their rounding no noise in θ.

    Parameters
    ----------
    up, down : ndarray, shape (p,)
        θ = e^{up + 2z} − e^{down − 2z}.
    t : float
        Flow time.
    z : ndarray, shape (p,)
        Log coordinates.
    """

    def __init__(self, up: FloatArray, down: FloatArray, t: float, z: FloatArray) -> None:
        self._up, self._down = up, down
        self.t = t
        self.y = np.zeros(z.size + 1)  # (p + 1,), z − origin and s
        self.origin = z
        self.inner_step = np.inf  # of the surrogate's integrator, to try first

    @property
    def s(self) -> float:
        """Arc length."""
        return float(self.y[-1])

    @property
    def log_theta(self) -> FloatArray:
        """log|θ|, where it is not near 0; (p,)."""
        z = self.origin + self.y[:-1]
        size: FloatArray = np.maximum(self._up + 2 * z, self._down - 2 * z)
        return size

    def growth(self, field: FloatArray) -> FloatArray:
        """Rate of log|θ| where the field is given, for what has left 0 behind; (p,)."""
        rates: FloatArray = 2 * np.sign(self.origin + self.y[:-1]) * field
        return rates

    def follow(
        self,
        hessian: FrozenHessian,
        remainder: Polynomial,
        t_end: float,
        tol: float,
        limits: Limits,
    ) -> Path:
        """Follow the surrogate from here to t_end, or until one of the limits."""
        from dynalyze.flow._surrogate_field import Surrogate
        from dynalyze.flow._surrogate_path import follow

        shift, active, log_length = 2 * self.origin, hessian.active, hessian.log_length
        flow = Surrogate(
            self._up + shift - log_length,
            self._down - shift - log_length,
            active,
            hessian.columns * np.exp(log_length[active]),
            *remainder,
        )
        first_step = min(self.inner_step, t_end - self.t)
        path: Path = follow(flow, self.y, self.t, t_end, first_step, tol, limits)
        return path

    def move(self, path: Path) -> None:
        """Go to the end of a path."""
        self.t, self.y, self.inner_step = float(path.t[-1]), path.y[-1], path.step

    def center(self, s: float) -> None:
        """Make this point the origin of z, and s its arc length."""
        self.origin = self.origin + self.y[:-1]
        self.y = np.append(np.zeros(self.origin.size), s)
