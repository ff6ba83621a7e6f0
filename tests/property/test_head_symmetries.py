"""What must not change, or change in a known way, in the head's loss, field and Hessian."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalyze.models import AttentionHead


@st.composite
def problems(draw):
    n_samples = draw(st.integers(1, 20))
    n_tokens = draw(st.integers(1, 7))
    d = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    X, y = rng.standard_normal((2, n_samples, n_tokens, d))
    theta = draw(st.sampled_from([0.1, 1.0, 4.0])) * rng.standard_normal(2 * d)
    return X, y, theta, rng


def evaluate(X, y, theta, sample_weight=None):
    objective = AttentionHead(X.shape[2]).bind((X, y), sample_weight=sample_weight)
    value, field = objective.value_and_field(theta)
    return value, field, objective.hessian_columns(theta, np.arange(len(theta)))


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=0.0, atol=1e-11 * scale)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_permuting_features_permutes_field_and_hessian(problem):
    X, y, theta, rng = problem
    d = X.shape[2]
    order = rng.permutation(d)
    both = np.concatenate([order, d + order])
    value, field, hessian = evaluate(X, y, theta)
    permuted = evaluate(X[:, :, order], y[:, :, order], theta[both])
    assert_same(permuted, (value, field[both], hessian[np.ix_(both, both)]))


@settings(deadline=None, max_examples=40)
@given(problems())
def test_permuting_samples_and_tokens_changes_nothing(problem):
    X, y, theta, rng = problem
    samples, tokens = rng.permutation(X.shape[0]), rng.permutation(X.shape[1])
    assert_same(
        evaluate(X[samples][:, tokens], y[samples][:, tokens], theta), evaluate(X, y, theta)
    )


@settings(deadline=None, max_examples=40)
@given(problems())
def test_flipping_the_signs_of_inputs_and_targets_changes_nothing(problem):
    X, y, theta, _ = problem
    for one, other in zip(evaluate(-X, -y, theta), evaluate(X, y, theta), strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_a_sample_of_weight_zero_changes_nothing(problem):
    X, y, theta, rng = problem
    weight = rng.uniform(0.1, 2.0, len(X))
    extra_X, extra_y = 1e3 * rng.standard_normal((2, *X.shape))
    extended = evaluate(
        np.concatenate([X, extra_X]),
        np.concatenate([y, extra_y]),
        theta,
        np.concatenate([weight, np.zeros(len(X))]),
    )
    assert_same(extended, evaluate(X, y, theta, weight))


@pytest.mark.filterwarnings("ignore::dynalyze.errors.ConstantFeatureWarning")  # one token, repeated
@settings(deadline=None, max_examples=40)
@given(problems())
def test_integer_weights_count_repeated_samples(problem):
    X, y, theta, rng = problem
    times = rng.integers(1, 4, len(X))
    repeated = evaluate(np.repeat(X, times, axis=0), np.repeat(y, times, axis=0), theta)
    assert_same(evaluate(X, y, theta, times), repeated)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_the_hessian_is_symmetric_and_columns_do_not_depend_on_which_are_asked_for(problem):
    X, y, theta, rng = problem
    hessian = evaluate(X, y, theta)[2]
    assert_same((hessian.T,), (hessian,))
    indices = rng.integers(0, len(theta), size=max(1, X.shape[2] // 2))
    columns = AttentionHead(X.shape[2]).bind((X, y)).hessian_columns(theta, indices)
    assert_same((columns,), (hessian[:, indices],))


@settings(deadline=None, max_examples=25)
@given(problems())
def test_the_field_is_the_slope_of_the_loss(problem):
    X, y, theta, rng = problem
    objective = AttentionHead(X.shape[2]).bind((X, y))
    direction = rng.standard_normal(len(theta))
    direction /= np.linalg.norm(direction)
    step = 1e-5
    difference = objective.value(theta + step * direction) - objective.value(
        theta - step * direction
    )
    slope = -objective.field(theta) @ direction
    assert difference / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_changing_the_arrays_afterwards_does_not_change_the_objective():
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((2, 9, 3, 8))
    theta = rng.standard_normal(16)
    objective = AttentionHead(8).bind((X, y))
    before = objective.value(theta)
    X[:], y[:] = 0.0, 0.0
    assert objective.value(theta) == before
