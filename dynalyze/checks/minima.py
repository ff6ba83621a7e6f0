"""Assumption 4.3 {4.4}: each plateau is a strict minimum in the weights of its support."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import eigsh

from dynalyze._typing import BoolArray, FloatArray
from dynalyze.checks.report import Verdict
from dynalyze.models.protocol import Objective, relative_field_units

_FLAT = 1e-9  # eigenvalues below this fraction of the largest are those of a flat direction
_EXACT_UP_TO = 200  # size of the support from which Lanczos takes over
_NAMED = 0.3  # entries of an eigenvector, over its largest, whose products are named


@dataclass(frozen=True)
class SmallestCurvature:
    """Smallest eigenvalue of the Hessian in u on a support, with what vouches for it."""

    eigenvalue: float
    largest: float  # largest eigenvalue in size
    vector: FloatArray  # (k,), of unit length
    residual: float  # ‖Mx − λx‖


def smallest_curvature(
    objective: Objective,
    theta: FloatArray,
    support: BoolArray,
    *,
    scaled: bool = False,
    exact_up_to: int = _EXACT_UP_TO,
    rng: np.random.Generator | int | None = 0,
) -> SmallestCurvature:
    """Smallest eigenvalue of ∂²L/∂u² on the support at a stationary point, v = s ⊙ u.

    There ∂²L/∂u_i∂u_j = 4 s_i s_j u_i u_j ∂²L/∂θ_i∂θ_j, since θ = s u² and g = 0.

    Parameters
    ----------
    objective : Objective
        The loss.
    theta : ndarray, shape (p,)
        The stationary point.
    support : ndarray of bool, shape (p,)
        Its support, of k products.
    scaled : bool
        Measure each u_i in the units of its own feature, where the objective knows them.
    exact_up_to : int
        Largest k for which all eigenvalues are computed; beyond it Lanczos' method.
    rng : numpy.random.Generator or int, optional
        Of Lanczos' starting vector.
    """
    indices = np.flatnonzero(support)
    u = np.sqrt(np.abs(theta[indices])) * np.sign(theta[indices])
    hessian = objective.hessian_columns(theta, indices)[indices]
    matrix = 4 * u[:, None] * (hessian + hessian.T) / 2 * u
    if scaled:
        root = np.sqrt(relative_field_units(objective)[indices])
        matrix = matrix / root / root[:, None]
    if indices.size <= exact_up_to:
        values, vectors = np.linalg.eigh(matrix)
        low, high = 0, int(np.argmax(np.abs(values)))
        value, vector, largest = values[low], vectors[:, low], abs(values[high])
    else:
        start = np.random.default_rng(rng).standard_normal(indices.size)
        (largest,), _ = eigsh(matrix, k=1, which="LM", v0=start, tol=1e-3)
        largest = abs(largest)
        # The smallest is found as the end of the spectrum of the shifted matrix.
        shifted = largest * np.eye(indices.size) - matrix
        _, vectors = eigsh(shifted, k=1, which="LA", v0=start, tol=1e-12, ncv=min(60, indices.size))
        vector = vectors[:, 0]
        value = vector @ matrix @ vector
    residual = float(np.linalg.norm(matrix @ vector - value * vector))
    return SmallestCurvature(float(value), float(largest), vector, residual)


def _is_positive(found: SmallestCurvature) -> bool:
    return bool(found.eigenvalue > max(_FLAT * found.largest, 10 * found.residual))


def strict_minimum(
    objective: Objective, theta: FloatArray, support: BoolArray, stage: int, names: tuple[str, ...]
) -> Verdict:
    """Verdict on L(ũ, s ⊙ ũ) − L(θ^k) ≥ c_k ‖u^k − ũ‖² near u^k on its support.

    The margin is c_k, half the smallest eigenvalue of the Hessian in u.
    """
    indices = np.flatnonzero(support)
    if indices.size == 0:
        return Verdict(stage, True, np.inf, "no product is active: nothing to move")
    found = smallest_curvature(objective, theta, support)
    c = found.eigenvalue / 2
    values = {"c": c, "residual": found.residual, "largest": found.largest}
    passed = _is_positive(found)
    if not passed:  # it may be small only for the units of its features
        scaled = smallest_curvature(objective, theta, support, scaled=True)
        passed = _is_positive(scaled) and c > 0
    order = np.argsort(-np.abs(found.vector))
    top = abs(found.vector[order[0]])
    involved = [names[indices[i]] for i in order[:5] if abs(found.vector[i]) > _NAMED * top]
    numbers = f"c = {c:.3g} (eigenvalue residual {found.residual:.0e}, largest {found.largest:.3g})"
    if passed:
        message = f"{numbers}, softest along {', '.join(involved)}"
    elif found.eigenvalue < -_FLAT * found.largest:
        message = f"{numbers}: a saddle, which falls along {', '.join(involved)}"
    else:
        message = (
            f"{numbers}: flat along {', '.join(involved)}, where the loss does not change; is one "
            "of these features a combination of the others?"
        )
    return Verdict(stage, bool(passed), c, message, values)
