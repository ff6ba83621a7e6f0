"""When a simulated flow has come to rest for good: no product moves, and none outside grows."""

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze._core.status import Status
from dynalyze.flow.coordinates import Chart
from dynalyze.flow.rest import SHORT_STEP, newton_step
from dynalyze.models.protocol import Objective, relative_field_units

_SUPPORT = 1e-6  # |θ| of the support, in units of the largest


class StationaryTest:
    """Test of every g_i, on the support and off it, confirmed by a Newton step.

    A test of the speed of θ would stop at saddles, where all that grows is still small: at rest
    for good is where g itself is zero, outside the support too. Where the loss falls for ever,
    as with the exponential-like tails of cross-entropy, g also tends to zero; the Newton step
    then stays long.

    Parameters
    ----------
    objective : Objective
        The loss.
    chart : Chart
        The products θ(z).
    tol : float
        Largest |g| that counts as zero, in units of the largest seen; each in the units of its own
        feature, where the objective knows them.
    """

    def __init__(self, objective: Objective, chart: Chart, tol: float) -> None:
        self._objective = objective
        self._chart = chart
        self._tol = tol
        self._units = relative_field_units(objective)
        self._largest_field = 0.0
        self._field = 0.0

    def __call__(self, z: FloatArray, field: FloatArray) -> tuple[Status, str] | None:
        """Status and message if the flow is at rest at z, where g is `field`; otherwise None."""
        self._field = float(np.max(np.abs(field) / self._units))
        self._largest_field = max(self._largest_field, self._field)
        if self._field > self._tol * self._largest_field:
            return None
        theta = self._chart.theta(z)
        sizes = np.abs(theta) * self._units
        largest = float(np.max(sizes))
        support = np.flatnonzero(sizes > _SUPPORT * largest)
        to_go = newton_step(self._objective, theta, field, support, self._tol)
        step = float(np.abs(to_go * self._units[support]).max(initial=0.0))
        if step > SHORT_STEP * largest:
            return Status.NO_LIMIT, (
                f"the largest |g| has fallen to {self._field:.3g}, but the nearest stationary "
                f"point is still {step:.3g} away where the largest |θ| is {largest:.3g}: the loss "
                "has no finite minimum within reach, as cross-entropy without weight decay. End "
                "by until= instead, or regularize the loss"
            )
        return Status.STATIONARY, (
            f"no |g_i| exceeds {self._field:.3g}, {self._tol:.0e} of the largest seen: nothing "
            "outside the support grows"
        )

    def hint(self) -> str:
        """How far from rest the flow was when last tested."""
        if self._largest_field == 0:
            return ""
        return (
            f"The largest |g| is {self._field / self._largest_field:.1e} of the largest seen, and "
            f"stationary_rtol={self._tol:.0e} ends the run. "
        )
