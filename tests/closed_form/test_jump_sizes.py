"""The size at which a jump is called: by what is jumped to, in any units, and not before t = 0."""

import numpy as np
import pytest
from objectives import Quadratic, Scaled

from dynalyze import Initialization, compare, predict_stages, simulate

GOALS = np.array([2.0, -1.0, 0.5])
INIT = Initialization([1.0, 0.8, 1.2], [0.5, -0.3, 0.1], log10_alpha=-30)


@pytest.mark.parametrize("length", [1.0, 1e-9, 1e6])
def test_every_jump_has_a_time_in_any_units(length):
    objective = Scaled(Quadratic(GOALS), length, length)
    prediction = predict_stages(objective, init=INIT)
    np.testing.assert_allclose(prediction.jump_sizes, 0.05 * length * np.abs(GOALS))
    trajectory = simulate(objective, init=INIT, tol=1e-9)
    times, coordinates, _ = trajectory.crossings(prediction.jump_sizes)
    assert coordinates.tolist() == [0, 1, 2]
    np.testing.assert_allclose(prediction.jump_times(), times, rtol=1e-4)
    assert prediction.jump_notes() == ("", "", "")
    assert "—" not in prediction.summary()
    comparison = compare(prediction, trajectory)
    assert [str(outcome) for outcome in comparison.outcomes] == ["matched"] * 3
    assert "a jump is |θ| = 5% of its plateau" in str(comparison)


def test_a_size_given_is_that_of_all_products():
    prediction = predict_stages(Quadratic(GOALS), init=INIT)
    trajectory = simulate(Quadratic(GOALS), init=INIT, tol=1e-9)
    times, coordinates, _ = trajectory.crossings(0.7)
    assert coordinates.tolist() == [0, 1]
    jumps = prediction.jump_times(0.7)
    np.testing.assert_allclose(jumps[:2], times, rtol=1e-4)
    assert np.isnan(jumps[2])
    assert prediction.jump_notes(0.7) == ("", "", "|θ| stays below 0.7 in its transition")
    text = prediction.summary(0.7)
    assert "passes 0.7" in text
    assert "no jump at stage 3: |θ| stays below 0.7" in text


@pytest.mark.filterwarnings("ignore::dynalyze.errors.StagesOverlapWarning")
@pytest.mark.parametrize("log10_alpha", [-0.01, -0.3, -1.0, -3.0])
def test_no_jump_comes_before_the_start(log10_alpha):
    init = Initialization(INIT.u0, INIT.v0, log10_alpha=log10_alpha)
    prediction = predict_stages(Quadratic(GOALS), init=init)
    never = 0
    for size in (1e-9, 1e-6, 1e-3, 0.1, 0.4):
        jumps, notes = prediction.jump_times(size), prediction.jump_notes(size)
        assert not (jumps < 0).any()
        assert [bool(note) for note in notes] == np.isnan(jumps).tolist()
        never += np.count_nonzero(np.isnan(jumps))
        for time, note, i in zip(jumps, notes, prediction.coordinates, strict=True):
            if abs(init.theta0[i]) > size:
                assert np.isnan(time)
                assert "from the start" in note
    assert never > 0


def test_products_that_never_activate_are_measured_in_their_own_units():
    from dynalyze.models import DiagonalLinear

    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3))
    y = X[:, 0] + 0.3 * X[:, 1]
    prediction = predict_stages(DiagonalLinear(3), (X * [1.0, 1e4, 1e-4], y), max_stages=2)
    assert prediction.coordinates.tolist() == [1, 0]  # the larger unit grows first
    sizes = prediction.jump_sizes
    np.testing.assert_allclose(sizes[:2], 0.05 * np.array([1.0, 0.3e-4]), rtol=0.2)
    np.testing.assert_allclose(sizes[2], 0.05 * 1e4, rtol=0.5)
