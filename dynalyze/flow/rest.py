"""Where the flow rests: Newton's method on a support, what is flat, and what certifies an end.

A curvature counts as flat where it cannot be told from 0. After Newton's method that is rounding
alone, `ROUNDING` of the largest. Where a field up to some fraction of the largest still counts as
zero, a curvature of `_UNSEEN` of that fraction is flat too: a product would have to move many times
its size before the field showed it, while an exponential tail, whose curvature fades as its field
does, is not flat. Curvatures are compared on a diagonal scaled to ±1, whatever the units.
"""

import dataclasses
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray, IntArray
from dynalyze.models.protocol import Objective

ROUNDING = 1e-14  # curvatures this small against the largest are 0 to rounding
_UNSEEN = 1e-2  # of the fraction of the field that counts as zero: curvatures that are flat then
FIRST_STEP = 0.1  # change of log|θ| beyond which Newton's method is too far away to be tried
_CONTRACTION = 0.1  # of the residual in one step, with less of which the Hessian is renewed
_SHRINKING = 0.9  # part of the step before it that a step makes where they add up
_SETTLED = 1e-8  # change of log|θ| below which a residual that stays up is rounding
_FIELD_ROUNDING = 1e-13  # of g, in units of the largest of its terms
_LAST_STEP = 1e-4  # relative to each product, once Newton's method has converged
_PROBES = (1e-2, 1e-3, 1e-4, 1e-5)  # changes of log|θ| by which a soft direction is probed
_SOFT = 1e-3  # curvatures along log|θ| this small, against the loss at stake, are probed
_EXPLAINED = 0.5  # part of the field at a probe that a Hessian of full rank accounts for
_SINGULAR = (
    "the curvature of the loss vanishes along some direction of the support (Assumption 4.3 fails)"
)
SHORT_STEP = 1e-3  # a Newton step that confirms that the flow is at rest, relative to θ


@dataclass(frozen=True, eq=False, repr=False)
class StationaryPoint:
    """A point with g = 0 on `support` and θ = 0 elsewhere."""

    theta: FloatArray  # (p,)
    value: float  # loss there
    field: FloatArray  # (p,), g there; rounding on the support
    support: IntArray  # (k,)
    residual: float  # largest |g| on the support
    objective: Objective  # whose Hessian is evaluated when it is needed
    caveat: str = ""  # in what way the Hessian on the support is degenerate
    known_hessian: FloatArray | None = None  # (p, k), where it was evaluated already
    _columns: dict[int, FloatArray] = dataclasses.field(default_factory=dict)

    @cached_property
    def hessian(self) -> FloatArray:
        """Hessian columns of the support, shape (p, k)."""
        if self.known_hessian is not None:
            return self.known_hessian
        return self.objective.hessian_columns(self.theta, self.support)

    def column(self, i: int) -> FloatArray:
        """Hessian column of a product off the support, shape (p,)."""
        if i not in self._columns:
            self._columns[i] = self.objective.hessian_columns(self.theta, np.array([i]))[:, 0]
        return self._columns[i]

    def without_hessian(self) -> "StationaryPoint":
        """Return the same point; its Hessian is released."""
        return replace(self, known_hessian=None, _columns={})


@dataclass(frozen=True)
class Rejection:
    """Why a point is not one that the flow rests at."""

    reason: str
    conclusive: bool = False  # whether following the flow further would change nothing


def polish(
    objective: Objective,
    theta: FloatArray,
    support: IntArray,
    *,
    tolerance: float,
    longest_step: float = FIRST_STEP,
) -> StationaryPoint | Rejection:
    """Newton's method for g = 0 on `support`, from θ, the others set to 0.

    It goes on beyond `tolerance` for as long as a step lowers the residual, to rounding, and keeps
    the Hessian while the steps contract. Where the Hessian has a kernel, the point stays where it
    is along that.

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
    longest_step : float
        Change of log|θ| in one step beyond which the point is too far away.

    Returns
    -------
    StationaryPoint, or Rejection
        The reason why there is none.
    """
    signs = np.sign(theta[support])
    theta = np.where(np.isin(np.arange(theta.size), support), theta, 0.0)
    value, field = objective.value_and_field(theta)
    residual = _largest(field[support])
    columns, current = objective.hessian_columns(theta, support), True
    spectrum = scaled_spectrum(columns, support)
    moved = np.inf
    while True:
        trial = theta.copy()
        trial[support] += spectrum.solve(field[support])
        if np.any(np.sign(trial[support]) != signs):
            return Rejection("Newton's step changes a sign")
        before, moved = moved, _largest(np.log(trial[support] / theta[support]))
        if moved > longest_step:
            return Rejection(f"Newton's step moves a product by {np.expm1(moved):.1%}")
        trial_value, trial_field = objective.value_and_field(trial)
        trial_residual = _largest(trial_field[support])
        if not trial_residual < residual:
            break
        stagnating, current = trial_residual > _CONTRACTION * residual, False
        theta, value, field, residual = trial, trial_value, trial_field, trial_residual
        # At a degenerate minimum every step is a fixed part of the one before it.
        closing_in = _SETTLED < moved < _SHRINKING * before
        if residual <= tolerance and stagnating and not closing_in:
            break
        if stagnating:
            columns, current = objective.hessian_columns(theta, support), True
            spectrum = scaled_spectrum(columns, support)
    # Where units are far apart, the rounding of some g_i may be more than the tolerance.
    noise = _FIELD_ROUNDING * _largest(np.abs(columns[support]) @ np.abs(theta[support]))
    if not residual <= max(tolerance, noise):
        return Rejection(f"Newton's method stops at |g| = {residual:.1e}, above {tolerance:.1e}")
    point = StationaryPoint(theta, value, field, support, residual, objective)
    if current:
        point = replace(point, known_hessian=columns)
    # A field that fades like e^{−θ} is below any tolerance somewhere, but Newton's steps
    # there stay as long as they were: there is no stationary point at a finite distance.
    last = scaled_spectrum(point.hessian, support).solve(field[support])
    longest = _largest(last / theta[support])
    if not longest <= _LAST_STEP:
        return Rejection(
            f"Newton's steps do not shrink (last {longest:.1e} of a product): no finite minimum",
            conclusive=True,
        )
    return point


