"""One step of the surrogate method: from one immutable state to the next.

In dz/dt = g(θ(z)) the field g varies slowly with θ, and θ exponentially with z. So the Hessian
columns H of the active coordinates are frozen, and g(θ) ≈ P(s) − Hθ with P the polynomial of the
*remainder* g + Hθ through its last values, in the arc length s of θ. This surrogate is solved to
high accuracy (predictor), the field is evaluated once at its end, and the surrogate solved again
with the new value (corrector). docs/integrator.md derives it.
"""

from dataclasses import replace
from math import isclose
from typing import NamedTuple

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.flow.steppers.guarded import describe_bad_field
from dynalyze.flow.steppers.surrogate.columns import Columns, levels, renewed
from dynalyze.flow.steppers.surrogate.large import MANY, follow_many
from dynalyze.flow.steppers.surrogate.path import FAILED, THRESHOLD, Path, StoppingCriteria, follow
from dynalyze.flow.steppers.surrogate.remainder import (
    ROUNDING,
    Polynomial,
    Sample,
    error_sizes,
    extrapolation,
    newton_form,
)
from dynalyze.flow.steppers.surrogate.rosenbrock import Surrogate, newton_value
from dynalyze.flow.steppers.surrogate.state import Problem, State, failure, no_step_left

_TARGET = 0.5  # error of a step that is aimed at, in units of its tolerance
_CONVERGED = 0.3  # largest change that a further evaluation would make, in the same units
_INNER = 0.1  # error of an inner step, in the same units, beside others
_INNER_ALONE, _INNER_ALONE_LSODA = 5.0, 0.5  # where no other is made; LSODA makes all that it may
_FARTHEST = 0.1  # largest correction of z in any step
_SURPRISE = 0.2  # share of a correction beyond what was expected that may be wrong
_EXPECTED = 4.0  # factor by which a correction may exceed its estimate
_MOST_CORRECTIONS = 3  # evaluations in one attempt at a step
_MOST_ATTEMPTS = 40
_PATIENCE = 5  # attempts after which dear columns are renewed and the step shortened
_SHORTEST = 1e-12  # duration of a step, in units of the flow time, that still leads anywhere
_LATEST = 1e300  # flow time beyond which nothing can be represented
_SHORTEST_ARC = 1e-6  # that is expected again, in units of the largest |θ|


class Prediction(NamedTuple):
    """A free path of the surrogate."""

    path: Path
    nodes: FloatArray  # (n,), of the newest samples, newest first
    polynomial: Polynomial  # that was followed
    correction: float  # of z, as the interpolation error promises it


class Attempt(NamedTuple):
    """What came of the evaluations at the end of a predicted path."""

    path: Path | None  # corrected path, if the step is accepted
    samples: tuple[Sample, ...]  # newest first
    columns: Columns
    excess: float = 1.0  # factor by which errors were underestimated
    longest: float = np.inf  # duration of the step to try next
    broken: str = ""  # what is wrong with the field there


def step(problem: Problem, state: State, t_bound: float) -> tuple[State, Path]:
    """Make one accepted step.

    Parameters
    ----------
    problem : Problem
        What is integrated.
    state : State
        Where from.
    t_bound : float
        Flow time not to step beyond.

    Returns
    -------
    state : State
        The end of the step.
    path : Path
        The way there.

    Raises
    ------
    FlowError
        If the field is not finite wherever tried, or no step is small enough.
    """
    caution, longest, broken = 1.0, np.inf, "the field changes too fast"
    for attempt in range(_MOST_ATTEMPTS):
        duration = min(min(t_bound, _LATEST) - state.t, longest)
        if not state.t + duration > state.t or longest <= _SHORTEST * abs(state.t):
            raise no_step_left(state, t_bound, longest, broken)
        prediction = _predict(problem, state, duration, caution)
        path, newest = prediction.path, state.samples[0]
        if path.status == FAILED:
            state, longest = _simplified(problem, state, longest)
            continue
        if not state.t + path.t[-1] > state.t:
            raise failure(state.t, "it moves faster than float64 resolves the flow time")
        result = _correct(problem, state, prediction)
        if result.path is not None:
            after = _accepted(problem, state, result, path.status == THRESHOLD)
            if isclose(after.t, t_bound, rel_tol=1e-15):
                after = replace(after, t=t_bound)  # without the rounding of t
            return after, result.path
        columns, longest, broken = result.columns, result.longest, result.broken or broken
        caution *= result.excess
        if attempt >= (1 if columns.cheap else _PATIENCE) and columns.exact is not newest:
            columns = renewed(problem.objective, columns, newest)
        if attempt >= _PATIENCE:
            longest = min(longest, 0.3 * float(path.t[-1]))
        state = replace(state, columns=columns)
    raise failure(state.t, f"{_MOST_ATTEMPTS} attempts at a step failed")


