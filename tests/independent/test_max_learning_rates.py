"""The largest learning rates of plateaus against gradient descent itself, started on them."""

import numpy as np
import pytest

from dynalyze import LearningRateWarning, StagePrediction, datasets, predict_stages
from dynalyze.errors import InvalidInputError
from dynalyze.flow.initialization import Initialization
from dynalyze.models import AttentionHead, DiagonalLinear

_STEPS = 1000
_NUDGE = 1e-6


def descend(objective, theta, lr, momentum, nesterov, rng):
    """Distance of descent on (u, v) from the plateau θ, in the largest weight, at its end.

    The weights of the support are nudged at random. Those off it have u = −v, the part that
    decays: u + v stays 0 exactly, and what grows by itself does not end the plateau.
    """
    support, n = theta != 0, theta.size
    u = np.sqrt(np.abs(theta))
    at_rest = np.concatenate([u, np.sign(theta) * u])
    nudge = _NUDGE * rng.standard_normal(2 * n)
    away = np.flatnonzero(~support)
    sign = np.where(objective.field(theta)[away] >= 0, -1.0, 1.0)
    nudge[n + away] = sign * nudge[away]
    weights, velocity = at_rest + nudge, np.zeros(2 * n)
    for _ in range(_STEPS):
        u, v = weights[:n], weights[n:]
        field = objective.field(u * v)
        slope = -np.concatenate([field * v, field * u])
        velocity = momentum * velocity + slope
        weights = weights - lr * (slope + momentum * velocity if nesterov else velocity)
        if not np.abs(weights - at_rest).max() < 1e-2:
            return np.inf
    return float(np.abs(weights - at_rest).max())


def problems():
    """15 linear problems and 15 heads, at random."""
    for seed in range(15):
        rng = np.random.default_rng(seed)
        n, p = rng.integers(5, 20), int(rng.integers(2, 7))
        X = rng.standard_normal((n, p)) @ (np.eye(p) + 0.3 * rng.standard_normal((p, p)))
        yield DiagonalLinear(p), (X, X @ rng.standard_normal(p) + rng.standard_normal(n))
    for seed in range(15):
        rng = np.random.default_rng(seed)
        d = int(rng.integers(2, 4))
        X, head = rng.standard_normal((10, 3, d)), AttentionHead(d, threads=1)
        yield head, (X, head.predict(rng.standard_normal(2 * d), X))


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)], ids=str
)
def test_descent_rests_below_the_limit_of_every_plateau_and_not_above(momentum, nesterov):
    rng = np.random.default_rng(0)
    for model, data in problems():
        prediction = predict_stages(model, data)
        limits = prediction.max_learning_rates(momentum, nesterov=nesterov)
        # The first plateau, the last and one between them stand for all.
        for k in sorted({0, prediction.n_stages // 2, prediction.n_stages}):
            theta, objective = prediction.theta[k], prediction.objective
            rests = descend(objective, theta, 0.9 * limits[k], momentum, nesterov, rng)
            leaves = descend(objective, theta, 1.1 * limits[k], momentum, nesterov, rng)
            assert rests < 100 * _NUDGE, (model, k)
            assert leaves > 1e-2, (model, k)


def test_the_limits_of_diabetes_fall_from_stage_to_stage():
    data = datasets.diabetes()
    limits = predict_stages(DiagonalLinear(10), (data.X, data.y)).max_learning_rates()
    np.testing.assert_allclose(limits[[0, 1, 9, -1]], [3.4, 1.7, 1.10, 0.92], rtol=0.02)


@pytest.mark.filterwarnings("ignore::dynalyze.StagesOverlapWarning")
def test_steps_of_too_large_a_learning_rate_are_warned_of():
    data = datasets.diabetes()
    init = Initialization.gaussian(10, log10_alpha=-1000, rng=0)
    prediction = predict_stages(DiagonalLinear(10), (data.X, data.y), init=init)
    with pytest.warns(LearningRateWarning, match=r"lr=1 is too large from plateau \d+ on"):
        prediction.jump_times(unit="steps", lr=1.0)
    assert (prediction.jump_times(unit="steps", lr=0.5) > 0).all()


def test_a_saved_prediction_keeps_limits_that_were_asked_for(tmp_path):
    data = datasets.diabetes()
    prediction = predict_stages(DiagonalLinear(10), (data.X, data.y), max_stages=2)
    prediction.save(tmp_path / "before.npz")
    limits = prediction.max_learning_rates()
    prediction.save(tmp_path / "after.npz")
    assert np.isnan(StagePrediction.load(tmp_path / "before.npz").max_learning_rates()).all()
    after = StagePrediction.load(tmp_path / "after.npz")
    np.testing.assert_array_equal(after.max_learning_rates(), limits)


@pytest.mark.parametrize("momentum", [1.0, -0.1, np.nan])
def test_momentum_out_of_range_is_refused(momentum):
    prediction = predict_stages(DiagonalLinear(2), (np.eye(2), np.array([2.0, 1.0])))
    with pytest.raises(InvalidInputError, match=r"momentum=.* must lie between 0 and 1"):
        prediction.max_learning_rates(momentum)
