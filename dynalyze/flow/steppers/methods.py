"""From what a user gives as `method` to a factory of steppers: a name, or one of the user's own."""

import inspect
from functools import partial

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.errors import InvalidInputError
from dynalyze.flow.coordinates import BalancedCoordinates, LogCoordinates
from dynalyze.flow.steppers.protocol import Segment, Stepper, StepperFactory
from dynalyze.models.protocol import Objective

METHODS = ("surrogate", "CVODE", "LSODA", "BDF", "Radau")
_HOW = "see dynalyze.flow.steppers.protocol, and CONTRIBUTING.md for an example"


def stepper_factory(method: str | StepperFactory) -> StepperFactory:
    """Return the factory of a name in `METHODS`, or the given one with its steps checked.

    Raises
    ------
    InvalidInputError
        If the name is not known, or what was given cannot be called as a `StepperFactory`.
    """
    if method == "auto":
        method = METHODS[0]
    if isinstance(method, str) and method in METHODS:
        return partial(_builtin, method)
    if isinstance(method, str) or not callable(method):
        raise InvalidInputError(
            f"method={method!r} is not known: choose one of {', '.join(map(repr, METHODS))}, "
            f'"auto", or give a stepper factory; {_HOW}'
        )
    try:
        signature = inspect.signature(method)
    except ValueError:  # code in C may have none
        return partial(_checked, method)
    try:
        signature.bind(None, None, None, t=0.0, t_bound=1.0, tol=1e-6)
    except TypeError as error:
        raise InvalidInputError(
            f"method={method_name(method)} takes {signature}, and would be called as "
            f"method(objective, chart, z, t=…, t_bound=…, tol=…) ({error}): {_HOW}"
        ) from error
    return partial(_checked, method)


def method_name(method: str | StepperFactory) -> str:
    """Name of a method, to be kept beside its results."""
    if method == "auto":
        return METHODS[0]
    return method if isinstance(method, str) else getattr(method, "__qualname__", repr(method))


def _builtin(
    method: str,
    objective: Objective,
    chart: LogCoordinates | BalancedCoordinates,
    z: FloatArray,
    *,
    t: float,
    t_bound: float,
    tol: float,
) -> Stepper:
    if method == "CVODE":
        from dynalyze.flow.steppers.cvode import CvodeStepper

        return CvodeStepper(objective, chart, z, t=t, t_bound=t_bound, tol=tol)
    if method == "surrogate":
        from dynalyze.flow.steppers.surrogate import SurrogateStepper

        return SurrogateStepper(objective, chart, z, t=t, t_bound=t_bound, tol=tol)
    from dynalyze.flow.steppers.scipy import ScipyStepper

    return ScipyStepper(objective, chart, z, t=t, t_bound=t_bound, method=method, tol=tol)


def _checked(
    method: StepperFactory,
    objective: Objective,
    chart: LogCoordinates | BalancedCoordinates,
    z: FloatArray,
    *,
    t: float,
    t_bound: float,
    tol: float,
) -> Stepper:
    # The stepper may step in place; the caller's z stays.
    made = method(objective, chart, np.array(z), t=t, t_bound=t_bound, tol=tol)
    return _CheckedStepper(made, method_name(method), t, z)


class _CheckedStepper:
    """A stepper of the user's own, which would else fail, or never end, deep inside a run."""

    def __init__(self, stepper: Stepper, name: str, t: float, z: FloatArray) -> None:
        self._stepper, self._name, self._p = stepper, name, len(z)
        lacking = [
            part for part in ("t", "z", "field", "n_steps", "step") if not hasattr(stepper, part)
        ]
        if lacking:
            raise self._error(
                f"returned a {type(stepper).__name__} without {', '.join(lacking)}", "a Stepper"
            )
        if not (stepper.t == t and np.array_equal(self.z, z)):
            raise self._error(
                f"begins at t = {stepper.t}, or not at the z given", f"a start from t = {t} and z"
            )

    @property
    def t(self) -> float:
        return self._stepper.t

    @property
    def z(self) -> FloatArray:
        return self._vector("z", self._stepper.z)

    @property
    def field(self) -> FloatArray:
        return self._vector("field", self._stepper.field)

    @property
    def n_steps(self) -> int:
        return self._stepper.n_steps

    def step(self) -> Segment:
        before, steps = self.t, self.n_steps
        segment = self._stepper.step()
        start, end = (getattr(segment, part, None) for part in ("t_start", "t_end"))
        if not (start == before and end == self.t > before and np.isfinite(self.t)):
            raise self._error(
                f"made a step from t = {before} to t = {self.t}, and returned a segment "
                f"({type(segment).__name__}) from t_start={start} to t_end={end}",
                "a segment that spans the step, and ends later than it starts",
            )
        if self.n_steps < steps:
            raise self._error(
                f"counted n_steps={steps}, then {self.n_steps}", "no less than before"
            )
        inner = np.array([before, self.t])
        samples = np.asarray(segment.z(inner) if callable(getattr(segment, "z", None)) else None)
        if samples.shape != (2, self._p):
            raise self._error(
                f"returned a segment whose z(t) has the shape {samples.shape} at two times",
                f"shape (2, {self._p})",
            )
        return segment

    def _vector(self, part: str, value: FloatArray) -> FloatArray:
        copy = np.array(value)  # a stepper that steps in place must not move what was kept
        if copy.shape != (self._p,):
            raise self._error(f"has {part} of shape {copy.shape}", f"shape ({self._p},)")
        return copy

    def _error(self, received: str, expected: str) -> InvalidInputError:
        return InvalidInputError(
            f"method={self._name} {received}, where {expected} is expected: {_HOW}"
        )
