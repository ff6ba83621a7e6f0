"""Algorithm 1: plateau, activation, transition, and again, until no product has a field."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dynalyze._typing import BoolArray, FloatArray
from dynalyze.models.protocol import Objective
from dynalyze.stages.clocks import Clock
from dynalyze.stages.recursion import Activation, activation
from dynalyze.stages.stationary import StationaryPoint
from dynalyze.stages.transition import NoLimit, StepperFactory, Transition, limit_point


class Status(StrEnum):
    """How a prediction ended; what was found before that is valid in every case."""

    CONVERGED = "converged"
    TIE = "tie"
    NO_LIMIT = "no limit point"
    BUDGET = "budget reached"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Stage:
    """One activation and the transition that it starts."""

    onset_time: float  # of the transition, in the clock's own unit
    activation: Activation
    transition: Transition


@dataclass(frozen=True)
class Ending:
    """Why the recursion stopped."""

    status: Status
    message: str


@dataclass(frozen=True)
class Limits:
    """Tolerances and budgets of the recursion."""

    zero: FloatArray  # (p,), |g_i| that counts as 0 off the support
    tie_tolerance: float  # relative gap between winner and runner-up below which it is a tie
    max_stages: int | None
    deadline: float  # of time.monotonic()


class Transitions:
    """Computes each transition once, however many clocks ask for it.

    Parameters
    ----------
    objective : Objective
        The loss.
    stepper : callable
        Makes the integrator of an orbit.
    tolerance : float
        Largest |g| on the support of a limit point.
    """

    def __init__(self, objective: Objective, stepper: StepperFactory, tolerance: float) -> None:
        self._objective = objective
        self._stepper = stepper
        self._tolerance = tolerance
        self._known: dict[tuple[tuple[int, int], ...], Transition | NoLimit] = {}

    def __call__(
        self, path: tuple[tuple[int, int], ...], start: StationaryPoint
    ) -> Transition | NoLimit:
        """Transition from `start`, reached by path[:-1], when path[-1] = (j, sign) activates."""
        if path not in self._known:
            coordinate, sign = path[-1]
            self._known[path] = limit_point(
                self._objective,
                start,
                coordinate,
                sign,
                tolerance=self._tolerance,
                stepper=self._stepper,
            )
        return self._known[path]

    def knows(self, path: tuple[tuple[int, int], ...]) -> bool:
        """Whether the transition at the end of `path` has been found, and costs nothing."""
        return path in self._known


def recurse(
    origin: StationaryPoint,
    clock: Clock,
    transitions: Transitions,
    limits: Limits,
    names: tuple[str, ...],
    on_stage: Callable[[Stage], object],
) -> Ending:
    """Run Algorithm 1 from `origin` on `clock`, calling `on_stage` after every transition.

    Returns
    -------
    Ending
        Status and the sentence that explains it.
    """
    point = origin
    path: tuple[tuple[int, int], ...] = ()
    while True:
        k = len(path)
        active = np.zeros(point.theta.size, dtype=bool)
        active[point.support] = True
        winner = activation(clock.waits(point.field, active, limits.zero), point.field)
        if winner is None:
            return _converged(point, active, limits.zero, names, k)
        if k == limits.max_stages:
            return Ending(Status.BUDGET, f"stopped after max_stages={k}; raise it for more stages")
        path = (*path, (winner.coordinate, winner.sign))
        if time.monotonic() > limits.deadline and not transitions.knows(path):
            return Ending(Status.BUDGET, f"max_seconds passed after {k} stages; raise it for more")
        gap = winner.runner_up_wait - winner.wait
        if gap <= limits.tie_tolerance * abs(winner.wait):
            return Ending(
                Status.TIE,
                f"tie at stage {k + 1}: {names[winner.coordinate]} and {names[winner.runner_up]} "
                f"activate within {gap:.1e} of one another after {winner.wait:.6g}, so which "
                "comes first is not determined (Assumption 4.2); are two features duplicates?",
            )
        transition = transitions(path, point)
        if isinstance(transition, NoLimit):
            return Ending(
                Status.NO_LIMIT,
                f"no limit point at stage {k + 1}, when {names[winner.coordinate]} activates: "
                f"{transition.message}",
            )
        clock.activate(point.field, active, winner)
        onset_time = clock.arrive(point, winner, transition)
        on_stage(Stage(onset_time, winner, transition))
        point = transition.end


def _converged(
    point: StationaryPoint,
    active: BoolArray,
    zero: FloatArray,
    names: tuple[str, ...],
    n_stages: int,
) -> Ending:
    sizes = np.where(active, 0.0, np.abs(point.field))
    with np.errstate(divide="ignore", invalid="ignore"):  # a zero of 0 has a field of 0
        closest = int(np.argmax(np.where(sizes > 0, sizes / zero, 0.0)))
    rest = float(sizes[closest])
    if n_stages == 0:
        message = (
            f"θ = 0 is stationary (largest |g| {rest:.1e}): nothing is ever learned; are all "
            "targets zero, or uncorrelated with the inputs, or does every product enter "
            "multiplied by others?"
        )
    elif active.all():
        message = "all products are active"
    else:
        message = (
            f"every field off the support counts as 0: the largest is that of {names[closest]}, "
            f"{rest:.1e}, within field_tolerance of the first ({zero[closest]:.1e})"
        )
    return Ending(Status.CONVERGED, message)
