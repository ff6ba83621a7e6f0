"""The state of the surrogate method: one immutable value, and what no step changes."""

from dataclasses import dataclass, replace

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.errors import FlowError
from dynalyze.flow.steppers.guarded import describe_bad_field
from dynalyze.flow.steppers.surrogate.columns import Columns, first_columns, selected
from dynalyze.flow.steppers.surrogate.remainder import Sample
from dynalyze.models.protocol import Objective

_FIRST_ARC = 1e-3  # of the first step, in units of the natural length


@dataclass(frozen=True, eq=False)
class Problem:
    """What does not change from step to step."""

    objective: Objective
    up: FloatArray  # (p,), θ = e^{up + 2z} − e^{down − 2z}
    down: FloatArray  # (p,)
    units: FloatArray  # (p,), units of the fields
    first_fields: FloatArray  # (p,), largest field at the start, in the units of each
    length: float  # arc length over which the field changes at the start
    tol: float  # error of z that a step may make
    order: int  # highest number m of nodes of the predictor; the method's order is m + 1
    quadratic: bool  # whether the loss is quadratic in θ, so that the remainder is constant

    def theta(self, z: FloatArray) -> FloatArray:
        """θ(z), (p,)."""
        return np.exp(self.up + 2 * z) - np.exp(self.down - 2 * z)

    def evaluate(self, s: float, z: FloatArray) -> Sample:
        """Evaluate the field g(θ(z)) at arc length s."""
        theta = self.theta(z)
        return Sample(s, theta, np.array(self.objective.field(theta), dtype=float))

    def select(self, columns: Columns, sample: Sample, z: FloatArray) -> Columns:
        """Choose the active coordinates anew at z, where the field is that of the sample."""
        log_theta = np.maximum(self.up + 2 * z, self.down - 2 * z)
        growth = 2 * np.sign(z) * sample.field
        return selected(
            self.objective,
            columns,
            sample,
            log_theta,
            growth,
            self.units,
            self.first_fields,
            self.tol,
        )


@dataclass(frozen=True, eq=False)
class State:
    """A point of the path, and all that the next step is made from."""

    t: float  # flow time
    z: FloatArray  # (p,), log coordinates
    s: float  # arc length
    samples: tuple[Sample, ...]  # of the field, newest first
    columns: Columns
    arc: float  # arc length of the last step
    inner_step: float  # of the surrogate's integrator, to try first


def start(
    objective: Objective,
    up: FloatArray,
    down: FloatArray,
    units: FloatArray,
    t: float,
    z: FloatArray,
    tol: float,
    order: int,
) -> tuple[Problem, State]:
    """Problem and state at the start of an integration.

    Raises
    ------
    FlowError
        If the field is not finite there.
    """
    quadratic = bool(getattr(objective, "is_quadratic", False))
    problem = Problem(objective, up, down, units, np.ones(z.size), 1.0, tol, order, quadratic)
    sample = problem.evaluate(0.0, z)
    if not np.all(np.isfinite(sample.field)):
        raise failure(t, describe_bad_field(objective, sample.theta, sample.field))
    rate = float(np.max(np.abs(sample.field) / units, initial=0.0)) or 1.0
    problem = replace(problem, first_fields=rate * units)
    mobile = np.flatnonzero(np.maximum(up, down) > -np.inf)
    columns = problem.select(first_columns(objective, sample, mobile, units), sample, z)
    known = np.flatnonzero(columns.weight)
    length = np.max(np.abs(sample.field[known]) / columns.weight[known], initial=0.0)
    natural = max(float(length), columns.size(sample)) or 1.0
    problem = replace(problem, length=natural)
    inner_step = 1e-3 / float(np.max(problem.first_fields))
    return problem, State(t, z, 0.0, (sample,), columns, _FIRST_ARC * natural, inner_step)


def failure(t: float, why: str) -> FlowError:
    """Error of an integration that ends at flow time t."""
    return FlowError(
        f"the flow cannot be continued from t = {t}: {why}. Try a larger tol, or another method"
    )


def no_step_left(state: State, t_bound: float, longest: float, broken: str) -> FlowError:
    """Error of a step that leads nowhere, as it may last no longer than `longest`."""
    if state.t >= t_bound:
        return failure(state.t, f"t_bound={t_bound} is reached")
    if np.isfinite(longest):
        return failure(state.t, f"no step is short enough: beyond, {broken}")
    return failure(state.t, "nothing moves any more, however long the flow time")
