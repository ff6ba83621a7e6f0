"""The flow dz/dt = g(θ(z)) as general stiff solvers want it: finite everywhere, with its Jacobian.

The Newton iterations of implicit solvers overshoot in log coordinates, where θ is exponential.
A NaN as the answer stops BDF and Radau and passes LSODA as success; products clipped at a size
that no flow reaches make the iteration fail to converge instead, and the solver shortens its
step.
"""

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.errors import FlowError
from dynalyze.flow.coordinates import Chart
from dynalyze.models.protocol import Objective

_LARGEST_THETA = 1e20
# Columns of the Jacobian below this fraction of the initial |g| change nothing over a plateau,
# whose length is a few log(1/α) / |g|, that the Newton iteration would not correct.
_NEGLIGIBLE = 1e-6


class GuardedFlow:
    """Right-hand side and Jacobian of the flow in log coordinates.

    Parameters
    ----------
    objective : Objective
        The loss.
    chart : Chart
        The products θ(z).
    """

    def __init__(self, objective: Objective, chart: Chart) -> None:
        self._objective = objective
        self._chart = chart
        self._field_scale: float | None = None  # largest |g| at the start
        self._largest_hessian = 0.0

    def rate(self, z: FloatArray) -> FloatArray:
        """g(θ(z)), shape (p,).

        Raises
        ------
        FlowError
            If the field is not finite.
        """
        if not np.all(np.isfinite(z)):
            raise FlowError(
                "the integrator produced log coordinates that are not numbers: try a smaller tol, "
                "or another method"
            )
        theta = np.clip(self._chart.theta(z), -_LARGEST_THETA, _LARGEST_THETA)
        field = self._objective.field(theta)
        size = float(np.max(np.abs(field)))
        if not np.isfinite(size):
            raise FlowError(describe_bad_field(self._objective, theta, field))
        if self._field_scale is None:
            self._field_scale = size
        return field

    def jacobian(self, z: FloatArray) -> FloatArray:
        """∂g/∂z = −H(θ) diag(dθ/dz) with its negligible columns left 0, shape (p, p).

        To be asked at accepted points alone: BDF keeps the Jacobian of a prediction for all
        attempts at a step, and one that overshoots by a factor 1e20 stops it for good.
        """
        p = len(z)
        slope = np.minimum(self._chart.dtheta_dz(z), 2 * _LARGEST_THETA)
        active = np.arange(p)
        # Until the sizes of the field and the Hessian are known, every column counts.
        if self._field_scale and self._largest_hessian:
            smallest = _NEGLIGIBLE * self._field_scale / self._largest_hessian
            active = np.flatnonzero(slope > smallest)
        jacobian = np.zeros((p, p))
        if active.size:
            theta = np.clip(self._chart.theta(z), -_LARGEST_THETA, _LARGEST_THETA)
            columns = self._objective.hessian_columns(theta, active)
            largest = float(np.max(np.abs(columns)))
            if not np.isfinite(largest):
                raise FlowError(
                    "the Hessian of the loss is not finite where the largest |θ| is "
                    f"{float(np.max(np.abs(theta))):.3g}: check the model's second derivative"
                )
            self._largest_hessian = max(self._largest_hessian, largest)
            jacobian[:, active] = -columns * slope[active]
        return jacobian


class GuardedStepper:
    """What steppers on the guarded flow share: the point last accepted, and g there.

    Parameters
    ----------
    objective : Objective
        The loss.
    chart : Chart
        The products θ(z).
    z : ndarray, shape (p,)
        Log coordinates at the start.
    """

    def __init__(self, objective: Objective, chart: Chart, z: FloatArray) -> None:
        self._flow = GuardedFlow(objective, chart)
        self._z = np.array(z)
        self._field: FloatArray | None = None
        self._n_steps = 0

    @property
    def z(self) -> FloatArray:
        """Log coordinates reached, shape (p,)."""
        return self._z

    @property
    def field(self) -> FloatArray:
        """g at the point reached, shape (p,); costs an evaluation when first asked for."""
        if self._field is None:
            self._field = self._flow.rate(self._z)
        return self._field

    @property
    def n_steps(self) -> int:
        """Steps made."""
        return self._n_steps

    def _accept(self, z: FloatArray) -> None:
        self._n_steps += 1
        self._z = np.array(z)
        self._field = None


def describe_bad_field(objective: Objective, theta: FloatArray, field: FloatArray) -> str:
    """Say where a field that is not finite was met, and what to do."""
    i = int(np.flatnonzero(~np.isfinite(field))[0])
    return (
        f"the field g is {field[i]} at product {objective.product_names[i]}, where the largest |θ| "
        f"is {float(np.max(np.abs(theta))):.3g}: check the model's loss and its derivative there"
    )