def step_to(problem: Problem, state: State, t_end: float) -> tuple[State, Path]:
    """Make one step to a given time, at the highest order and without error control.

    It serves the study of convergence.
    """
    samples, columns = state.samples[: problem.order], state.columns
    nodes, newton = newton_form(samples, columns.exact, columns.active, columns.matrix)
    terms, duration = min(problem.order, len(nodes)), t_end - state.t
    polynomial = Polynomial(nodes, newton[:terms], np.inf)
    path = _follow_to(problem, state, columns, polynomial, duration, 0)
    sample = problem.evaluate(float(path.y[-1, -1]), state.z + path.y[-1, :-1])
    samples = (sample, *state.samples)
    nodes, newton = newton_form(samples, columns.exact, columns.active, columns.matrix)
    polynomial = Polynomial(nodes, newton[: terms + 1], np.inf)
    path = _follow_to(problem, state, columns, polynomial, duration, 0)
    return _accepted(problem, state, Attempt(path, samples, columns), reached=False), path


def _simplified(problem: Problem, state: State, longest: float) -> tuple[State, float]:
    """A state with a better or a simpler surrogate, after it could not be solved."""
    newest = state.samples[0]
    if state.columns.exact is not newest:
        return replace(state, columns=renewed(problem.objective, state.columns, newest)), longest
    if len(state.samples) > 1:
        return replace(state, samples=state.samples[:1]), longest
    longest = 1e-2 * min(longest, 1 / float(np.max(problem.first_fields)))
    return replace(state, inner_step=1e-3 * state.inner_step), longest


def _predict(problem: Problem, state: State, duration: float, caution: float) -> Prediction:
    """Follow the surrogate until its predicted error reaches the target."""
    columns, newest, tol = state.columns, state.samples[0], problem.tol
    samples = state.samples[: problem.order + 1]
    nodes, newton = newton_form(samples, columns.exact, columns.active, columns.matrix)
    fastest = float(np.max(problem.first_fields))
    sizes = error_sizes(nodes, newton, problem.order, fastest, problem.length)
    # within bounds whose powers are finite
    size = float(np.clip(max(columns.size(newest), 1e-4 * problem.length), 1e-30, 1e30))
    floor = ROUNDING * float(np.max(np.abs(newton[0]))) / size ** np.arange(len(sizes))
    sizes = np.clip(sizes, floor, 1e200) * caution
    polynomial = extrapolation(nodes, newton, sizes, state.s, state.arc)
    if problem.quadratic:  # the remainder is constant
        sizes, polynomial = np.zeros_like(sizes), Polynomial(nodes, newton[:1], np.inf)
    thresholds = levels(columns, newest.field, problem.units, problem.first_fields, tol)
    known = columns.weight > 0
    thresholds[known] += np.log(columns.weight[known])
    thresholds[columns.active] = np.inf
    stopping = StoppingCriteria(
        free=True,
        sizes=sizes,
        target=_TARGET * tol,
        predictor_target=min(_CONVERGED * tol / columns.contraction, _FARTHEST),
        thresholds=thresholds,
        resolution=columns.resolution(newest, tol, problem.length),
    )
    path = _follow_surrogate(problem, state, columns, polynomial, duration, stopping)
    m = len(polynomial.newton)
    inside = m < len(sizes) and sizes[m] > 0
    correction = sizes[m] * abs(path.integrals[2, m]) if inside else 0.0
    return Prediction(path, nodes, polynomial, float(correction))


