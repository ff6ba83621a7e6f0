"""Assumption 4.4 {4.5}: from all around the plateau, the flow goes to the same next one."""

from dataclasses import dataclass

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray
from dynalyze.checks.orbits import Fate, follow
from dynalyze.checks.report import Verdict
from dynalyze.models.protocol import Objective

_ARRIVED = 0.2  # an orbit is taken to stay within ε once it has been within this much of it
_RATIO = 1.02  # bisection ends when the radii that pass and fail are this close
_SMALLEST = 1e-6  # of the products at a start, relative to the largest: never exactly 0


@dataclass(frozen=True)
class Robustness:
    """Settings of the check."""

    trials: int  # N starts, half of them on the sphere and half inside
    seed: int
    epsilon: float  # distance from θ^{k+1} that counts as arrived, relative to max|θ^{k+1}|
    required: float  # radius at which all starts must arrive, relative to the scale of u
    largest: float  # radius beyond which it is not looked, likewise
    max_steps: int


def noise_robust(
    objective: Objective,
    start: FloatArray,
    activated: tuple[int, int],
    end: FloatArray,
    stage: int,
    field_scale: float,
    settings: Robustness,
) -> Verdict:
    """Verdict on the flows from (ũ, s ⊙ ũ), ũ within δ of u^k on its support and i_k.

    The largest δ at which all N starts arrive at θ^{k+1} is found by bisection, along fixed
    directions; radii are in units of the larger of ‖u^k‖ and ‖u^{k+1} − u^k‖.

    Parameters
    ----------
    objective : Objective
        The loss.
    start, end : ndarray, shape (p,)
        θ^k and θ^{k+1}.
    activated : (int, int)
        i_k and the sign with which it grows.
    stage : int
        Number of the stage, from 1.
    field_scale : float
        max|g(0)|.
    settings : Robustness
        Trials, seed, tolerances.
    """
    signs = np.sign(start)
    signs[activated[0]] = activated[1]
    u, u_end = np.sqrt(np.abs(start)), np.sqrt(np.abs(end))
    scale = float(max(np.linalg.norm(u), np.linalg.norm(u_end - u)))
    directions = _directions(signs != 0, settings)
    within = settings.epsilon * float(np.abs(end).max())

    def arrives(direction: FloatArray, delta: float) -> bool:
        moved = np.abs(u + delta * direction)
        moved = np.where(signs != 0, np.maximum(moved, _SMALLEST * scale), 0.0)
        orbit = follow(
            objective,
            signs * moved**2,
            field_scale=field_scale,
            target=end,
            within=_ARRIVED * within,
            max_steps=settings.max_steps,
        )
        close = np.abs(orbit.theta - end).max() <= within
        return orbit.fate is Fate.ARRIVED or (orbit.fate is Fate.RESTS and bool(close))

    def all_arrive(delta: float) -> bool:
        return all(arrives(direction, delta) for direction in directions)

    low, high = settings.required * scale, settings.largest * scale
    passed = all_arrive(low)
    bounded = True
    if passed and all_arrive(high):
        low, bounded = high, False
    elif passed:
        while high / low > _RATIO:
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if all_arrive(middle) else (low, middle)
    values = {
        "radius": low if passed else 0.0,
        "relative_radius": low / scale if passed else 0.0,
        "trials": float(settings.trials),
        "seed": float(settings.seed),
    }
    what = f"{settings.trials} starts (seed {settings.seed})"
    if passed:
        message = (
            f"all of {what} within δ = {'' if bounded else 'at least '}{low:.3g} of u "
            f"({low / scale:.2g} of its size) arrive within {settings.epsilon:.0%} of the next "
            "plateau"
        )
    else:
        message = (
            f"not all of {what} within δ = {low:.3g} of u ({low / scale:.2g} of its size) arrive "
            f"within {settings.epsilon:.0%} of the next plateau: noise can lead elsewhere"
        )
    return Verdict(stage, passed, values["relative_radius"], message, values)


def _directions(support: BoolArray, settings: Robustness) -> FloatArray:
    """Fixed directions on the support, (trials, p): unit vectors, every second one shortened."""
    rng = np.random.default_rng(settings.seed)
    directions = rng.standard_normal((settings.trials, support.size)) * support
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    dimension = max(int(support.sum()), 1)
    inside = rng.random(settings.trials) ** (1 / dimension)
    inside[::2] = 1.0
    return directions * inside[:, None]
