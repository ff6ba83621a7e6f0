"""The examples of CONTRIBUTING.md run as they stand, and are held against closed forms."""

import re
from pathlib import Path

import numpy as np
import pytest
from claims import every
from functions import Function

from dynalyze import Initialization, predict_stages, simulate
from dynalyze.models import DiagonalLinear

BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def examples():
    names = {"__name__": "__snippet__"}
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def logistic_crossing(init, i, a, rate, size):
    """Flow time at which |θ_i| = size on its way to a: 2 |a| rate t = log s/(1 − s/a), |c| → 0."""
    log_start = 2 * abs(init.z0[i]) + init.log_abs_c[i] - np.log(4)
    return (np.log(size / (1 - size / abs(a))) - log_start) / (2 * abs(a) * rate)


def test_the_stepper_keeps_to_the_closed_form_as_the_built_in_one_does(examples):
    trajectory, init = examples["trajectory"], examples["init"]
    X, y = examples["data"]
    built_in = simulate(DiagonalLinear(3), (X, y), init, until=300.0)
    assert trajectory.status == built_in.status == "finished"
    assert trajectory.configuration["method"] == "BogackiShampine"
    assert trajectory.n_steps > built_in.n_steps
    for run in (trajectory, built_in):
        np.testing.assert_allclose(run.theta[-1], y, rtol=1e-4)
        times, coordinates, _ = run.crossings(0.3)
        for i, time in zip(coordinates, times, strict=True):
            grows = np.sign(y[i]) * init.z0[i] > 0
            if grows:  # the others pass through 0 first, where |c| counts
                exact = logistic_crossing(init, i, y[i], 1 / 3, 0.3)
                assert time == pytest.approx(exact, rel=3e-5)
        assert sorted(coordinates) == [0, 1, 2]


def test_the_stepper_predicts_the_stages_and_jump_times_that_the_built_in_one_does(examples):
    def coupled():
        H = np.array([[2.0, 0.7, 0.1], [0.7, 1.5, -0.4], [0.1, -0.4, 1.0]])
        a = np.array([1.0, -2.0, 0.7])
        return Function(
            3,
            lambda theta: 0.5 * (theta - a) @ H @ (theta - a),
            lambda theta: H @ (a - theta),
            lambda theta: H,
        )

    init = Initialization.gaussian(3, log10_alpha=-1000, rng=0)
    mine, built_in = (
        predict_stages(coupled(), init=init, method=method)
        for method in (examples["BogackiShampine"], "auto")
    )
    assert mine.configuration["method"] == "BogackiShampine"
    np.testing.assert_array_equal(mine.coordinates, built_in.coordinates)
    np.testing.assert_allclose(mine.theta, built_in.theta, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(mine.jump_times(), built_in.jump_times(), rtol=1e-4)


@pytest.mark.parametrize("method", ["LSODA", "BDF", "Radau", "CVODE"])
def test_orbits_are_followed_by_every_method(method):
    a = np.array([1.0, -0.5])
    objective = Function(
        2, lambda t: 0.5 * np.sum((t - a) ** 2), lambda t: a - t, lambda t: np.eye(2)
    )
    prediction = predict_stages(objective, method=method)
    np.testing.assert_allclose(prediction.theta[-1], a, rtol=1e-12)
    np.testing.assert_allclose(prediction.times, [1.0, 2.0], rtol=1e-12)


def test_the_model_learns_each_unit_when_and_where_the_closed_form_says(examples):
    prediction = examples["prediction"]
    y = np.array([0.9, -0.6, 0.3])
    assert prediction.status == "converged"
    assert list(prediction.coordinates) == [0, 1, 2]
    np.testing.assert_allclose(prediction.times, 3 / np.abs(y), rtol=1e-12)
    np.testing.assert_allclose(prediction.theta[-1], np.arctanh(y), rtol=1e-9)


def test_the_models_derivatives_are_those_of_its_loss(examples):
    rng = np.random.default_rng(0)
    loss = examples["TanhUnits"](3).bind((rng.standard_normal((7, 3)), rng.standard_normal(7)))
    theta, h = rng.standard_normal(3), 1e-5
    steps = h * np.eye(3)
    slopes = [(loss.value(theta + e) - loss.value(theta - e)) / (2 * h) for e in steps]
    bends = [(loss.field(theta - e) - loss.field(theta + e)) / (2 * h) for e in steps]
    np.testing.assert_allclose(loss.field(theta), -np.array(slopes), rtol=1e-7)
    np.testing.assert_allclose(loss.hessian_columns(theta, np.arange(3)), bends, rtol=1e-6)
    assert every(np.isfinite(slopes))
