"""Assumption 4.3 {4.4}: each plateau is a strict minimum in the weights of its support."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from dynalyze._core.arrays import BoolArray, FloatArray
from dynalyze.checks.report import Verdict
from dynalyze.models.protocol import Objective

_FLAT = 1e-9  # eigenvalues below this fraction of the largest are those of a flat direction
_NEWTON_STEPS = 6  # further steps, over which the curvature at a strict minimum stays
_PERSISTS = 0.5  # fraction of it that must be left after them
_STILL = 1e-12  # a Newton step that moves no product by more than this fraction is rounding
_TOO_FAR = 0.5  # and one that moves a product by more than this fraction leads elsewhere
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
    fields: FloatArray | None = None,
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
    fields : ndarray, shape (p,), optional
        Measure each u_i by √|g_i|, with the size |g_i| that drove it. Where the curvature has the
        scale of the problem, |θ_i| H_ii ~ |g_i|, the eigenvalues are then about 4, in any units.
    """
    indices = np.flatnonzero(support)
    u = np.sqrt(np.abs(theta[indices])) * np.sign(theta[indices])
    hessian = objective.hessian_columns(theta, indices)[indices]
    matrix = 4 * u[:, None] * (hessian + hessian.T) / 2 * u
    if fields is not None:
        root = np.sqrt(fields[indices])
        matrix = matrix / root / root[:, None]
    (value,), vectors = eigh(matrix, subset_by_index=[0, 0])
    last = indices.size - 1
    (highest,) = eigh(matrix, eigvals_only=True, subset_by_index=[last, last])
    vector, largest = vectors[:, 0], max(abs(value), abs(highest))
    residual = float(np.linalg.norm(matrix @ vector - value * vector))
    return SmallestCurvature(float(value), float(largest), vector, residual)


def _is_positive(found: SmallestCurvature, scale: float) -> bool:
    least = max(_FLAT * max(found.largest, scale), 10 * found.residual)
    return bool(found.eigenvalue > least)


def _refined(objective: Objective, theta: FloatArray, support: BoolArray) -> FloatArray:
    """Some of Newton's steps further towards the stationary point, in log|θ| on the support."""
    indices = np.flatnonzero(support)
    for _ in range(_NEWTON_STEPS):
        size = np.abs(theta[indices])
        hessian = objective.hessian_columns(theta, indices)[indices]
        try:
            step = np.linalg.solve(
                size[:, None] * hessian * size, size * objective.field(theta)[indices]
            )
        except np.linalg.LinAlgError:
            return theta
        moved = float(np.abs(step).max())
        if not _STILL < moved < _TOO_FAR:
            return theta
        theta = theta.copy()
        theta[indices] += size * step
    return theta


def strict_minimum(
    objective: Objective,
    theta: FloatArray,
    support: BoolArray,
    stage: int,
    names: tuple[str, ...],
    fields: FloatArray,
) -> Verdict:
    """Verdict on L(ũ, s ⊙ ũ) − L(θ^k) ≥ c_k ‖u^k − ũ‖² near u^k on its support.

    The margin is c_k, half the smallest eigenvalue of the Hessian in u. Near an inflection, or a
    minimum of fourth order, it is positive too, and only seems so: Newton's method goes on towards
    the point, and the curvature goes to 0 with the distance, by a half or a third at every step.

    Parameters
    ----------
    objective : Objective
        The loss.
    theta : ndarray, shape (p,)
        The stationary point, to the accuracy at which it was found.
    support : ndarray of bool, shape (p,)
        Its support.
    stage : int
        Number of the stage, from 1.
    names : tuple of str
        Names of the products.
    fields : ndarray, shape (p,)
        Largest |g_i| on the plateaus before, which is what the curvature is compared with.
    """
    indices = np.flatnonzero(support)
    if indices.size == 0:
        return Verdict(stage, True, np.inf, "no product is active: nothing to move")
    found = smallest_curvature(objective, theta, support)
    c = found.eigenvalue / 2
    values = {"c": c, "residual": found.residual, "largest": found.largest}
    scaled = smallest_curvature(objective, theta, support, fields=fields)
    # It may be small only for the units of its features.
    passed = c > 0 and (_is_positive(found, 4 * fields.max()) or _is_positive(scaled, 4.0))
    further = _refined(objective, theta, support)
    left = smallest_curvature(objective, further, support, fields=fields).eigenvalue
    values["remaining"] = left / scaled.eigenvalue if scaled.eigenvalue else 0.0
    vanishes = passed and values["remaining"] < _PERSISTS
    order = np.argsort(-np.abs(found.vector))
    top = abs(found.vector[order[0]])
    involved = [names[indices[i]] for i in order[:5] if abs(found.vector[i]) > _NAMED * top]
    numbers = f"c = {c:.3g} (eigenvalue residual {found.residual:.0e}, largest {found.largest:.3g})"
    if vanishes:
        message = (
            f"{numbers}: the curvature along {', '.join(involved)} vanishes towards the stationary "
            f"point ({values['remaining']:.0e} of it is left {_NEWTON_STEPS} of Newton's steps "
            "further): an inflection, or a minimum of higher order, where plateaus end or begin "
            "otherwise than the theory says"
        )
    elif passed:
        message = f"{numbers}, softest along {', '.join(involved)}"
    elif found.eigenvalue < -_FLAT * found.largest:
        message = f"{numbers}: a saddle, which falls along {', '.join(involved)}"
    else:
        message = (
            f"{numbers}: flat along {', '.join(involved)}, where the loss does not change; is one "
            "of these features a combination of the others?"
        )
    return Verdict(stage, bool(passed and not vanishes), c, message, values)
