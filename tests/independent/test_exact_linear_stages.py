"""Linear problems of the kinds that users have, against Algorithm 1 in sixty digits."""

import numpy as np
import pytest
from claims import every, none
from exact_stages import exact_stages
from objectives import OnlyObjective

from dynalyze import predict_stages
from dynalyze.models import DiagonalLinear


def _problem(kind, seed, most_features=10, most_samples=16):
    rng = np.random.default_rng([seed, 11])
    p = int(rng.integers(2, most_features + 1))
    n = int(rng.integers(3, most_samples + 1))
    X = rng.standard_normal((n, p))
    theta = np.zeros(p)
    k = int(rng.integers(1, min(p, 6) + 1))
    theta[rng.choice(p, k, replace=False)] = 2 * rng.standard_normal(k)
    noise = rng.choice([0.0, 1e-3, 0.3]) * rng.standard_normal(n)
    if kind == "noise-free":
        if rng.random() < 0.5:
            X = X @ rng.standard_normal((p, p))
        return X, X @ theta
    if kind == "correlated":
        for i in range(1, p):
            X[:, i] = 0.95 * X[:, i - 1] + np.sqrt(1 - 0.95**2) * X[:, i]
    elif kind == "near-duplicate":  # correlation up to 1 − 5e-13
        X[:, 1] = X[:, 0] + 10.0 ** -rng.uniform(2, 6) * rng.standard_normal(n)
    elif kind == "integer":
        X = rng.integers(-3, 4, (n, p)).astype(float)
        if rng.random() < 0.5:
            return X, rng.integers(-5, 6, n).astype(float)
        return X, X @ np.round(2 * theta)
    elif kind == "units":
        return X * 10.0 ** rng.uniform(-8, 8, p), X @ theta + noise
    return X, X @ theta + noise


KINDS = ("noise-free", "correlated", "near-duplicate", "integer", "units")


@pytest.mark.parametrize("kind", KINDS)
def test_stages_equal_those_in_sixty_digits(kind):
    compared = 0
    for seed in range(16):
        X, y = _problem(kind, seed)
        if not np.any(X.T @ y):
            continue
        expected, found = exact_stages(X, y), predict_stages(DiagonalLinear(X.shape[1]), (X, y))
        assert found.status == expected.status, f"seed {seed}: {found.message}"
        assert found.coordinates.tolist() == expected.coordinates, f"seed {seed}"
        assert found.signs.tolist() == expected.signs, f"seed {seed}"
        np.testing.assert_allclose(found.times, expected.times, rtol=1e-8, err_msg=f"seed {seed}")
        units = np.linalg.norm(X, axis=0)
        for theta, exact in zip(found.theta[1:], np.array(expected.theta), strict=True):
            scale = np.abs(units * exact).max()
            np.testing.assert_allclose(units * theta, units * exact, rtol=0, atol=1e-8 * scale)
        compared += found.n_stages
    assert compared > 30


@pytest.mark.parametrize("seed", range(8))
def test_noise_free_sparse_regression_ends_at_the_teacher(seed):
    rng = np.random.default_rng(seed)
    X, teacher = rng.standard_normal((20, 40)), np.zeros(40)
    teacher[:5] = 3, -2, 1.5, 1, -0.7
    prediction = predict_stages(DiagonalLinear(40), (X, X @ teacher))
    assert prediction.status == "converged"
    np.testing.assert_allclose(prediction.theta[-1], teacher, rtol=0, atol=1e-10)
    assert prediction.losses[-1] < 1e-20
    departures = prediction.departed[-1]
    if departures:  # complementarity is not strict: their field is 0 at the teacher, as all are
        assert "Assumption 4.2 fails in the limit" in prediction.caveats[-1]
        assert "goes to 0 together with the product" in prediction.summary()


def test_some_draws_of_noise_free_regression_are_degenerate():
    rng = np.random.default_rng(7)
    X = rng.standard_normal((20, 40))
    prediction = predict_stages(DiagonalLinear(40), (X, X[:, :5] @ [3, -2, 1.5, 1, -0.7]))
    assert prediction.departed[-1] == (11, 13, 19, 22, 25)
    assert every(f"theta[{i}]" in prediction.caveats[-1] for i in prediction.departed[-1])
    assert none(prediction.caveats[:-1])


@pytest.mark.parametrize("kind", KINDS[:4])
def test_following_the_flow_finds_the_same_limits(kind):
    degenerate = 0
    for seed in range(6):
        X, y = _problem(kind, 100 + seed, most_features=6)
        if not np.any(X.T @ y):
            continue
        objective = DiagonalLinear(X.shape[1]).bind((X, y))
        solved, followed = predict_stages(objective), predict_stages(OnlyObjective(objective))
        assert followed.status == solved.status, f"seed {seed}: {followed.message}"
        np.testing.assert_array_equal(followed.coordinates, solved.coordinates)
        assert [set(left) for left in followed.departed] == [set(left) for left in solved.departed]
        scale = np.abs(solved.theta).max()
        np.testing.assert_allclose(followed.theta, solved.theta, rtol=0, atol=1e-6 * scale)
        degenerate += any(followed.caveats)
    assert degenerate > 0 or kind != "noise-free"


@pytest.mark.parametrize("signal", [1, 100])
@pytest.mark.parametrize("wrapped", [False, True], ids=["solved", "followed"])
def test_targets_that_are_residuals_teach_nothing(signal, wrapped):
    for seed in range(10):
        rng = np.random.default_rng([seed, 5])
        X = rng.standard_normal((40, 12))
        y = signal * X @ rng.standard_normal(12) + rng.standard_normal(40)
        residuals = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
        objective = DiagonalLinear(12).bind((X, residuals))
        prediction = predict_stages(OnlyObjective(objective) if wrapped else objective)
        assert prediction.n_stages == 0
        assert prediction.status == "converged"


def test_a_complete_path_needs_one_gradient_a_stage_and_no_hessian():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 60))
    y = X @ rng.standard_normal(60) + 3 * rng.standard_normal(120)
    prediction = predict_stages(DiagonalLinear(60), (X, y))
    assert prediction.status == "converged"
    assert prediction.stats.nfev <= 1.2 * prediction.n_stages + 2
    assert prediction.stats.nhcol <= 1


def test_durations_are_followed_when_asked_for_and_kept_in_the_file(tmp_path):
    from dynalyze import Initialization, StagePrediction

    rng = np.random.default_rng(3)
    X = rng.standard_normal((30, 5))
    data = (X, X @ [2.0, -1.0, 0.5, 0.0, 0.3] + 0.1 * rng.standard_normal(30))
    prediction = predict_stages(DiagonalLinear(5), data)
    assert prediction.known_durations is None
    init = Initialization.gaussian(5, log10_alpha=-300, rng=0)
    along = predict_stages(DiagonalLinear(5), data, init=init)
    # LSODA and the surrogate, each to 1e-4 in log coordinates, where 1% counts as arrived
    np.testing.assert_allclose(prediction.durations, along.durations, rtol=2e-3)
    prediction.save(tmp_path / "p.npz")
    loaded = StagePrediction.load(tmp_path / "p.npz")
    np.testing.assert_array_equal(loaded.durations, prediction.durations)
