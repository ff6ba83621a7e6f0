"""SUNDIALS CVODE through scikit-sundae as a stepper: variable-order BDF in C."""

from typing import Any

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.errors import FlowError, MissingDependencyError
from dynalyze.flow.coordinates import Chart
from dynalyze.flow.steppers.guarded import GuardedStepper
from dynalyze.flow.steppers.protocol import Segment
from dynalyze.models.protocol import Objective

_RTOL = 1e-14  # errors of z count absolutely, as in scipy_steppers
_ORDER = 5  # highest order of BDF, and degree of its dense output
# Chebyshev–Lobatto points on [0, 1] at which a step is sampled before the next overwrites it.
_POINTS = (1 - np.cos(np.pi * np.arange(_ORDER + 1) / _ORDER)) / 2
_TO_POWERS = np.linalg.inv(np.vander(_POINTS, increasing=True))


class _PowerSegment:
    """One step as a polynomial in the fraction of the step that has passed."""

    def __init__(self, t_start: float, t_end: float, samples: FloatArray) -> None:
        self.t_start = t_start
        self.t_end = t_end
        self._start = samples[0]
        self._powers = _TO_POWERS @ (samples - samples[0])  # (6, p)

    def z(self, t: float | FloatArray) -> FloatArray:
        """Log coordinates within the step."""
        fraction = (np.asarray(t) - self.t_start) / (self.t_end - self.t_start)
        return self._start + fraction[..., None] ** np.arange(_ORDER + 1) @ self._powers


class CvodeStepper(GuardedStepper):
    """SUNDIALS CVODE (BDF of orders 1 to 5) on the guarded flow, with its exact Jacobian.

    Parameters
    ----------
    objective : Objective
        The loss.
    chart : Chart
        The products θ(z).
    z : ndarray, shape (p,)
        Log coordinates at the start.
    t : float, optional
        Flow time of the start.
    t_bound : float, optional
        Flow time not to step beyond.
    tol : float
        Absolute tolerance of z for each step.

    Raises
    ------
    MissingDependencyError
        If scikit-sundae is not installed.
    """

    def __init__(
        self,
        objective: Objective,
        chart: Chart,
        z: FloatArray,
        *,
        t: float = 0.0,
        t_bound: float = np.inf,
        tol: float,
    ) -> None:
        try:
            from sksundae.cvode import CVODE
        except ImportError as error:
            raise MissingDependencyError(
                'method="CVODE" needs scikit-sundae: pip install "dynalyze[sundials]", or choose '
                'another method, such as "LSODA"'
            ) from error
        super().__init__(objective, chart, z)
        flow = self._flow
        self._t = t
        self._t_bound = t_bound
        # With a first step given, the time that each call names as its aim means nothing.
        scale = float(np.max(np.abs(self.field)))
        self._first_step = min(tol**0.5 / scale if scale else 1.0, (t_bound - t) / 2)

        def rate(_: float, z: FloatArray, rates: FloatArray) -> None:
            rates[:] = flow.rate(z)

        def jacobian(_: float, __: FloatArray, ___: FloatArray, matrix: FloatArray) -> None:
            matrix[:, :] = flow.jacobian(self._z)

        self._solver: Any = CVODE(
            rate,
            jacfn=jacobian,
            rtol=_RTOL,
            atol=tol,
            linsolver="dense",
            first_step=self._first_step,
        )
        self._solver.init_step(t, self._z)

    @property
    def t(self) -> float:
        """Flow time reached."""
        return self._t

    def step(self) -> Segment:
        """Make one accepted step and return it; FlowError if there is none to be made."""
        start = self._t
        aim = start + 2 * self._first_step
        bound = self._t_bound if np.isfinite(self._t_bound) else None
        result = self._solver.step(aim, method="onestep", tstop=bound)
        end = float(result.t)
        if result.status < 0 or not end > start:
            raise FlowError(
                f"CVODE cannot continue from t = {start}: {result.message} "
                "Try a larger tol, or another method"
            )
        z = np.array(result.y)
        inner = [
            np.array(self._solver.step(start + (end - start) * point, method="normal").y)
            for point in _POINTS[:-1]
        ]
        # The solver goes on from the time that was asked for last.
        self._solver.step(end, method="normal")
        self._t = end
        self._accept(z)
        return _PowerSegment(start, end, np.array([*inner, z]))
