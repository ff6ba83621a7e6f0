"""L = λ (θ − a)²/2 for each product: the flow by separation of variables, with 50 digits."""

import numpy as np
import pytest
from claims import every
from mpmath import mp, mpf
from objectives import Quadratic

from dynalyze.flow.initialization import Initialization
from dynalyze.flow.simulate import simulate
from dynalyze.models.linear import DiagonalLinear

A = np.array([0.7, -1.3, 0.25, 2.0, -0.06])
RATES = np.array([1.0, 0.4, 3.0, 0.2, 1.5])


def exact_crossing_time(log_abs_c, z0, a, rate, threshold):
    """Time at which θ, from z0, reaches threshold on the way to a; dz/dt = λ(a − κ sinh 2z).

    With s = e^{2z} and R = √(a² + κ²) the partial fractions of ds/(2as − κs² + κ) integrate
    to log[(s − s₂)/(s₁ − s)]/(2R), s₁,₂ = (a ± R)/κ.
    """
    with mp.workdps(2200 if log_abs_c < -2000 else 400):
        kappa = mp.exp(mpf(log_abs_c)) / 2
        sign = mp.sign(a)
        a, z0 = abs(mpf(a)), sign * mpf(z0)
        radius = mp.sqrt(a**2 + kappa**2)
        s1, s2 = (a + radius) / kappa, (a - radius) / kappa

        def antiderivative(s):
            return mp.log((s - s2) / (s1 - s)) / (2 * radius)

        s = mp.exp(mp.asinh(mpf(threshold) / kappa))
        return float((antiderivative(s) - antiderivative(mp.exp(2 * z0))) / mpf(rate))


@pytest.mark.parametrize("log10_alpha", [-4, -20, -100, -1000])
@pytest.mark.parametrize(
    ("method", "tol", "error"),
    [
        ("surrogate", 1e-8, 1e-6),
        ("LSODA", 1e-9, 1e-6),
        ("BDF", 1e-8, 1e-5),
        ("Radau", 1e-8, 1e-6),
        ("CVODE", 1e-8, 1e-5),
    ],
)
def test_crossing_times_of_five_independent_products(log10_alpha, method, tol, error):
    init = Initialization.gaussian(5, log10_alpha=log10_alpha, rng=3)
    objective = Quadratic(A, np.diag(RATES))
    trajectory = simulate(objective, init=init, until_rescaled=18, method=method, tol=tol)
    assert trajectory.status == "finished"
    for threshold in (0.01, 0.05, 0.2):
        t, coordinate, direction = trajectory.crossings(threshold)
        assert sorted(coordinate) == list(np.flatnonzero(np.abs(A) > threshold))
        assert every(direction == 1)
        for i, time in zip(coordinate, t, strict=True):
            exact = exact_crossing_time(init.log_abs_c[i], init.z0[i], A[i], RATES[i], threshold)
            assert time == pytest.approx(exact, abs=error / (RATES[i] * abs(A[i])))
    np.testing.assert_allclose(trajectory.theta[-1], A, rtol=1e-6)


@pytest.mark.parametrize("method", ["LSODA", "Radau", "CVODE"])
def test_weights_keep_the_difference_of_their_squares(method):
    init = Initialization.gaussian(5, log10_alpha=-2, rng=3)
    trajectory = simulate(
        Quadratic(A, np.diag(RATES)), init=init, until_rescaled=5, method=method, tol=1e-4
    )
    u, v = trajectory.weights_at(np.linspace(0, trajectory.t[-1], 50))
    c = 1e-4 * (init.u0**2 - init.v0**2)
    # Rounding of u² and v² themselves, however loose the tolerance.
    np.testing.assert_allclose(u**2 - v**2, np.broadcast_to(c, u.shape), rtol=0, atol=3e-14)
    np.testing.assert_allclose(
        u * v, trajectory.theta_at(np.linspace(0, trajectory.t[-1], 50)), rtol=1e-12
    )


@pytest.mark.parametrize("loss", ["squared", "mse"])
def test_orthogonal_design_is_one_such_flow_for_each_feature(loss):
    # XᵀX/n = diag(λ), so that the loss is ½ Σ λ_i (θ_i − a_i)², twice that as a mean of squares.
    n = 40
    columns = np.linalg.qr(np.random.default_rng(0).standard_normal((n, 5)))[0]
    X = columns * np.sqrt(n * RATES)
    init = Initialization.gaussian(5, log10_alpha=-300, rng=3)
    model = DiagonalLinear(5)
    trajectory = simulate(model, (X, X @ A), init, until_rescaled=14, loss=loss, tol=1e-9)
    t, coordinate, _ = trajectory.crossings(0.05)
    assert sorted(coordinate) == [0, 1, 2, 3, 4]
    rates = RATES * (2 if loss == "mse" else 1)
    for i, time in zip(coordinate, t, strict=True):
        exact = exact_crossing_time(init.log_abs_c[i], init.z0[i], A[i], rates[i], 0.05)
        assert time == pytest.approx(exact, rel=1e-8)


def test_initial_weights_and_products_are_those_given():
    init = Initialization([0.4, -1.0], [-0.9, 0.2], log10_alpha=-3)
    trajectory = simulate(Quadratic([1.0, -1.0]), init=init, until=2.0)
    u, v = trajectory.weights_at(0.0)
    np.testing.assert_allclose(u, 1e-3 * np.array([0.4, -1.0]), rtol=1e-12)
    np.testing.assert_allclose(v, 1e-3 * np.array([-0.9, 0.2]), rtol=1e-12)
    assert trajectory.t[0] == 0
    assert trajectory.t[-1] == 2.0
    assert trajectory.t_rescaled[-1] == pytest.approx(2 / np.log(1e3))


def test_flow_ends_by_itself_at_the_minimum():
    init = Initialization.gaussian(5, log10_alpha=-30, rng=3)
    trajectory = simulate(Quadratic(A, np.diag(RATES)), init=init)
    assert trajectory.status == "stationary"
    np.testing.assert_allclose(trajectory.theta[-1], A, rtol=1e-6)
    # Each waits for log(1/α)/|g_i|, the last of them the longest.
    t, coordinate, _ = trajectory.crossings(0.03)
    slowest = 1 / np.min(RATES * np.abs(A))
    assert t[-1] / init.log_inverse_alpha == pytest.approx(slowest, rel=0.1)
    assert coordinate[-1] == np.argmin(RATES * np.abs(A))