def rest(point: StationaryPoint, stake: float) -> StationaryPoint | Rejection:
    """The point with what is degenerate about it, or why the flow cannot rest there.

    Where the smallest curvature of L along log|θ| is small against the loss at stake, the field is
    probed on both sides along its direction. At a minimum it points back, more than the Hessian
    says if that vanishes; past an inflection it points on.

    Parameters
    ----------
    point : StationaryPoint
        From `polish`.
    stake : float
        Loss by which the transition to the point has lowered L.
    """
    S = point.support
    if not S.size:
        return point
    scaled = scaled_spectrum(point.hessian, S).eigenvalues
    relative = float(scaled[0] / np.abs(scaled).max())
    saddle = Rejection(
        f"the nearest stationary point is a saddle (relative curvature {relative:.1e})"
    )
    theta = point.theta[S]
    curvatures, directions = np.linalg.eigh(theta[:, None] * point.hessian[S] * theta)
    largest = max(stake, float(curvatures[-1]))
    if curvatures[0] > _SOFT * largest:
        return point
    falling = relative < -ROUNDING
    if falling and curvatures[0] < -_SOFT * largest:
        return saddle
    direction = directions[:, 0] / np.abs(directions[:, 0]).max()  # in log|θ|
    expected = float(curvatures[0] * direction @ direction)
    noise = _FIELD_ROUNDING * largest
    flat, points_back = True, False
    for h in _PROBES:
        ahead, behind = (_slope(point, direction, side * h) for side in (1, -1))
        if ahead < -noise and behind > noise:
            if h * expected > _EXPLAINED * (behind - ahead) / 2:
                return point
            points_back = True
        if falling and ahead > noise and behind < -noise:
            return saddle
        flat &= max(abs(ahead), abs(behind)) <= noise
    if flat or points_back:
        return replace(point, caveat=_SINGULAR)
    return Rejection(
        "the flow comes to rest from one side only, and the loss falls on beyond: an inflection, "
        "no minimum",
        conclusive=True,
    )


def _slope(point: StationaryPoint, direction: FloatArray, h: float) -> float:
    """−dL/dh at θ (1 + h d), for a direction d of shape (k,) on the support."""
    S = point.support
    step = point.theta[S] * direction
    theta = point.theta.copy()
    theta[S] += h * step
    return float(step @ point.objective.field(theta)[S])


@dataclass(frozen=True)
class Spectrum:
    """Eigendecomposition of the Hessian on a support, scaled to a diagonal of ±1.

    The scaling makes it independent of the units of the features, and keeps the signs of the
    eigenvalues.
    """

    scale: FloatArray  # (k,), 1/√|H_ii|
    eigenvalues: FloatArray  # (k,), ascending
    vectors: FloatArray  # (k, k)

    def regular(self, flat: float = ROUNDING) -> BoolArray:
        """Which eigenvalues are not flat, at this fraction of the largest or less; shape (k,)."""
        sizes = np.abs(self.eigenvalues)
        return sizes > max(flat, ROUNDING) * sizes.max(initial=0.0)

    def solve(self, field: FloatArray, flat: float = ROUNDING) -> FloatArray:
        """H⁻¹ g on the support, by the smallest step where H has a kernel; (k,) or (k, m)."""
        regular = self.regular(flat)
        inverse = np.where(regular, 1 / np.where(regular, self.eigenvalues, 1.0), 0.0)
        scaled = self.scale[:, None] * self.vectors
        solution: FloatArray = (scaled * inverse) @ (scaled.T @ field)
        return solution


def scaled_spectrum(columns: FloatArray, support: IntArray) -> Spectrum:
    """Spectrum of the Hessian on a support, from its columns of shape (p, k)."""
    hessian = columns[support]
    diagonal = np.abs(np.diagonal(hessian))
    scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    return Spectrum(scale, *np.linalg.eigh(scale[:, None] * hessian * scale))


def newton_step(
    objective: Objective, theta: FloatArray, field: FloatArray, support: IntArray, zero: float
) -> FloatArray:
    """Newton's step to the stationary point beside θ, along all that is not flat; shape (k,).

    Parameters
    ----------
    objective : Objective
        The loss.
    theta, field : ndarray, shape (p,)
        Where the flow is, and g there.
    support : ndarray of int, shape (k,)
        Products that move.
    zero : float
        Fraction of the largest field seen that counts as zero.
    """
    if not support.size:
        return np.zeros(0)
    columns = objective.hessian_columns(theta, support)
    return scaled_spectrum(columns, support).solve(field[support], _UNSEEN * zero)


def _largest(values: FloatArray) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def known_point(
    objective: Objective, theta: FloatArray, value: float, field: FloatArray
) -> StationaryPoint:
    """Return θ as the stationary point that it was found to be, with its loss and g there."""
    support = np.flatnonzero(theta)
    residual = float(np.abs(field[support]).max(initial=0.0))
    return StationaryPoint(theta, float(value), field, support, residual, objective)


def at_origin(objective: Objective) -> StationaryPoint:
    """θ^0 = 0, with an empty support."""
    theta = np.zeros(objective.n_products)
    return known_point(objective, theta, *objective.value_and_field(theta))
