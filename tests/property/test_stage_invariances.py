"""What must not change the stages, and what must change them in a known way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalyze import Initialization, datasets, predict_stages, simulate
from dynalyze.models import AttentionHead, DiagonalLinear

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=15, deadline=None)


def _linear(rng, n=15, p=4):
    mixing = rng.standard_normal((p, p))
    return rng.standard_normal((n, p)) @ mixing, rng.standard_normal(n)


def _head(rng, n=12, tokens=3, d=2):
    X = rng.standard_normal((n, tokens, d))
    return X, AttentionHead(d).predict(rng.standard_normal(2 * d), X)


def _assert_same(found, expected, *, coordinates=None, signs=1, theta=1.0, time=1.0, rtol=1e-7):
    """The stages of `found`, carried back by what was done to the problem, are `expected`."""
    p = expected.theta.shape[1]
    index = np.arange(p) if coordinates is None else np.asarray(coordinates)
    signs = np.broadcast_to(signs, p)
    assert found.status == expected.status
    np.testing.assert_array_equal(index[found.coordinates], expected.coordinates)
    np.testing.assert_array_equal(
        found.signs, (expected.signs * signs[expected.coordinates]).astype(int)
    )
    np.testing.assert_allclose(found.times, time * expected.times, rtol=rtol)
    scale = max(np.abs(expected.theta).max(), 1e-300)
    np.testing.assert_allclose(
        found.theta, (expected.theta * signs * theta)[:, index], rtol=rtol, atol=rtol * scale
    )


@few
@given(seeds)
def test_log_scales_stay_in_their_range_and_losses_fall(seed):
    rng = np.random.default_rng(seed)
    X, y = _linear(rng)
    prediction = predict_stages(DiagonalLinear(4), (X, y))
    assert np.all((prediction.b >= 0) & (prediction.b <= 2))
    assert np.all(np.diff(prediction.losses) < 0)
    assert np.all(np.diff(prediction.times) > 0)
    added = [
        len(np.setdiff1d(np.flatnonzero(after), np.flatnonzero(before)))
        for before, after in zip(prediction.theta[:-1], prediction.theta[1:], strict=True)
    ]
    assert max(added) <= 1  # Theorem 4.5
    active = prediction.theta != 0
    np.testing.assert_array_equal(prediction.b[active], 1 - np.sign(prediction.theta[active]))


@few
@given(seeds, st.permutations(range(4)))
def test_linear_permuted_features(seed, order):
    X, y = _linear(np.random.default_rng(seed))
    _assert_same(
        predict_stages(DiagonalLinear(4), (X[:, order], y)),
        predict_stages(DiagonalLinear(4), (X, y)),
        coordinates=order,
    )


@few
@given(seeds, st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4))
def test_linear_flipped_features(seed, flips):
    X, y = _linear(np.random.default_rng(seed))
    _assert_same(
        predict_stages(DiagonalLinear(4), (X * flips, y)),
        predict_stages(DiagonalLinear(4), (X, y)),
        signs=np.array(flips),
    )


@few
@given(seeds, st.floats(1e-3, 1e3))
def test_linear_scaled_targets(seed, factor):
    X, y = _linear(np.random.default_rng(seed))
    _assert_same(
        predict_stages(DiagonalLinear(4), (X, factor * y)),
        predict_stages(DiagonalLinear(4), (X, y)),
        theta=factor,
        time=1 / factor,
    )


@few
@given(seeds, st.floats(1e-2, 1e2))
def test_linear_scaled_features(seed, factor):
    X, y = _linear(np.random.default_rng(seed))
    _assert_same(
        predict_stages(DiagonalLinear(4), (factor * X, y)),
        predict_stages(DiagonalLinear(4), (X, y)),
        theta=1 / factor,
        time=1 / factor,
    )


@few
@given(seeds)
def test_linear_one_scaled_feature_scales_its_own_first_wait(seed):
    rng = np.random.default_rng(seed)
    X, y = _linear(rng)
    factor = 1 + 50 * rng.random()
    first = predict_stages(DiagonalLinear(4), (X, y), max_stages=1)
    scaled = X.copy()
    winner = first.coordinates[0]
    scaled[:, winner] *= factor
    found = predict_stages(DiagonalLinear(4), (scaled, y), max_stages=1)
    assert found.coordinates[0] == winner
    np.testing.assert_allclose(found.times[0], first.times[0] / factor, rtol=1e-12)
    np.testing.assert_allclose(found.theta[1] * factor, first.theta[1], rtol=1e-9)


@few
@given(seeds)
def test_mse_is_the_squared_loss_in_another_unit_of_time(seed):
    X, y = _head(np.random.default_rng(seed))
    _assert_same(
        predict_stages(AttentionHead(2), (X, y), loss="mse", max_stages=3),
        predict_stages(AttentionHead(2), (X, y), max_stages=3),
        time=y[0].size / 2,
    )


@few
@given(seeds)
def test_head_permuted_coordinates(seed):
    rng = np.random.default_rng(seed)
    X, y = _head(rng, d=3)
    order = rng.permutation(3)
    _assert_same(
        predict_stages(AttentionHead(3), (X[..., order], y[..., order]), max_stages=4),
        predict_stages(AttentionHead(3), (X, y), max_stages=4),
        coordinates=np.concatenate([order, 3 + order]),
    )


@few
@given(seeds)
def test_head_with_inputs_and_targets_negated(seed):
    X, y = _head(np.random.default_rng(seed))
    _assert_same(
        predict_stages(AttentionHead(2), (-X, -y), max_stages=3),
        predict_stages(AttentionHead(2), (X, y), max_stages=3),
    )


@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1e5, 1e8])
def test_units_far_from_one(factor):
    X, y = _linear(np.random.default_rng(0))
    usual = predict_stages(DiagonalLinear(4), (X, y))
    unusual = predict_stages(DiagonalLinear(4), (factor * X, y))
    _assert_same(unusual, usual, theta=1 / factor, time=1 / factor)
    assert unusual.stats.nfev <= 1.2 * usual.stats.nfev
    X, y = _head(np.random.default_rng(1))
    _assert_same(
        predict_stages(AttentionHead(2), (X, factor * y), max_stages=1),
        predict_stages(AttentionHead(2), (X, y), max_stages=1),
        theta=factor,
        time=1 / factor,
    )


def test_units_of_each_feature():
    X, y = _linear(np.random.default_rng(0))
    units = np.array([1e-4, 1.0, 1e2, 1e4])
    prediction = predict_stages(DiagonalLinear(4), (X * units, y))
    assert prediction.status == "converged"
    least_squares = np.linalg.lstsq(X, y)[0] / units
    np.testing.assert_allclose(prediction.theta[-1], least_squares, rtol=1e-8)
    assert prediction.stats.nfev < 400


@pytest.mark.parametrize(("inputs", "targets"), [(1e-2, 1e-2), (1e2, 1e2), (1.0, 1e4), (1e4, 1.0)])
def test_head_whose_products_differ_in_size(inputs, targets):
    # The products of W_K W_Q are as 1/inputs², those of W_V W_O as targets/inputs.
    X, y = datasets.toy_head(n_samples=100, n_tokens=5, d_model=4, teacher="dense", rng=0)[:2]
    prediction = predict_stages(AttentionHead(4), (inputs * X, targets * y))
    assert prediction.status == "converged"
    assert prediction.losses[-1] < 1e-9 * prediction.losses[0]
    assert prediction.stats.nfev < 800


@pytest.mark.parametrize("units", [(1e5, 1e-4, 1.0, 1.0), (1e-6, 1e6, 1.0, 1.0)])
def test_no_feature_is_lost_for_its_small_unit(units):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4))
    y = X @ [1.0, -0.5, 0.3, 0.2] + 0.1 * rng.standard_normal(60)
    least_squares = np.linalg.lstsq(X, y)[0] / units
    model, data = DiagonalLinear(4), (X * units, y)
    init = Initialization.gaussian(4, log10_alpha=-50, rng=0)
    prediction = predict_stages(model, data, init=init)
    assert prediction.status == "converged"
    np.testing.assert_allclose(prediction.theta[-1], least_squares, rtol=1e-8)
    trajectory = simulate(model, data, init)
    assert trajectory.status == "stationary"
    np.testing.assert_allclose(trajectory.theta[-1], least_squares, rtol=1e-6)
    small = int(np.argmin(units))
    threshold = 0.02 / units[small]
    t, coordinates, _ = trajectory.crossings(threshold)
    predicted = prediction.jump_times(threshold)[prediction.coordinates == small]
    np.testing.assert_allclose(predicted, t[coordinates == small], rtol=1e-6)
