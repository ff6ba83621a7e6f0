"""The diagonal linear network against sign-constrained least squares and linear programming."""

import numpy as np
import pytest
from scipy.optimize import linprog
from sign_constrained import stages_by_least_squares

from dynalyze import predict_stages
from dynalyze.models import DiagonalLinear

FIELD_TOLERANCE = 1e-9


def _ill_conditioned(p, seed, n=30):
    rng = np.random.default_rng([p, seed])
    X = rng.standard_normal((n, p)) @ rng.standard_normal((p, p))
    return X, rng.standard_normal(n)


@pytest.mark.parametrize("p", [8, 20])
@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in range(0, 100, 10)])
def test_stages_equal_those_of_sign_constrained_least_squares(p, seeds):
    departures = returns = 0
    for seed in seeds:
        X, y = _ill_conditioned(p, seed)
        expected = stages_by_least_squares(X, y, field_rtol=FIELD_TOLERANCE)
        found = predict_stages(DiagonalLinear(p), (X, y), field_rtol=FIELD_TOLERANCE)
        assert found.status == "converged", f"seed {seed}: {found.message}"
        np.testing.assert_array_equal(found.coordinates, expected.coordinates, f"seed {seed}")
        np.testing.assert_array_equal(found.signs, expected.signs, f"seed {seed}")
        assert list(found.departed) == expected.departed, f"seed {seed}"
        np.testing.assert_allclose(found.times, expected.times, rtol=1e-8, err_msg=f"seed {seed}")
        for theta, reference in zip(found.theta, expected.theta, strict=True):
            scale = np.abs(reference).max()
            np.testing.assert_allclose(theta, reference, rtol=0, atol=1e-8 * scale)
        departures += sum(map(len, found.departed))
        returns += found.n_stages - len(set(found.coordinates.tolist()))
    # the point of these problems: products leave, and come back with the other sign
    assert departures > 0
    assert returns > 0


@pytest.mark.parametrize("seed", range(10))
def test_more_features_than_samples_end_at_the_minimum_l1_interpolator(seed):
    rng = np.random.default_rng(seed)
    n, p = 8, 20
    X, y = rng.standard_normal((n, p)), rng.standard_normal(n)
    # basis pursuit as a linear program in the positive and negative parts
    program = linprog(np.ones(2 * p), A_eq=np.hstack([X, -X]), b_eq=y, method="highs")
    prediction = predict_stages(DiagonalLinear(p), (X, y))
    assert prediction.status == "converged"
    assert prediction.losses[-1] < 1e-20
    np.testing.assert_allclose(
        prediction.theta[-1], program.x[:p] - program.x[p:], rtol=0, atol=1e-9
    )
