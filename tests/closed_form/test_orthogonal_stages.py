"""Orthogonal designs: T_i = 1/|g_i(0)| and θ_i = g_i(0)/λ_i, one after another."""

import numpy as np
import pytest

from dynalyze import predict_stages
from dynalyze.models import DiagonalLinear


def _orthogonal_problem(rng, n=40, p=9):
    Q, _ = np.linalg.qr(rng.standard_normal((n, p)))
    scales = rng.uniform(0.1, 10, p)
    return np.sqrt(n) * Q * np.sqrt(scales), rng.standard_normal(n), scales


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("loss", "factor"), [("squared", 1.0), ("mse", 2.0)])
def test_stages_equal_the_closed_form(seed, loss, factor):
    X, y, scales = _orthogonal_problem(np.random.default_rng(seed))
    field = factor * X.T @ y / len(y)
    order = np.argsort(-np.abs(field))

    prediction = predict_stages(DiagonalLinear(X.shape[1]), (X, y), loss=loss)

    assert prediction.status == "converged"
    np.testing.assert_array_equal(prediction.coordinates, order)
    np.testing.assert_array_equal(prediction.signs, np.sign(field[order]))
    np.testing.assert_allclose(prediction.times, 1 / np.abs(field[order]), rtol=1e-12)
    limit = field / (factor * scales)
    for k, theta in enumerate(prediction.theta):
        expected = np.zeros_like(limit)
        expected[order[:k]] = limit[order[:k]]
        np.testing.assert_allclose(theta, expected, rtol=1e-12, atol=1e-12 * np.abs(limit).max())
        # log-scales drift by their own field alone
        time = prediction.times[k - 1] if k else 0.0
        waiting = order[k:]
        np.testing.assert_allclose(
            prediction.b[k, waiting], 1 - field[waiting] * time, rtol=0, atol=1e-12
        )
    residuals = [0.5 * factor * np.mean((y - X @ theta) ** 2) for theta in prediction.theta]
    np.testing.assert_allclose(prediction.losses, residuals, rtol=1e-12)
    np.testing.assert_array_equal(prediction.support_sizes, np.arange(len(order) + 1))


def test_sample_weights_act_as_repetitions():
    rng = np.random.default_rng(7)
    X, y = rng.standard_normal((12, 4)), rng.standard_normal(12)
    repetitions = rng.integers(1, 4, 12)
    weighted = predict_stages(DiagonalLinear(4), (X, y), sample_weight=repetitions)
    repeated = predict_stages(
        DiagonalLinear(4), (np.repeat(X, repetitions, axis=0), np.repeat(y, repetitions))
    )
    np.testing.assert_array_equal(weighted.coordinates, repeated.coordinates)
    np.testing.assert_allclose(weighted.times, repeated.times, rtol=1e-11)
    np.testing.assert_allclose(weighted.theta, repeated.theta, rtol=1e-9, atol=1e-12)
