"""The flow in log coordinates against the raw weights, and the methods against each other."""

import numpy as np
import pytest
from objectives import Quadratic, small_head
from scipy.integrate import solve_ivp

from dynalyze.flow.coordinates import LogCoordinates
from dynalyze.flow.initialization import Initialization
from dynalyze.flow.simulate import simulate
from dynalyze.flow.steppers.guarded import GuardedFlow
from dynalyze.flow.steppers.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_against_eq_4_on_raw_weights(method):
    objective = small_head()
    p = objective.n_products
    init = Initialization.gaussian(p, log10_alpha=-1.5, rng=1)
    weights = 10**-1.5 * np.concatenate([init.u0, init.v0])

    def rate(_, weights):
        u, v = weights[:p], weights[p:]
        g = objective.field(u * v)
        return np.concatenate([v * g, u * g])

    raw = solve_ivp(rate, (0, 10), weights, method="DOP853", rtol=1e-11, atol=1e-13)
    trajectory = simulate(objective, init=init, until=10.0, method=method, tol=1e-8)
    u, v = trajectory.weights_at(raw.t)
    np.testing.assert_allclose(u, raw.y[:p].T, atol=2e-6)
    np.testing.assert_allclose(v, raw.y[p:].T, atol=2e-6)


@pytest.mark.parametrize("log10_alpha", [-4, -20, -100])
def test_two_tight_methods_agree_and_bound_the_others(log10_alpha):
    objective = small_head(noise=0.1)
    init = Initialization.gaussian(objective.n_products, log10_alpha=log10_alpha, rng=1)
    end = 6.0

    def run(method, tol):
        return simulate(objective, init=init, until_rescaled=end, method=method, tol=tol)

    lsoda, radau = run("LSODA", 1e-11), run("Radau", 1e-10)
    t, coordinate, direction = lsoda.crossings(0.05)
    assert len(t) >= 4
    np.testing.assert_array_equal(radau.crossings(0.05)[1], coordinate)
    np.testing.assert_array_equal(radau.crossings(0.05)[2], direction)
    np.testing.assert_allclose(radau.crossings(0.05)[0], t, rtol=2e-9)
    for method in METHODS:
        loose = run(method, 1e-6)
        np.testing.assert_array_equal(loose.crossings(0.05)[1], coordinate)
        np.testing.assert_allclose(loose.crossings(0.05)[0], t, atol=1e-3)


def test_error_falls_with_the_tolerance_at_1e_minus_1000():
    objective = small_head(noise=0.1)
    init = Initialization.gaussian(objective.n_products, log10_alpha=-1000, rng=1)

    def times(method, tol):
        trajectory = simulate(objective, init=init, until_rescaled=6.0, method=method, tol=tol)
        return trajectory.crossings(0.05)[0]

    reference = times("LSODA", 1e-10)
    errors = [np.max(np.abs(times("Radau", tol) - reference)) for tol in (1e-3, 1e-5, 1e-7)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-6


@pytest.mark.parametrize("log10_alpha", [-1, -1000])
def test_jacobian_against_differences(log10_alpha):
    objective = small_head()
    p = objective.n_products
    chart = LogCoordinates(Initialization.gaussian(p, log10_alpha=log10_alpha, rng=1).log_abs_c)
    flow = GuardedFlow(objective, chart)
    rng = np.random.default_rng(0)
    z = chart.z_of_theta(rng.standard_normal(p))
    z[::3] = 0.1  # coordinates at the scale of the initialization
    flow.rate(z)
    jacobian = flow.jacobian(z)
    h = 1e-6
    for i in range(p):
        step = h * np.eye(p)[i]
        difference = (flow.rate(z + step) - flow.rate(z - step)) / (2 * h)
        np.testing.assert_allclose(jacobian[:, i], difference, atol=1e-7)


def test_only_active_columns_are_evaluated_once_sizes_are_known():
    objective = Quadratic([1.0, 1.0, 1.0])
    chart = LogCoordinates(np.full(3, -200.0))
    flow = GuardedFlow(objective, chart)
    flow.rate(np.zeros(3))
    z = chart.z_of_theta(np.array([0.5, 1e-30, 1e-5]))
    first, second = flow.jacobian(z), flow.jacobian(z)
    np.testing.assert_array_equal(np.diag(first)[[0, 2]], np.diag(second)[[0, 2]])
    assert first[1, 1] != 0
    assert second[1, 1] == 0


def test_dense_output_of_cvode_is_its_own():
    # The samples taken within a step must not disturb the steps that follow.
    init = Initialization.gaussian(3, log10_alpha=-10, rng=1)
    objective = Quadratic([1.0, -0.5, 0.25])
    from sksundae.cvode import CVODE

    from dynalyze.flow.steppers.cvode import CvodeStepper

    stepper = CvodeStepper(objective, init.coordinates, init.z0, tol=1e-7)
    flow = GuardedFlow(objective, init.coordinates)
    accepted = [init.z0]

    def rate(_, z, rates):
        rates[:] = flow.rate(z)

    def jacobian(_, z, rates, matrix):
        matrix[:, :] = flow.jacobian(accepted[-1])

    size = np.max(np.abs(flow.rate(init.z0)))
    bare = CVODE(rate, jacfn=jacobian, rtol=1e-14, atol=1e-7, first_step=1e-7**0.5 / size)
    bare.init_step(0.0, init.z0)
    for _ in range(150):
        segment = stepper.step()
        result = bare.step(segment.t_end + 1, method="onestep")
        accepted.append(np.array(result.y))
        assert result.t == segment.t_end
        np.testing.assert_array_equal(result.y, stepper.z)
        np.testing.assert_allclose(segment.z(segment.t_end), stepper.z, atol=1e-12)
    assert stepper.t > 30
