"""Every mistake in the data of a model gets one error that names it and the remedy."""

import re

import numpy as np
import pytest

from dynalyze.errors import InvalidInputError
from dynalyze.models import AttentionHead


def good(n_samples=4, n_tokens=3, d=2):
    return tuple(np.random.default_rng(0).standard_normal((2, n_samples, n_tokens, d)))


def raises(text):
    return pytest.raises(InvalidInputError, match=re.escape(text))


@pytest.mark.parametrize("d_model", [0, -3, 2.0, "2", True, None])
def test_d_model_that_is_not_a_positive_integer(d_model):
    with raises(f"d_model={d_model!r}: must be a positive integer"):
        AttentionHead(d_model)


@pytest.mark.parametrize("threads", [0, -1, 1.5])
def test_threads_that_are_not_a_positive_integer(threads):
    with raises(f"threads={threads!r}: must be a positive integer"):
        AttentionHead(2, threads=threads)


@pytest.mark.parametrize(
    ("data", "received"),
    [(np.zeros((4, 3, 2)), "ndarray"), ((np.zeros((4, 3, 2)),), "tuple of length 1"), (5, "int")],
)
def test_data_that_are_not_a_pair(data, received):
    with raises(f"data must be a pair of arrays (X, y), received {received}"):
        AttentionHead(2).bind(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_first_entry_that_is_not_finite_is_named(value, which):
    data = good()
    data[which][2, 1, 0] = data[which][3, 0, 1] = value
    with raises(
        f"{'Xy'[which]}[2, 1, 0] is {value}, the first of 2 entries of {'Xy'[which]} that are not "
        "finite: remove or impute them"
    ):
        AttentionHead(2).bind(data)


def test_values_too_large_for_float64():
    X, y = good()
    with raises("X[0, 0, 0] is inf"):
        AttentionHead(2).bind((np.full(X.shape, np.longdouble("1e400")), y))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(np.ones((4, 3, 2), complex), "complex128"), (np.full((4, 3, 2), "a"), "<U1")],
)
def test_values_that_are_not_real_numbers(values, dtype):
    _, y = good()
    with raises(f"X has dtype {dtype}: convert it to real numbers (float64)"):
        AttentionHead(2).bind((values, y))


def test_ragged_values():
    _, y = good()
    with raises("X is not a rectangular array: expected shape (n_samples, n_tokens, d_model)"):
        AttentionHead(2).bind(([[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]], y))


def test_wrong_number_of_axes():
    X, y = good()
    with raises("X has shape (4, 3): expected 3 axes, (n_samples, n_tokens, d_model)"):
        AttentionHead(2).bind((X[:, :, 0], y))
    with raises("y has shape (4,): expected 3 axes, (n_samples, n_tokens, d_model)"):
        AttentionHead(2).bind((X, y[:, 0, 0]))


@pytest.mark.parametrize(
    ("shape", "axis"), [((0, 3, 2), "n_samples"), ((4, 0, 2), "n_tokens"), ((4, 3, 0), "d_model")]
)
def test_empty_data(shape, axis):
    with raises(f"X is empty, with shape {shape}: {axis} must be at least 1"):
        AttentionHead(2).bind((np.zeros(shape), np.zeros(shape)))


def test_features_that_the_model_was_not_made_for():
    text = (
        "X has shape (4, 3, 2), so 2 features, but the model was made with d_model=5: make "
        "AttentionHead(2) or give other data"
    )
    with raises(text):
        AttentionHead(5).bind(good())
    with raises(text):
        AttentionHead(5).predict(np.zeros(10), good()[0])


def test_targets_of_another_shape():
    X, y = good()
    with raises(
        "y has shape (3, 3, 2) but X has shape (4, 3, 2): the head's output has the shape of its "
        "input, so give both alike"
    ):
        AttentionHead(2).bind((X, y[:3]))


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        ([1.0, 1.0], "sample_weight has 2 entries for 4 samples: give one weight per sample"),
        ([1, 0, -2, -1], "sample_weight[2] is -2.0: weights must not be negative"),
        (np.zeros(4), "sample_weight is 0 for every sample: at least one weight must be positive"),
        ([1, np.nan, 1, 1], "sample_weight[1] is nan, the first of 1 entries"),
        (3.0, "sample_weight has shape (): expected 1 axis, (n_samples,)"),
    ],
)
def test_unusable_sample_weights(weight, text):
    with raises(text):
        AttentionHead(2).bind(good(), sample_weight=weight)


def test_unknown_loss():
    with raises("loss='l1' is not known: choose one of 'squared', 'mse'"):
        AttentionHead(2).bind(good(), loss="l1")


def test_products_and_columns_that_do_not_exist():
    objective = AttentionHead(2).bind(good())
    with raises("theta has shape (3,): the model has 4 products, so give shape (4,)"):
        objective.field(np.zeros(3))
    with raises("indices contains 4: the model has 4 products, so indices lie between 0 and 3"):
        objective.hessian_columns(np.zeros(4), np.array([0, 4]))
    with raises("indices has shape (2,) and dtype float64: give a one-dimensional array"):
        objective.hessian_columns(np.zeros(4), np.array([0.0, 1.0]))


def test_integers_lists_and_other_memory_layouts_are_converted():
    X, y = (np.round(3 * values).astype(int) for values in good())
    theta = np.array([0.3, -0.2, 0.5, 1.0])
    expected = AttentionHead(2).bind((X.astype(float), y.astype(float))).field(theta)
    for data in [
        (X, y),
        (X.tolist(), y.tolist()),
        [np.asfortranarray(X, dtype=np.float32), y.astype(np.int8)],
    ]:
        np.testing.assert_array_equal(AttentionHead(2).bind(data).field(theta), expected)


def test_huge_and_tiny_weights_are_normalized_without_overflow():
    theta = np.array([0.3, -0.2, 0.5, 1.0])
    expected = AttentionHead(2).bind(good()).value(theta)
    for size in (1e308, 1e-320):
        value = AttentionHead(2).bind(good(), sample_weight=np.full(4, size)).value(theta)
        assert value == pytest.approx(expected, rel=1e-12)
