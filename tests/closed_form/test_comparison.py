"""Comparisons with runs that are made up, so that every match and error is known."""

import matplotlib as mpl
import numpy as np
import pytest
from objectives import Quadratic

from dynalyze import Initialization, compare, predict_stages, simulate
from dynalyze.checks.matching import Outcome

mpl.use("Agg")
GOALS = np.array([2.0, -1.0, 0.5])  # of an orthogonal quadratic: T = 1/|a|, no interaction
INIT = Initialization([1.0, 0.8, 1.2], [0.5, -0.3, 0.1], log10_alpha=-100)
LOG = INIT.log_inverse_alpha


class Scripted:
    """A run in which products jump from one value to another at given times."""

    def __init__(self, changes, end=4.0 * LOG, init=INIT, configuration=None, goals=GOALS):
        self.init, self.t, self.goals = init, np.array([0.0, end]), goals
        self.configuration = configuration or {}
        self._changes = sorted(changes)  # (time, coordinate, new value)

    def theta_at(self, t):
        t = np.asarray(t, dtype=float)
        theta = np.zeros((*t.shape, 3))
        for time, coordinate, value in self._changes:
            theta[..., coordinate] = np.where(t >= time, value, theta[..., coordinate])
        return theta

    @property
    def theta(self):
        return self.theta_at(self.t)

    @property
    def losses(self):
        return np.array([Quadratic(self.goals).value(theta) for theta in self.theta])

    def crossings(self, threshold):
        found, size, level = [], np.zeros(3), np.broadcast_to(threshold, 3)
        for time, i, value in self._changes:
            if time > 0 and (size[i] < level[i]) != (abs(value) < level[i]):
                found.append((time, i, 1 if abs(value) >= level[i] else -1))
            size[i] = abs(value)
        columns = list(zip(*found, strict=True)) or [(), (), ()]
        return np.array(columns[0]), np.array(columns[1], int), np.array(columns[2], int)


def predicted(goals=GOALS):
    return predict_stages(Quadratic(goals))


def test_errors_in_every_unit():
    run = Scripted([(0.6 * LOG, 0, 2.0), (0.9 * LOG, 1, -1.1), (2.0 * LOG, 2, 0.5)])
    comparison = compare(predicted(), run)
    np.testing.assert_allclose(comparison.leading, LOG * np.array([0.5, 1.0, 2.0]))
    np.testing.assert_allclose(comparison.measured, LOG * np.array([0.6, 0.9, 2.0]))
    np.testing.assert_allclose(comparison.leading_errors, LOG * np.array([-0.1, 0.1, 0]), atol=1e-9)
    np.testing.assert_allclose(comparison.relative_leading_errors, [1 / 6, 1 / 9, 0], atol=1e-12)
    np.testing.assert_allclose(comparison.plateau_lengths, LOG * np.array([0.5, 0.5, 1.0]))
    assert np.isnan(comparison.predicted).all()
    assert comparison.outcomes == (Outcome.MATCHED,) * 3
    assert comparison.separated.all()
    # Only plateaus 2 and 3 have the second product, which is off by 0.1 of at most 2.
    np.testing.assert_allclose(comparison.plateau_distances, [0, 0, 0.1, 0.1], atol=1e-12)
    np.testing.assert_allclose(
        comparison.relative_plateau_distances, [0, 0, 0.05, 0.05], atol=1e-12
    )
    assert comparison.inversions == ()
    assert comparison.extra_times.size == 0
    assert "separated stages: 3 of 3 matched; leading order off by at most 1.7e-01" in str(
        comparison
    )


def test_matched_by_sign_and_occurrence():
    # The first product appears with the wrong sign, goes, and comes with the right one, twice.
    visits = [(0.1, 0, -1.0), (0.2, 0, 0.0), (0.52, 0, 2.0), (0.7, 0, 0.0), (0.9, 0, 2.0)]
    run = Scripted([(t * LOG, i, value) for t, i, value in visits] + [(LOG, 1, -1.0)])
    comparison = compare(predicted(), run)
    np.testing.assert_allclose(comparison.measured[:2], LOG * np.array([0.52, 1.0]))
    np.testing.assert_allclose(comparison.extra_times, LOG * np.array([0.1, 0.9]))
    assert comparison.extra_coordinates.tolist() == [0, 0]
    assert comparison.extra_signs.tolist() == [-1, 1]
    assert "not predicted for α → 0" in str(comparison)