def _correct(problem: Problem, state: State, prediction: Prediction) -> Attempt:
    """Evaluate the field at the end of a predicted path, and solve the surrogate with it."""
    path, nodes, polynomial, promised = prediction
    tol, known, columns = problem.tol, state.samples, state.columns
    duration, end, order = float(path.t[-1]), path.y[-1], path.order
    change, error, surprise = np.inf, 0.0, 0.0
    for iteration in range(_MOST_CORRECTIONS):
        sample = problem.evaluate(float(end[-1]), state.z + end[:-1])
        columns = columns.after_gradient()
        if not np.all(np.isfinite(sample.field)):
            broken = describe_bad_field(problem.objective, sample.theta, sample.field)
            return Attempt(None, known, columns, longest=0.1 * duration, broken=broken)
        noise = columns.resolution(sample, tol, problem.length)
        # A sample too close to the newest one takes its place, and adds nothing to the degree.
        close = abs(sample.s - nodes[0]) < noise
        exact = sample if close and known[0] is columns.exact else columns.exact
        samples = (sample, *known[1 if close else 0 :])
        first = iteration == 0
        if first and (
            problem.quadratic or _misfit(columns, sample, path, polynomial) <= _CONVERGED * tol
        ):
            return Attempt(path, samples, replace(columns, exact=exact))
        new_nodes, newton = newton_form(samples[: order + 1], exact, columns.active, columns.matrix)
        terms = min(order if close else order + 1, len(new_nodes))
        corrected = Polynomial(new_nodes, newton[:terms], max(sample.s, state.s))
        trial = _follow_to(problem, state, columns, corrected, duration, order)
        plain, moment = trial.integrals[:2, order]
        if trial.status == FAILED or not np.isfinite(moment):
            break
        size = float(np.max(np.abs(newton[order]))) if terms > order else 0.0
        before, change = change, float(np.max(np.abs(trial.y[-1, :-1] - end[:-1])))
        if first:
            # Where the remainder is not as smooth as its differences say, as where the path turns.
            surprise = _SURPRISE * max(change - _EXPECTED * promised, 0.0)
        elif before > 0:
            columns = columns.measured(change / before)
        error = max(size * abs(moment - sample.s * plain), surprise)
        arc, moved = abs(sample.s - state.s), abs(trial.y[-1, -1] - sample.s)
        converged = (
            columns.contraction * change <= _CONVERGED * tol
            and change < _FARTHEST
            and moved <= 0.4 * arc + noise
        )
        if converged and error <= tol:
            return Attempt(trial, samples, replace(columns, exact=exact))
        if converged or error > 3 * tol or moved > arc + noise or columns.contraction > 0.7:
            break
        end = trial.y[-1]
    lack = columns.contraction * change / _CONVERGED if np.isfinite(change) else 0.0
    excess = min(max(error / _TARGET / tol, lack / tol, 2.0), 100.0)
    return Attempt(None, known, columns, excess=excess)


def _misfit(columns: Columns, sample: Sample, path: Path, polynomial: Polynomial) -> float:
    """Bound of the correction of z that a sample at the end of a path asks for."""
    remainder = sample.field + columns.matrix @ sample.theta[columns.active]
    nodes, newton, s_last = polynomial
    s, value = min(sample.s, s_last), np.empty_like(remainder)
    newton_value(nodes, newton, s, value, np.empty_like(value))
    unexplained = np.abs(remainder - value) - ROUNDING * np.abs(remainder)
    difference = float(np.max(unexplained, initial=0.0))
    m, duration = len(newton), float(path.t[-1])
    at_end = abs(float(np.prod(s - nodes[:m])))
    integral = abs(float(path.integrals[2, m])) if m < path.integrals.shape[1] else np.inf
    return difference * (min(duration, integral / at_end) if at_end else duration)


def _accepted(problem: Problem, state: State, result: Attempt, reached: bool) -> State:
    """The state at the end of an accepted step."""
    path, sample, columns = result.path, result.samples[0], result.columns
    assert path is not None
    z, s = state.z + path.y[-1, :-1], float(path.y[-1, -1])
    if reached:
        columns = problem.select(columns, sample, z)
    elif columns.outdated:
        columns = renewed(problem.objective, columns, sample)
    return State(
        t=state.t + float(path.t[-1]),
        z=z,
        s=s,
        samples=result.samples[: problem.order + 2],
        columns=columns,
        arc=max(abs(s - state.s), _SHORTEST_ARC * columns.size(sample)),
        inner_step=path.inner_step,
    )


def _follow_to(
    problem: Problem, state: State, columns: Columns, p: Polynomial, duration: float, most: int
) -> Path:
    """Follow the surrogate to a given time, with integrals for up to `most` nodes."""
    end_alone = StoppingCriteria(free=False, sizes=np.zeros(most + 1))
    return _follow_surrogate(problem, state, columns, p, duration, end_alone)


def _follow_surrogate(
    problem: Problem,
    state: State,
    columns: Columns,
    p: Polynomial,
    duration: float,
    stopping: StoppingCriteria,
) -> Path:
    """Follow the surrogate from a state, from where z counts; lengths are those of arcs."""
    active, weight = columns.active, columns.weight
    log_weight = np.log(np.where(weight > 0, weight, 1.0))
    matrix = columns.matrix / weight[active]
    flow = Surrogate(
        problem.up + 2 * state.z + log_weight,
        problem.down - 2 * state.z + log_weight,
        active,
        matrix,
        np.ascontiguousarray(matrix[active].T),
        *p,
        ROUNDING * np.abs(p.newton[0]),
    )
    many = (follow_many, _INNER_ALONE_LSODA)
    method, alone = many if active.size >= MANY else (follow, _INNER_ALONE)
    tol = problem.tol * (alone if problem.quadratic else _INNER)
    return method(flow, state.s, duration, state.inner_step, tol, stopping)
