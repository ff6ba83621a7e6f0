"""The library's own integrator: its design order, and the models that it solves exactly."""

import numpy as np
import pytest
from objectives import Quadratic, small_head
from scipy.integrate import solve_ivp

from dynalyze.errors import InvalidInputError
from dynalyze.flow.coordinates import BalancedCoordinates
from dynalyze.flow.initialization import Initialization
from dynalyze.flow.steppers.surrogate import SurrogateStepper
from dynalyze.flow.steppers.surrogate.method import step, step_to
from dynalyze.flow.steppers.surrogate.state import start
from dynalyze.models.counted import CountedObjective


def end_point(stepper, t):
    while stepper.t < t:
        stepper.step()
    assert stepper.t == t
    return stepper.z


def moving_head():
    """Return a flow whose coordinates all move, its end, and z there."""
    objective = small_head(noise=0.1)
    init = Initialization.gaussian(objective.n_products, log10_alpha=-0.5, rng=1)
    chart, end = init.coordinates, 1.0
    exact = solve_ivp(
        lambda _, z: objective.field(chart.theta(z)),
        (0, end),
        init.z0,
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    ).y[:, -1]
    return objective, init, end, exact


def error_of_steps(order, ends):
    """Error at the last of the given times, after steps from one to the next."""
    objective, init, _, exact = moving_head()
    up, down = init.coordinates.log_amplitudes()
    units = np.ones(objective.n_products)
    problem, state = start(objective, up, down, units, 0.0, init.z0, 5e-12, order)
    while len(state.samples) < order:
        state, _ = step(problem, state, ends[-1])
    for t in ends[ends > state.t]:
        state, _ = step_to(problem, state, t)
    return np.max(np.abs(state.z - exact))


def observed_order(errors):
    errors = np.array([error for error in errors if error > 1e-11])  # the reference has 1e-12
    assert errors[-1] < 1e-6
    return np.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
def test_m_nodes_make_order_m_plus_1_at_fixed_steps(order):
    errors = [error_of_steps(order, np.linspace(0, 1, n + 1)[1:]) for n in (8, 16, 32)]
    assert observed_order(errors) == pytest.approx(order + 1, abs=0.15)


@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
def test_m_nodes_make_order_m_plus_1_at_variable_steps(order):
    # Steps of different lengths in turn, halved together.
    pattern = np.array([1.0, 0.7, 1.2, 0.8, 1.1, 0.75, 1.15, 0.9])
    errors = []
    for n in (1, 2, 4):
        lengths = np.repeat(pattern, n)
        errors.append(error_of_steps(order, np.append(np.cumsum(lengths)[:-1] / lengths.sum(), 1)))
    assert observed_order(errors) == pytest.approx(order + 1, abs=0.25)


def test_work_grows_with_the_tolerance_as_the_order_says():
    # A method of order 6 needs 10 times the steps for an error 1e6 times smaller.
    objective, init, end, exact = moving_head()
    evaluations = []
    for tol in (1e-4, 1e-7, 1e-10):
        counted = CountedObjective(objective)
        stepper = SurrogateStepper(counted, init.coordinates, init.z0, t_bound=end, tol=tol)
        assert np.max(np.abs(end_point(stepper, end) - exact)) < 3 * tol
        evaluations.append(counted.nfev)
    assert evaluations[2] < 12 * evaluations[0]


@pytest.mark.parametrize("log10_alpha", [-2, -20, -1000])
def test_linear_models_need_next_to_no_gradients(log10_alpha):
    rng = np.random.default_rng(4)
    design = rng.standard_normal((40, 6))
    target = rng.choice([-1.0, 1.0], 6) * rng.uniform(0.3, 1.0, 6)
    quadratic = Quadratic(target, design.T @ design / 40)
    objective = CountedObjective(quadratic)
    init = Initialization.gaussian(6, log10_alpha=log10_alpha, rng=2)
    end = 60 * init.log_inverse_alpha
    stepper = SurrogateStepper(objective, init.coordinates, init.z0, t_bound=end, tol=1e-8)
    z = end_point(stepper, end)
    np.testing.assert_allclose(init.coordinates.theta(z), quadratic.a, atol=1e-7)
    assert objective.nfev < 40
    assert objective.nhev < 10


def test_logistic_growth_on_the_balanced_chart():
    # dθ/dt = 2θ(a − θ) from θ_0: θ = a/(1 + (a/θ_0 − 1) e^{−2at}); the others only drift.
    a, first = np.array([0.8, 0.5, -0.3]), 1e-5
    hessian = np.array([[1.0, 0.0, 0.4], [0.0, 1.0, 0.0], [0.4, 0.0, 1.0]])
    chart = BalancedCoordinates(np.array([1.0, 0.0, 0.0]))
    z0 = chart.z_of_theta(np.array([first, 0.0, 0.0]))
    objective = Quadratic(a, hessian)
    rate = a[0] + hessian[0, 2] * a[2]
    stepper = SurrogateStepper(objective, chart, z0, tol=1e-8)
    while stepper.t < 40:
        segment = stepper.step()
        for t in np.linspace(segment.t_start, segment.t_end, 3):
            theta = rate / (1 + (rate / first - 1) * np.exp(-2 * rate * t))
            z = segment.z(t)
            assert abs(z[0] - 0.5 * np.log(theta)) < 1e-6
            assert z[1] == pytest.approx(a[1] * t, abs=1e-7)
            # ∫ (g_2 − 0.4 (θ − a)) dt, with ∫ θ dt from the closed form
            area = 0.5 * np.log(1 + first / rate * np.expm1(2 * rate * t))
            assert z[2] == pytest.approx((a[2] + 0.4 * a[0]) * t - 0.4 * area, abs=1e-6)
    np.testing.assert_allclose(chart.theta(stepper.z)[0], rate, rtol=1e-9)


def test_order_must_be_known():
    objective = Quadratic([1.0])
    init = Initialization.gaussian(1, log10_alpha=-4, rng=0)
    with pytest.raises(InvalidInputError, match="order=9 must be from 2 to 6"):
        SurrogateStepper(objective, init.coordinates, init.z0, order=9)
