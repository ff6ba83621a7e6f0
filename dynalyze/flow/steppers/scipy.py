"""SciPy's stiff solvers as steppers: the references that other methods are held against."""

import inspect
import re
import warnings
from typing import Any

import numpy as np
from scipy import integrate

from dynalyze._core.arrays import FloatArray
from dynalyze.errors import FlowError
from dynalyze.flow.coordinates import Chart
from dynalyze.flow.steppers.guarded import GuardedStepper
from dynalyze.flow.steppers.protocol import Segment
from dynalyze.models.protocol import Objective

_SOLVERS = {"LSODA": integrate.LSODA, "BDF": integrate.BDF, "Radau": integrate.Radau}
# Errors of z are errors of log|w|: absolute ones are what counts, whatever the size of log(1/α).
_RTOL = 1e-13

_LSODA_FILE = inspect.getfile(integrate.LSODA)

_LONGEST_STEP = 1e200  # where nothing changes any more, steps would overflow


class _ScipySegment:
    """One step of a SciPy solver."""

    def __init__(self, dense: integrate.DenseOutput) -> None:
        self.t_start = float(dense.t_old)
        self.t_end = float(dense.t)
        self._dense = dense

    def z(self, t: float | FloatArray) -> FloatArray:
        """Log coordinates within the step."""
        return np.asarray(self._dense(t)).T


class ScipyStepper(GuardedStepper):
    """LSODA, BDF or Radau of `scipy.integrate` on the guarded flow, with its exact Jacobian.

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
    method : {"LSODA", "BDF", "Radau"}
        Which solver.
    tol : float
        Absolute tolerance of z for each step.
    """

    def __init__(
        self,
        objective: Objective,
        chart: Chart,
        z: FloatArray,
        *,
        t: float = 0.0,
        t_bound: float = np.inf,
        method: str,
        tol: float,
    ) -> None:
        super().__init__(objective, chart, z)
        flow = self._flow
        self._method = method
        self._solver: Any = _SOLVERS[method](
            lambda _, z: flow.rate(z),
            t,
            z,
            t_bound,
            rtol=_RTOL,
            atol=tol,
            max_step=_LONGEST_STEP,
            jac=lambda _, __: flow.jacobian(self._z),
        )
        if method != "LSODA":
            # SciPy ties the Newton tolerance to rtol alone, which here says nothing.
            self._solver.newton_tol = min(0.03, tol**0.5)

    @property
    def t(self) -> float:
        """Flow time reached."""
        return float(self._solver.t)

    def step(self) -> Segment:
        """Make one accepted step and return it; FlowError if there is none to be made."""
        t_before = self.t
        reason = self._attempt()
        if self._solver.status == "failed" or not self.t > t_before:
            raise FlowError(
                f"{self._method} cannot continue from t = {t_before}{reason}: "
                "try a larger tol, or another method"
            )
        self._accept(self._solver.y)
        return _ScipySegment(self._solver.dense_output())

    def _attempt(self) -> str:
        """Step, and return what the solver says about a failure."""
        with warnings.catch_warnings(record=True) as caught:
            # LSODA gives its reasons as warnings.
            warnings.filterwarnings("always", module=re.escape(integrate.LSODA.__module__))
            reasons = [self._solver.step()]
        for warning in caught:
            if warning.filename == _LSODA_FILE:
                reasons.append(str(warning.message))
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        return "".join(f" ({reason})" for reason in reasons if reason)