def test_what_did_not_come():
    run = Scripted([(0.5 * LOG, 0, 2.0)], end=1.5 * LOG)
    comparison = compare(predicted(), run)
    assert comparison.outcomes == (Outcome.MATCHED, Outcome.MISSING, Outcome.AFTER_END)
    assert comparison.missing.tolist() == [1]
    assert "missing: 2" in str(comparison)
    below = compare(predicted(), run, threshold=0.7)
    assert below.outcomes == (Outcome.MATCHED, Outcome.MISSING, Outcome.BELOW)
    started = Scripted([(0.0, 1, -1.0), (0.5 * LOG, 0, 2.0)], end=1.5 * LOG)
    assert compare(predicted(), started).outcomes[1] is Outcome.FROM_START


def test_inversion_with_the_gap_that_explains_it():
    goals = np.array([2.0, -1.999, 0.5])
    swapped = Scripted([(0.5 * LOG, 1, -2.0), (0.52 * LOG, 0, 2.0), (2 * LOG, 2, 0.5)], goals=goals)
    (inversion,) = compare(predicted(goals), swapped).inversions
    assert (inversion.first, inversion.second) == (0, 1)
    gap = 1 / 1.999 - 1 / 2
    assert inversion.gap == pytest.approx(gap)
    assert inversion.gap_flow == pytest.approx(gap * LOG)
    assert inversion.measured_lead == pytest.approx(0.02 * LOG)
    assert inversion.foreseen is None
    assert inversion.explained
    # A wide gap explains no inversion.
    wide = Scripted([(0.5 * LOG, 1, -1.0), (0.52 * LOG, 0, 2.0), (2 * LOG, 2, 0.5)])
    assert not compare(predicted(), wide).inversions[0].explained


def test_a_product_that_a_later_stage_lifts_is_not_taken_for_an_activation():
    # The first product rests at 1/40 until the second activates, and lifts it to 0.06.
    hessian = np.array([[40.0, -20.0], [-20.0, 30.0]])
    objective = Quadratic(np.linalg.solve(hessian, [1.0, 0.9]), hessian)
    init = Initialization([1.0, 0.8], [0.5, -0.3], log10_alpha=-300)
    prediction = predict_stages(objective, init=init)
    assert prediction.coordinates.tolist() == [0, 1]
    np.testing.assert_allclose(prediction.theta[1:, 0], [0.025, 0.06])
    trajectory = simulate(objective, init=init, tol=1e-8)
    comparison = compare(prediction, trajectory, threshold=0.05)
    assert comparison.outcomes == (Outcome.BELOW, Outcome.MATCHED)
    assert comparison.extra_times.size == 0
    assert compare(prediction, trajectory).outcomes == (Outcome.MATCHED, Outcome.MATCHED)


def test_orthogonal_flow_agrees_at_its_own_scale():
    prediction = predict_stages(Quadratic(GOALS), init=INIT)
    comparison = compare(prediction, simulate(Quadratic(GOALS), init=INIT, tol=1e-9))
    assert comparison.separated.all()
    assert comparison.relative_errors.max() < 1e-5
    assert comparison.relative_leading_errors.max() > 1e-3
    # The run ends while its last plateau is still being reached.
    assert comparison.relative_plateau_distances[:-1].max() < 1e-6
    frame = comparison.to_dataframe()
    assert frame["outcome"].tolist() == ["matched"] * 3
    np.testing.assert_array_equal(frame["measured"], comparison.measured)
    ax = comparison.plot()
    assert ax.get_ylabel() == "loss"
    assert [label.get_text() for label in ax.get_legend().get_texts()] == ["measured", "predicted"]
