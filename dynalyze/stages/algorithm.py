"""Algorithm 1: plateau, activation, transition, and again, until no product has a field."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray
from dynalyze._core.interrupts import deliver
from dynalyze._core.status import Status
from dynalyze.errors import FlowError, UndecidedTransitionError
from dynalyze.flow.rest import StationaryPoint
from dynalyze.flow.steppers.protocol import StepperFactory
from dynalyze.models.counted import CountedObjective
from dynalyze.models.protocol import Objective, relative_field_units
from dynalyze.stages.clocks import Clock
from dynalyze.stages.equations import Activation, activation
from dynalyze.stages.orbit import follow_to
from dynalyze.stages.sign_constrained import SignConstrainedLimits
from dynalyze.stages.transition import NoLimit, Transition, limit_point

_UNRELATED = 1e-10  # correlation of targets with inputs that their rounding can make
_ROUNDING = 1e-14  # of a field, relative to its natural size


@dataclass(frozen=True)
class Stage:
    """One activation and the transition that it starts."""

    onset_time: float  # of the transition, in the clock's own unit
    activation: Activation
    transition: Transition
    b: FloatArray  # (p,), log-scales at the start of the plateau that it leads to

    def without_hessians(self) -> "Stage":
        """Return the same stage; what the next one does not need is released."""
        end = self.transition.end.without_hessian()
        return replace(self, transition=replace(self.transition, end=end))


@dataclass(frozen=True)
class Ending:
    """Why the recursion stopped."""

    status: Status
    message: str


@dataclass(frozen=True)
class Options:
    """Tolerances and budgets of the recursion."""

    negligible: "NegligibleField"
    tie_rtol: float  # relative gap between winner and runner-up below which it is a tie
    max_stages: int | None


class NegligibleField:
    """Fields that count as 0 off the support.

    They are a fraction of the largest at the origin, in the units of each product's feature, or
    what rounding alone can make.

    Parameters
    ----------
    objective : Objective
        The loss.
    origin : StationaryPoint
        θ^0 = 0.
    fraction : float
        Of max|g(0)|.
    """

    def __init__(self, objective: Objective, origin: StationaryPoint, fraction: float) -> None:
        self.units = relative_field_units(objective)  # (p,)
        self._rounding = getattr(objective, "field_rounding", None)
        j = int(np.argmax(np.abs(origin.field)))
        largest = float(np.abs(origin.field[j]))
        column = origin.column(j)
        # By Cauchy and Schwarz |g_j| ≤ √(2 L H_jj) for a sum of squares of what is linear in θ.
        natural = float(np.sqrt(2 * abs(origin.value)) * np.sqrt(abs(column[j])))
        natural /= float(self.units[j])
        if not natural < np.inf:  # what overflows is reported when the product activates
            natural = 0.0
        unrelated = largest <= _UNRELATED * natural * self.units[j]
        floor = (_UNRELATED if unrelated else _ROUNDING) * natural
        self._chosen = np.maximum(fraction * largest, floor) * self.units  # (p,)

    def __call__(self, theta: FloatArray) -> FloatArray:
        """|g_i| that counts as 0 at θ; shape (p,)."""
        if self._rounding is None:
            return self._chosen
        rounding = self._rounding(theta)
        return np.maximum(self._chosen, np.where(np.isfinite(rounding), rounding, 0.0))


Path = tuple[tuple[int, int], ...]  # products that have activated, with their signs


class TransitionCache:
    """Finds transitions, and keeps what a second clock will ask for again.

    Where the loss is quadratic in θ the limit is a least-squares problem with signs, and its orbit
    is followed only for jump times; everywhere else the orbit leads to the limit.

    Parameters
    ----------
    objective : CountedObjective
        The loss.
    method : str or StepperFactory
        Integrator of the orbits.
    deadline : float
        Of `time.monotonic`; after it no transition is begun, and no orbit followed any further.
    tolerance : float
        Largest |g| on the support of a limit point.
    follow : bool
        Whether a clock of a given initialization will ask for them too: transitions are kept, and
        followed even where their limit is known without.
    """

    def __init__(
        self,
        objective: CountedObjective,
        method: str | StepperFactory,
        *,
        deadline: float,
        tolerance: float,
        follow: bool,
    ) -> None:
        self._objective, self._method = objective, method
        self.deadline, self._tolerance, self._follow = deadline, tolerance, follow
        self._known: dict[Path, Transition | NoLimit] = {}
        self._signed = None
        if objective.is_quadratic:
            self._signed = SignConstrainedLimits(objective, objective.support_minimizer())

    def __call__(
        self, path: Path, start: StationaryPoint, negligible: FloatArray
    ) -> Transition | NoLimit:
        """Transition from `start`, reached by path[:-1], when path[-1] = (j, sign) activates.

        `negligible`, shape (p,), is the |g_i| that counts as 0 at `start`.

        Raises
        ------
        UndecidedTransitionError
            If it would have to be computed, or is still being computed, after the deadline.
        """
        if path in self._known:
            return self._known[path]
        found = self._find(start, *path[-1], negligible)
        if self._follow:
            if isinstance(found, Transition) and found.orbit is None:
                found = self._with_orbit(start, *path[-1], found)
            self._known[path] = found
        return found

    def _find(
        self, start: StationaryPoint, coordinate: int, sign: int, negligible: FloatArray
    ) -> Transition | NoLimit:
        if time.monotonic() > self.deadline:
            raise UndecidedTransitionError("max_seconds passed")
        if self._signed is not None:
            return self._signed.limit_point(start, coordinate, sign, negligible)
        return limit_point(
            self._objective,
            start,
            coordinate,
            sign,
            negligible=negligible,
            tolerance=self._tolerance,
            method=self._method,
            deadline=self.deadline,
            precise=self._follow,
        )

    def _with_orbit(
        self, start: StationaryPoint, coordinate: int, sign: int, found: Transition
    ) -> Transition | NoLimit:
        try:
            orbit = follow_to(
                self._objective,
                start,
                coordinate,
                sign,
                found.end,
                method=self._method,
                deadline=self.deadline,
            )
        except FlowError as error:
            return NoLimit(f"its limit is known, the way there is not: {error}")
        return replace(found, orbit=orbit)


def recurse(
    origin: StationaryPoint,
    clock: Clock,
    transitions: TransitionCache,
    options: Options,
    names: tuple[str, ...],
    on_stage: Callable[[Stage], object],
) -> Ending:
    """Run Algorithm 1 from `origin` on `clock`.

    `on_stage` is called after every transition, and stops the recursion by returning something
    true.

    Returns
    -------
    Ending
        Status and the sentence that explains it.
    """
    point = origin
    path: Path = ()
    while True:
        deliver()
        k = len(path)
        active = np.zeros(point.theta.size, dtype=bool)
        active[point.support] = True
        negligible = options.negligible(point.theta)
        winner = activation(clock.waits(point.field, active, negligible), point.field)
        if winner is None:
            return _converged(point, active, negligible, names, k)
        if k == options.max_stages:
            return Ending(
                Status.MAX_STAGES, f"stopped after max_stages={k}; raise it for more stages"
            )
        gap = winner.runner_up_wait - winner.wait
        if gap <= options.tie_rtol * abs(winner.wait):
            return Ending(
                Status.TIE,
                f"tie at stage {k + 1}: {names[winner.coordinate]} and {names[winner.runner_up]} "
                f"activate within {gap:.1e} of one another after {winner.wait:.6g}, so which "
                "comes first is not determined (Assumption 4.2); are two features duplicates?",
            )
        path = (*path, (winner.coordinate, winner.sign))
        try:
            transition = transitions(path, point, negligible)
        except UndecidedTransitionError as budget:
            out_of_time = time.monotonic() > transitions.deadline
            return Ending(
                Status.MAX_SECONDS if out_of_time else Status.UNDECIDED,
                f"after {k} stages, when {names[winner.coordinate]} activates: {budget}; whether "
                "that ends at a limit point is not known",
            )
        if isinstance(transition, NoLimit):
            return Ending(
                Status.NO_LIMIT,
                f"no limit point at stage {k + 1}, when {names[winner.coordinate]} activates: "
                f"{transition.message}",
            )
        onset_time, b = clock.advance(point, active, winner, transition)
        if on_stage(Stage(onset_time, winner, transition, b)):
            return Ending(Status.CALLBACK, f"stopped by the callback after stage {k + 1}")
        point = transition.end


def _converged(
    point: StationaryPoint,
    active: BoolArray,
    negligible: FloatArray,
    names: tuple[str, ...],
    n_stages: int,
) -> Ending:
    sizes = np.where(active, 0.0, np.abs(point.field))
    with np.errstate(divide="ignore", invalid="ignore"):  # negligible is 0 only where the field is
        closest = int(np.argmax(np.where(sizes > 0, sizes / negligible, 0.0)))
    rest = float(sizes[closest])
    if n_stages == 0:
        message = (
            f"θ = 0 is stationary (largest |g| {rest:.1e}): nothing is learned within a time of "
            "log(1/α); are all targets zero, or uncorrelated with the inputs, or does every "
            "product enter squared or multiplied by others, which is learned later?"
        )
    elif active.all():
        message = "all products are active"
    else:
        message = (
            f"every field off the support counts as 0: the largest is that of {names[closest]}, "
            f"{rest:.1e}, within field_rtol of the first ({negligible[closest]:.1e})"
        )
    return Ending(Status.CONVERGED, message)
