"""Orbits that start off the unstable manifold, or that no prediction could bring to an end."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.errors import FlowError
from dynalyze.flow.coordinates import BalancedCoordinates
from dynalyze.flow.rest import SHORT_STEP, newton_step
from dynalyze.models.counted import counted
from dynalyze.models.protocol import Objective
from dynalyze.stages.orbit import orbit_steps

_AT_REST = 1e-6  # |g| that counts as 0, relative to max|g(0)|
_SURELY_AT_REST = 1e-12  # likewise, where what the field fades to is the question
_GONE = 1e-6  # |θ| of a shrinking product that counts as 0, relative to the largest
_FAR = 1e12  # products beyond this are on their way to infinity


class Fate(StrEnum):
    """How a followed orbit ended."""

    ARRIVED = "arrived"  # at the point asked about
    RESTS = "rests elsewhere"
    RUNS_AWAY = "runs away"  # no stationary point at a finite distance
    UNDECIDED = "undecided"  # out of steps


@dataclass(frozen=True)
class FollowedOrbit:
    """Where the flow of eq. (11) goes from a given point."""

    fate: Fate
    theta: FloatArray  # (p,), where it was last
    time: float  # flow time


def follow(
    objective: Objective,
    start: FloatArray,
    *,
    field_scale: float,
    target: FloatArray | None = None,
    within: float = 0.0,
    max_steps: int = 2000,
) -> FollowedOrbit:
    """Follow the balanced flow from θ = `start`, whose support and signs it keeps.

    Parameters
    ----------
    objective : Objective
        The loss.
    start : ndarray, shape (p,)
        Where it begins.
    field_scale : float
        max|g(0)|, in units of which fields count as 0.
    target : ndarray, shape (p,), optional
        End as arrived when the largest |θ_i − target_i| is at most `within`.
    max_steps : int
        Steps after which it is left undecided.
    """
    objective = counted(objective)  # and so interruptible
    chart = BalancedCoordinates(np.sign(start))
    theta, time = start, 0.0
    at_rest = _SURELY_AT_REST if target is None else _AT_REST
    try:
        for segment, z, field in islice(orbit_steps(objective, chart, start), max_steps):
            time, theta = segment.t_end, chart.theta(z)
            if target is not None and np.abs(theta - target).max() <= within:
                return FollowedOrbit(Fate.ARRIVED, theta, time)
            size = np.abs(theta)
            if size.max() > _FAR:
                return FollowedOrbit(Fate.RUNS_AWAY, theta, time)
            shrinking = (chart.signs * field < 0) & (size < _GONE * size.max())
            active = chart.support & ~shrinking
            fastest = np.abs(field[active]).max(initial=0.0)
            if fastest > at_rest * field_scale:
                continue
            S = np.flatnonzero(active)
            step = newton_step(objective, theta, field, S, at_rest) / theta[S]
            if np.abs(step).max(initial=0.0) <= SHORT_STEP:
                return FollowedOrbit(Fate.RESTS, theta, time)
            # Where there is no stationary point the field fades, and Newton's step does not.
            if fastest <= _SURELY_AT_REST * field_scale:
                return FollowedOrbit(Fate.RUNS_AWAY, theta, time)
    except FlowError:
        return FollowedOrbit(Fate.RUNS_AWAY, theta, time)
    return FollowedOrbit(Fate.UNDECIDED, theta, time)
