"""Jump times at a given α against simulations of the flow, over all separated stages."""

import warnings
from functools import cache

import numpy as np
import pytest
from claims import every, none

from dynalyze import Initialization, compare, datasets, predict_stages, simulate
from dynalyze.errors import StagesOverlapWarning
from dynalyze.models import AttentionHead, DiagonalLinear

SCALES = (-8, -20, -100)
LARGEST_ERROR = {-8: 1e-2, -20: 1e-3, -100: 1e-4}
SEEDS = range(4)
# Stages that are separated, of 64 of heads and 44 of diabetes, at the least
SEPARATED = {
    ("head", -8): 4,
    ("head", -20): 8,
    ("head", -100): 24,
    ("diabetes", -20): 4,
    ("diabetes", -100): 24,
}


@cache
def objective(name, seed):
    if name == "diabetes":
        data = datasets.diabetes()
        return DiagonalLinear(10).bind((data.X, data.y))
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((200, 5, 8))
    head = AttentionHead(8, threads=1)
    return head.bind((X, head.predict(rng.standard_normal(16), X)))


@cache
def comparison(name, seed, log10_alpha):
    # Thresholds that all products exceed in their own stage, but for a head's vanishing ones.
    threshold = 0.003 if name == "diabetes" else 0.01
    problem = objective(name, seed)
    init = Initialization.gaussian(problem.n_products, log10_alpha=log10_alpha, rng=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StagesOverlapWarning)
        prediction = predict_stages(problem, init=init)
    # The last stages take most of the time, and are the widest apart.
    end = 1.05 * prediction.times[-1] + 30 / init.log_inverse_alpha
    trajectory = simulate(problem, init=init, until_rescaled=end, method="CVODE", tol=1e-8)
    return compare(prediction, trajectory, threshold=threshold)


@pytest.mark.parametrize(("name", "log10_alpha"), SEPARATED)
def test_separated_stages_jump_when_predicted(name, log10_alpha):
    found = [comparison(name, seed, log10_alpha) for seed in SEEDS]
    errors = np.concatenate([c.relative_errors[c.separated] for c in found])
    # Not by calling everything overlapping
    assert len(errors) >= SEPARATED[name, log10_alpha]
    assert np.max(errors) < LARGEST_ERROR[log10_alpha]  # not NaN either


def test_no_stage_of_diabetes_is_separated_at_1e_8():
    assert none(np.concatenate([comparison("diabetes", seed, -8).separated for seed in SEEDS]))


@pytest.mark.parametrize("name", ["head", "diabetes"])
def test_errors_fall_with_the_scale_and_are_far_below_the_leading_order(name):
    medians, leading = [], []
    for log10_alpha in SCALES:
        found = [comparison(name, seed, log10_alpha) for seed in SEEDS]
        medians.append(np.nanmedian(np.concatenate([c.relative_errors for c in found])))
        leading.append(np.nanmedian(np.concatenate([c.relative_leading_errors for c in found])))
    assert medians[0] > 3 * medians[1] > 9 * medians[2]
    assert every(np.array(medians[1:]) < 0.05 * np.array(leading[1:]))


def test_stages_of_the_head_that_overlap_at_1e_8_are_off_by_more():
    found = [comparison("head", seed, -8) for seed in SEEDS]
    assert max(np.nanmax(c.relative_errors[~c.separated]) for c in found) > 1e-2


def test_overlap_is_measured_where_the_leading_order_cannot_know_it():
    # By the leading order alone several stages of diabetes would pass at 1e-8.
    overlapping = comparison("diabetes", 0, -8)
    passed = overlapping.prediction.log10_alpha_separated > -8
    assert np.nanmax(overlapping.relative_errors[passed]) > 0.01
    assert none(overlapping.separated[passed])


def test_a_scale_at_which_nothing_is_separated_is_still_compared():
    found = comparison("diabetes", 0, -1)
    assert not found.separated.any()
    # Extrapolated through overlapping transitions, some times would come before the start: NaN.
    unknown = np.isnan(found.predicted)
    assert unknown.any()
    assert (found.predicted[~unknown] >= 0).all()
    np.testing.assert_array_equal(found.expected[unknown], found.leading[unknown])
    assert "separated stages: 0 of 0 matched" in str(found)


def test_products_that_are_visible_from_the_start_are_not_separated():
    assert not comparison("head", 3, -2).separated.any()
