"""Eq. (11): the transition from one stationary point to the next, along the orbit ψ.

The orbit leaves θ^k along its unstable direction, with the activated product at a small
size, and is followed in log coordinates until Newton's method, started on the orbit,
certifies the stationary point at which it ends. The products off the support do not move it;
how their log coordinates drift meanwhile, ∫ g_i(ψ) ds, is what the times at finite α need.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dynalyze._typing import FloatArray, IntArray
from dynalyze.errors import FlowError
from dynalyze.flow.coordinates import BalancedCoordinates
from dynalyze.flow.stepper import Stepper
from dynalyze.models.counted import CountedObjective
from dynalyze.models.protocol import Objective
from dynalyze.stages.orbit import ARRIVED, Orbit, OrbitPath
from dynalyze.stages.stationary import StationaryPoint, polish

ONSET = 1e-6  # size of the activated product at the onset, relative to its natural scale
_NEGLIGIBLE = 1e-4  # a shrinking product this small, against its largest value, may have left
_FIRST_TRY = 1e-3  # try Newton when the rate of loss has fallen by this factor from its peak,
_RETRY = 0.04  # and again when it has fallen by this one since the last try
_LATEST = 1e15  # flow time to give up at, in units of 1/|g| of the activated product

StepperFactory = Callable[[Objective, BalancedCoordinates, FloatArray], Stepper]


@dataclass(frozen=True)
class Transition:
    """A transition that ended at a certified stationary point."""

    end: StationaryPoint
    left: tuple[int, ...]  # products of the support that went to 0
    orbit: Orbit


@dataclass(frozen=True)
class NoLimit:
    """A transition without a certified limit, and what was tried."""

    message: str


def limit_point(
    objective: Objective,
    start: StationaryPoint,
    coordinate: int,
    sign: int,
    *,
    tolerance: float,
    stepper: StepperFactory,
    max_steps: int = 20_000,
    max_evaluations: int = 2_000,
) -> Transition | NoLimit:
    """θ^{k+1} of eq. (11): where the flow goes from θ^k when one more product activates.

    Parameters
    ----------
    objective : Objective
        The loss as a function of the products.
    start : StationaryPoint
        θ^k with its Hessian columns.
    coordinate, sign : int
        i_k and sgn g_{i_k}(θ^k).
    tolerance : float
        Largest |g| on the support at the limit.
    stepper : callable
        Makes the integrator from (objective, chart, z0).
    max_steps, max_evaluations : int
        Steps, and evaluations of the field, after which the limit is given up.
    """
    objective = CountedObjective(objective)
    latest = _LATEST / abs(start.field[coordinate])
    theta = onset(objective, start, coordinate, sign)
    if not 0 < abs(theta[coordinate]) < np.inf:
        return NoLimit(
            f"with |g| = {abs(start.field[coordinate]):.3g} its natural size, |g| over "
            "the curvature of the loss, is beyond the range of floats: rescale the data"
        )
    chart = BalancedCoordinates(np.sign(theta))
    support = np.flatnonzero(theta)
    path = OrbitPath(chart)
    peak = np.abs(theta)
    rate_peak, rate_tried = 0.0, np.inf
    why = "the rate of loss never fell, so Newton's method was not tried"
    try:
        flow = stepper(objective, chart, chart.z_of_theta(theta))
        while path.n_steps < max_steps and objective.nfev < max_evaluations and flow.t < latest:
            path.add(flow.step(), flow.z)
            theta, field = chart.theta(flow.z), flow.field
            peak = np.maximum(peak, np.abs(theta))
            # −dL/dt = 2 Σ |θ_i| g_i²: does not depend on the units of the features, and
            # products that leave drop out of it by themselves
            rate = float(2 * np.abs(theta) @ field**2)
            rate_peak = max(rate_peak, rate)
            if rate > min(_FIRST_TRY * rate_peak, _RETRY * rate_tried):
                continue
            rate_tried = rate
            shrinking = (chart.signs * field < 0) & (np.abs(theta) < _NEGLIGIBLE * peak)
            end = _certify(objective, theta, chart.signs, np.flatnonzero(shrinking), tolerance)
            if isinstance(end, StationaryPoint):
                left = tuple(int(i) for i in np.setdiff1d(support, end.support))
                return Transition(end, left, path.orbit(end, coordinate))
            why = end
    except FlowError as error:
        why = str(error)
    return NoLimit(
        f"the orbit was followed for {path.n_steps} steps and {objective.nfev} evaluations, to "
        f"flow time {path.t_end:.3g} after the activation and products up to "
        f"{np.abs(theta).max():.3g}, and found no limit: {why}"
    )


def onset(objective: Objective, start: StationaryPoint, coordinate: int, sign: int) -> FloatArray:
    """Point on the unstable manifold of θ^k at which the activated product is just visible.

    The product has the size `ONSET` times the smaller of two scales: that at which it would
    balance its own field, |g_j|/|H_jj|, and that at which it would move some active product
    by its own size. To first order the active products then stand at θ^k + v ε with
    v = −(H_SS + |g_j| diag(1/|θ_S|))⁻¹ H_Sj, the direction in which both grow like e^{2|g_j| t}.

    Returns
    -------
    ndarray, shape (p,)
    """
    active, growth = start.support, abs(start.field[coordinate])
    column = objective.hessian_columns(start.theta, np.array([coordinate]))[:, 0]
    scales = [growth / abs(column[coordinate])] if column[coordinate] != 0 else [1.0]
    direction = np.zeros(active.size)
    if active.size:
        size = np.abs(start.theta[active])
        root = np.sqrt(size)
        scaled = root[:, None] * start.hessian[active] * root + growth * np.eye(active.size)
        direction = -root * np.linalg.solve(scaled, root * column[active])
        with np.errstate(divide="ignore"):
            scales.append(float((size / np.abs(direction)).min()))
    epsilon = ONSET * min(scales)
    theta = start.theta.copy()
    theta[active] += sign * epsilon * direction
    theta[coordinate] = sign * epsilon
    return theta


def _certify(
    objective: Objective,
    theta: FloatArray,
    signs: FloatArray,
    leaving: IntArray,
    tolerance: float,
) -> StationaryPoint | str:
    """Stationary point that certainly attracts the orbit at θ, or why there is none yet.

    Products in `leaving` are taken to go to 0, but for those that the field at the point so
    found would move away from 0 again: they shrink to a small value, and stay.
    """
    while True:
        staying = np.setdiff1d(np.flatnonzero(signs), leaving)
        end = polish(objective, theta, staying, tolerance=tolerance)
        if isinstance(end, str):
            return end
        outward = signs[leaving] * end.field[leaving] >= -tolerance
        if not outward.any():
            break
        leaving = leaving[~outward]
    moved = np.abs(np.log(end.theta[staying] / theta[staying]))
    if moved.size and moved.max() > ARRIVED:
        return f"Newton's method moves a product by {np.expm1(moved.max()):.1%}"
    if end.curvature <= 0:
        return f"the nearest stationary point is a saddle (relative curvature {end.curvature:.1e})"
    return end
