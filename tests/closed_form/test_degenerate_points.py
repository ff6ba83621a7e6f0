"""Points at rest that are no strict minima, and problems in which nothing was tested."""

import dataclasses

import numpy as np
import pytest
import sympy as sp
from functions import Function
from objectives import Quadratic, Scaled

from dynalyze import check_assumptions, predict_stages
from dynalyze.models import DiagonalLinear, SymbolicModel


def power(n):
    """L = (1 − θ)^n / n: a minimum of order n for even n, an inflection for odd."""
    return Function(
        1,
        lambda t: (1 - t[0]) ** n / n,
        lambda t: [(1 - t[0]) ** (n - 1)],
        lambda t: [[(n - 1) * (1 - t[0]) ** (n - 2)]],
    )


def at_rest(objective, theta):
    """A prediction that takes θ for a plateau, as one with a loose certificate would."""
    theta = np.atleast_1d(np.asarray(theta, dtype=float))
    prediction = predict_stages(Quadratic(np.ones(theta.size)), max_stages=1)
    start = np.zeros_like(theta)
    return dataclasses.replace(
        prediction,
        theta=np.array([start, theta]),
        fields=np.array([objective.field(start), objective.field(theta)]),
        losses=np.array([objective.value(start), objective.value(theta)]),
        objective=objective,
    )


@pytest.mark.parametrize("length", [1.0, 1e6, 1e-6])
@pytest.mark.parametrize("energy", [1.0, 1e-12])
@pytest.mark.parametrize("n", [3, 4, 6])
def test_an_inflection_and_minima_of_higher_order_are_no_strict_minima(n, length, energy):
    objective = Scaled(power(n), length, energy)
    # Where |g| is 1e-10 of |g(0)|, which counts as 0, the curvature is not.
    near = length * (1 - 1e-10 ** (1 / (n - 1)))
    report = check_assumptions(at_rest(objective, near), trials=0)
    assert not report.strict_minimum[0].passed
    assert "vanishes towards the stationary point" in report.strict_minimum[0].message
    assert not report.passed
    # What the library itself makes of it, whichever way it ends.
    assert not check_assumptions(predict_stages(objective), trials=0).passed


@pytest.mark.parametrize("length", [1.0, 1e6, 1e-6])
def test_a_soft_strict_minimum_beside_a_fourth_power_is_one(length):
    soft = Function(
        1,
        lambda t: (t[0] - 1) ** 4 / 4 + 1e-4 * (t[0] - 1) ** 2 / 2,
        lambda t: [(1 - t[0]) ** 3 + 1e-4 * (1 - t[0])],
        lambda t: [[3 * (1 - t[0]) ** 2 + 1e-4]],
    )
    prediction = predict_stages(Scaled(soft, length, 1.0))
    verdict = check_assumptions(prediction, trials=0).strict_minimum[0]
    assert verdict.passed, verdict.message
    assert verdict.values["remaining"] == pytest.approx(1.0, abs=0.01)
    assert verdict.margin * length == pytest.approx(2e-4, rel=0.01)


def test_a_vanishing_curvature_is_not_hidden_by_its_own_scale():
    # At θ = 1 the Hessian is the number 1e-13, all of its own diagonal.
    flat = Function(
        1,
        lambda t: 0.5 * 1e-13 * (t[0] - 1) ** 2 + abs(1 - t[0]) * (1 - t[0]) ** 4 / 5,
        lambda t: [(1 - t[0]) ** 3 * abs(1 - t[0]) + 1e-13 * (1 - t[0])],
        lambda t: [[1e-13]],
    )
    verdict = check_assumptions(at_rest(flat, 1.0), trials=0).strict_minimum[0]
    assert not verdict.passed
    assert "flat along w[0]" in verdict.message


def test_near_duplicates_stay_strict_minima():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    X[:, 1] = X[:, 0] + 1e-3 * rng.standard_normal(40)
    prediction = predict_stages(DiagonalLinear(3), (X, X @ np.array([1.0, 0.5, -0.4])))
    minima = check_assumptions(prediction, trials=0).strict_minimum
    assert len(minima) == prediction.n_stages > 1
    assert all(verdict.passed for verdict in minima)


def test_no_stage_means_that_nothing_was_tested():
    X = np.random.default_rng(0).standard_normal((20, 2))
    report = check_assumptions(predict_stages(DiagonalLinear(2), (X, np.zeros(20))))
    assert report.n_stages_tested == 0
    assert not report.passed
    assert "nothing was tested" in report.growth.message
    assert "are all targets zero" in report.growth.message
    assert report.summary().endswith("nothing was tested: the prediction has no stage")


def test_growth_that_is_slower_than_the_clock_is_not_taken_for_none():
    x, a, b = sp.symbols("x a b", real=True)
    model = SymbolicModel(x * (a**2 + 0.5 * b**2), [x], [a, b])
    X = np.random.default_rng(0).standard_normal((20, 1))
    prediction = predict_stages(model, (X, X[:, 0]))
    assert prediction.n_stages == 0
    report = check_assumptions(prediction)
    assert not report.passed
    assert not report.growth.passed
    assert "does learn, but growth is slower than the theory's clock" in report.growth.message
    assert "within a time of log(1/α)" in prediction.message


def test_a_prediction_stopped_before_its_first_stage_passes_nothing():
    prediction = predict_stages(Quadratic([1.0, 0.5]), max_seconds=1e-12)
    assert (prediction.n_stages, str(prediction.status)) == (0, "max_seconds")
    report = check_assumptions(prediction)
    assert report.growth.passed
    assert not report.passed
    assert "nothing was tested" in report.summary()
