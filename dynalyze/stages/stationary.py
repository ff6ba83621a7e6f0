"""Newton's method on a support, and what makes a stationary point one that the flow rests at."""

from dataclasses import dataclass

import numpy as np

from dynalyze._typing import FloatArray, IntArray
from dynalyze.models.protocol import Objective

_FLAT = 1e-14  # eigenvalues this small against the largest are 0 to rounding
_FLAT_DIRECTION = "the Hessian on the support is singular to rounding: there is a flat direction"
_FIRST_STEP = 0.1  # change of log|θ| beyond which Newton's method is too far away to be tried
_CHORD = 1e-3  # the Hessian is kept once a step changes no log|θ| by more than this
_ROUNDING = 1e-13  # of g, in units of the largest of its terms
_LAST_STEP = 1e-4  # relative to each product, once Newton's method has converged


@dataclass(frozen=True)
class StationaryPoint:
    """A point with g = 0 on `support` and θ = 0 elsewhere."""

    theta: FloatArray  # (p,)
    value: float  # loss there
    field: FloatArray  # (p,), g there; rounding on the support
    support: IntArray  # (k,)
    hessian: FloatArray  # (p, k), the columns of the support
    curvature: (
        float  # smallest eigenvalue of the Hessian, scaled to unit diagonal, over its largest
    )
    residual: float  # largest |g| on the support


def polish(
    objective: Objective, theta: FloatArray, support: IntArray, *, tolerance: float
) -> StationaryPoint | str:
    """Newton's method for g = 0 on `support`, from θ, the others set to 0.

    It goes on beyond `tolerance` for as long as a step lowers the residual, to rounding.

    Parameters
    ----------
    objective : Objective
        The loss as a function of the products.
    theta : ndarray, shape (p,)
        Where to start; each sign on the support must survive.
    support : ndarray of int, shape (k,)
        Coordinates that are free.
    tolerance : float
        Largest |g| on the support that is accepted.

    Returns
    -------
    StationaryPoint, or str
        The sentence that says why there is none.
    """
    signs = np.sign(theta[support])
    theta = _restricted(theta, support)
    value, field = objective.value_and_field(theta)
    residual = _largest(field[support])
    columns = objective.hessian_columns(theta, support)
    spectrum = _scaled_spectrum(columns, support)
    while True:
        if spectrum.is_flat:
            return _FLAT_DIRECTION
        trial = theta.copy()
        trial[support] += spectrum.solve(field[support])
        if np.any(np.sign(trial[support]) != signs):
            return "Newton's step changes a sign"
        moved = _largest(np.log(trial[support] / theta[support]))
        if moved > _FIRST_STEP:
            return f"Newton's step moves a product by {np.expm1(moved):.1%}"
        trial_value, trial_field = objective.value_and_field(trial)
        trial_residual = _largest(trial_field[support])
        if not trial_residual < residual:
            break
        stagnating = trial_residual > 0.1 * residual
        theta, value, field, residual = trial, trial_value, trial_field, trial_residual
        if residual <= tolerance and stagnating:
            break
        if moved > _CHORD:
            columns = objective.hessian_columns(theta, support)
            spectrum = _scaled_spectrum(columns, support)
    # Where units are far apart, the rounding of some g_i may be more than the tolerance.
    noise = _ROUNDING * _largest(np.abs(columns[support]) @ np.abs(theta[support]))
    if not residual <= max(tolerance, noise):
        return f"Newton's method stops at |g| = {residual:.1e}, above {tolerance:.1e}"
    columns = objective.hessian_columns(theta, support)
    spectrum = _scaled_spectrum(columns, support)
    if spectrum.is_flat:
        return _FLAT_DIRECTION
    # A field that fades like e^{−θ} is below any tolerance somewhere, but Newton's steps
    # there stay as long as they were: there is no stationary point at a finite distance.
    last = _largest(spectrum.solve(field[support]) / theta[support])
    if not last <= _LAST_STEP:
        return f"Newton's steps do not shrink (last {last:.1e} of a product): no finite minimum"
    return StationaryPoint(theta, value, field, support, columns, spectrum.smallest_ratio, residual)


@dataclass(frozen=True)
class _Spectrum:
    """Eigendecomposition of the Hessian on a support, scaled to a diagonal of ±1.

    The scaling makes it independent of the units of the features, and keeps the signs of the
    eigenvalues.
    """

    scale: FloatArray  # (k,), 1/√|H_ii|
    eigenvalues: FloatArray  # (k,), ascending
    vectors: FloatArray  # (k, k)

    @property
    def smallest_ratio(self) -> float:
        """Smallest eigenvalue over the largest in size; 1 on an empty support."""
        if not self.eigenvalues.size:
            return 1.0
        return float(self.eigenvalues[0] / np.abs(self.eigenvalues).max())

    @property
    def is_flat(self) -> bool:
        """Whether some eigenvalue is 0 to rounding."""
        sizes = np.abs(self.eigenvalues)
        return bool(sizes.size) and not bool(sizes.min() > _FLAT * sizes.max())

    def solve(self, field: FloatArray) -> FloatArray:
        """H⁻¹ g on the support."""
        along = (self.vectors.T @ (self.scale * field)) / self.eigenvalues
        return self.scale * (self.vectors @ along)


def _scaled_spectrum(columns: FloatArray, support: IntArray) -> _Spectrum:
    hessian = columns[support]
    diagonal = np.abs(np.diagonal(hessian))
    scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    return _Spectrum(scale, *np.linalg.eigh(scale[:, None] * hessian * scale))


def _restricted(theta: FloatArray, support: IntArray) -> FloatArray:
    inside = np.zeros_like(theta)
    inside[support] = theta[support]
    return inside


def _largest(values: FloatArray) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def at_origin(objective: Objective) -> StationaryPoint:
    """θ^0 = 0, with an empty support."""
    theta = np.zeros(objective.n_products)
    value, field = objective.value_and_field(theta)
    nothing = np.empty(0, dtype=np.int64)
    return StationaryPoint(theta, value, field, nothing, np.empty((theta.size, 0)), 1.0, 0.0)
