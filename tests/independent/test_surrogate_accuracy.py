"""The library's own integrator against two tight SciPy methods, and its work against CVODE."""

import numpy as np
import pytest
from objectives import small_head

from dynalyze.flow.initialization import Initialization
from dynalyze.flow.simulate import simulate
from dynalyze.models import DiagonalLinear

END = 6.0  # rescaled time


@pytest.mark.parametrize("log10_alpha", [-4, -8, -20, -100])
def test_crossings_and_plateaus(log10_alpha):
    objective = small_head(noise=0.1)
    init = Initialization.gaussian(objective.n_products, log10_alpha=log10_alpha, rng=1)

    def run(method, tol):
        return simulate(objective, init=init, until_rescaled=END, method=method, tol=tol)

    lsoda, radau = run("LSODA", 1e-11), run("Radau", 1e-10)
    t, coordinate, direction = lsoda.crossings(0.05)
    own = run("surrogate", 1e-6)
    found = own.crossings(0.05)
    np.testing.assert_array_equal(found[1], coordinate)
    np.testing.assert_array_equal(found[2], direction)
    assert np.max(np.abs(radau.crossings(0.05)[0] / t - 1)) < 1e-7
    assert np.max(np.abs(found[0] / t - 1)) < 1e-5
    # Where θ stands still the two agree; elsewhere the error of a crossing shifts the curve.
    times = np.linspace(0, lsoda.t[-1], 4000)
    speed = np.max(np.abs(np.diff(lsoda.theta_at(times), axis=0)), axis=1) / times[1]
    rest = times[1:][speed < 1e-8]
    if log10_alpha <= -20:
        assert len(rest) > 100
    own_theta, theta = own.theta_at(rest), lsoda.theta_at(rest)
    np.testing.assert_allclose(own_theta, theta, rtol=0, atol=1e-7)


def test_hundreds_of_coordinates_that_move_at_once():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 150))
    y = X @ rng.standard_normal(150)
    init = Initialization.gaussian(150, log10_alpha=-1, rng=1)

    def run(method, tol, **end):
        model = DiagonalLinear(150)
        return simulate(model, (X, y), init, method=method, tol=tol, max_seconds=60, **end)

    own = run("surrogate", 1e-6)
    assert own.status == "stationary"
    exact = run("LSODA", 1e-10, until=own.t[-1])
    (t, *which), (exact_t, *exact_which) = own.crossings(0.05), exact.crossings(0.05)
    np.testing.assert_array_equal(which, exact_which)
    objective = DiagonalLinear(150).bind((X, y))
    speed = np.abs(
        [objective.field(theta)[i] for theta, i in zip(own.theta_at(t), which[0], strict=True)]
    )
    assert len(t) > 100
    assert np.max(speed * np.abs(t - exact_t)) < 3e-6


def test_self_convergence_and_work_at_1e_minus_1000():
    objective = small_head(noise=0.1)

    def run(log10_alpha, tol):
        init = Initialization.gaussian(objective.n_products, log10_alpha=log10_alpha, rng=1)
        return simulate(objective, init=init, until_rescaled=END, method="surrogate", tol=tol)

    finest = run(-1000, 1e-9).crossings(0.05)[0]
    errors = [
        np.max(np.abs(run(-1000, tol).crossings(0.05)[0] - finest)) for tol in (1e-3, 1e-5, 1e-7)
    ]
    assert errors[0] < 0.1
    assert errors[1] < 1e-3
    assert errors[2] < 1e-5
    for tol in (1e-4, 1e-6):
        far, near = run(-1000, tol), run(-20, tol)
        assert far.stats.nfev + far.stats.nhcol < 1.5 * (near.stats.nfev + near.stats.nhcol)


@pytest.mark.parametrize("log10_alpha", [-20, -100, -1000])
def test_fewer_gradients_than_cvode_at_a_smaller_error(log10_alpha):
    objective = small_head(noise=0.1)
    init = Initialization.gaussian(objective.n_products, log10_alpha=log10_alpha, rng=1)

    def run(method, tol):
        return simulate(objective, init=init, until_rescaled=END, method=method, tol=tol)

    reference = run("surrogate", 1e-9).crossings(0.05)[0]
    own, cvode = run("surrogate", 1e-4), run("CVODE", 1e-5)
    assert np.max(np.abs(own.crossings(0.05)[0] - reference)) < np.max(
        np.abs(cvode.crossings(0.05)[0] - reference)
    )
    assert own.stats.nfev + own.stats.nhcol < 0.6 * (cvode.stats.nfev + cvode.stats.nhcol)
