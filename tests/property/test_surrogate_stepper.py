"""Invariants of the library's own integrator over random small problems."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives import Quadratic, Scaled, Transformed, small_head

from dynalyze.errors import FlowError
from dynalyze.flow.coordinates import BalancedCoordinates
from dynalyze.flow.initialization import Initialization
from dynalyze.flow.steppers.surrogate import SurrogateStepper
from dynalyze.models.counted import CountedObjective

TOL = 1e-7


def problem(seed):
    rng = np.random.default_rng(seed)
    if seed % 2:
        return small_head(seed=seed, noise=0.2)
    factors = rng.standard_normal((7, 5))
    return Quadratic(rng.standard_normal(5), factors.T @ factors / 7)


def walk(stepper, end):
    segments = []
    while stepper.t < end:
        segments.append(stepper.step())
    return segments


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), log10_alpha=st.sampled_from([-1, -3, -12, -300]))
def test_loss_falls_and_segments_join(seed, log10_alpha):
    objective = problem(seed)
    init = Initialization.gaussian(objective.n_products, log10_alpha=log10_alpha, rng=seed)
    chart = init.coordinates
    end = 4 * init.log_inverse_alpha
    stepper = SurrogateStepper(objective, chart, init.z0, t_bound=end, tol=TOL)
    first = stepper.field
    np.testing.assert_allclose(first, objective.field(chart.theta(init.z0)), rtol=1e-12)
    before, loss = init.z0, objective.value(chart.theta(init.z0))
    scale = loss
    t = 0.0
    for segment in walk(stepper, end):
        assert segment.t_start == t
        np.testing.assert_allclose(segment.z(segment.t_start), before, rtol=0, atol=1e-12)
        middle = segment.z(np.array([segment.t_start, segment.t_end]))
        assert middle.shape == (2, objective.n_products)
        before, t = segment.z(segment.t_end), segment.t_end
        after = objective.value(chart.theta(before))
        assert after <= loss + 100 * TOL * scale
        loss = after
    np.testing.assert_allclose(stepper.z, before, rtol=0, atol=1e-12)
    exact = objective.field(chart.theta(stepper.z))
    np.testing.assert_allclose(stepper.field, exact, atol=1e-4 * np.max(np.abs(first)))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), log10_alpha=st.sampled_from([-2, -12, -300]))
def test_permutation_and_signs(seed, log10_alpha):
    objective = problem(seed)
    rng = np.random.default_rng(seed)
    p = objective.n_products
    init = Initialization.gaussian(p, log10_alpha=log10_alpha, rng=seed)
    order, signs = rng.permutation(p), rng.choice([-1.0, 1.0], p)
    end = 3 * init.log_inverse_alpha
    one = SurrogateStepper(objective, init.coordinates, init.z0, t_bound=end, tol=TOL)
    chart = type(init.coordinates)(init.coordinates.log_abs_c[order])
    two = SurrogateStepper(
        Transformed(objective, order, signs), chart, signs * init.z0[order], t_bound=end, tol=TOL
    )
    walk(one, end)
    walk(two, end)
    np.testing.assert_allclose(two.z, signs * one.z[order], atol=3000 * TOL)


@pytest.mark.parametrize(
    ("length", "energy"), [(2.0**30, 1.0), (2.0**-40, 2.0**10), (1.0, 2.0**50)]
)
@pytest.mark.parametrize("seed", [1, 2])
def test_units_do_not_matter(seed, length, energy):
    objective = problem(seed)
    init = Initialization.gaussian(objective.n_products, log10_alpha=-20, rng=seed)
    chart, end = init.coordinates, 3 * init.log_inverse_alpha
    few = CountedObjective(objective)
    usual = SurrogateStepper(few, chart, init.z0, t_bound=end, tol=TOL)
    walk(usual, end)
    scaled = CountedObjective(Scaled(objective, length, energy))
    chart = type(chart)(chart.log_abs_c + np.log(length))
    end *= length / energy
    unusual = SurrogateStepper(scaled, chart, init.z0, t_bound=end, tol=TOL)
    walk(unusual, end)
    np.testing.assert_allclose(unusual.z, usual.z, atol=3000 * TOL)
    assert scaled.nfev <= 1.1 * few.nfev
    assert scaled.nhcol <= 1.1 * few.nhcol


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), fraction=st.floats(0.1, 0.9))
def test_restart_equals_the_unbroken_run(seed, fraction):
    objective = problem(seed)
    init = Initialization.gaussian(objective.n_products, log10_alpha=-15, rng=seed)
    end = 3 * init.log_inverse_alpha
    whole = SurrogateStepper(objective, init.coordinates, init.z0, t_bound=end, tol=TOL)
    walk(whole, end)
    part = SurrogateStepper(objective, init.coordinates, init.z0, t_bound=end, tol=TOL)
    walk(part, fraction * end)
    rest = SurrogateStepper(objective, init.coordinates, part.z, t=part.t, t_bound=end, tol=TOL)
    walk(rest, end)
    np.testing.assert_allclose(rest.z, whole.z, atol=3000 * TOL)


class Breaking(Quadratic):
    """Not a number from some θ on."""

    def field(self, theta):
        return np.where(np.max(np.abs(theta)) > 0.5, np.nan, super().field(theta))


def test_a_field_that_is_not_a_number_is_an_error_with_a_remedy():
    objective = Breaking([1.0, 0.3])
    init = Initialization.gaussian(2, log10_alpha=-6, rng=1)
    stepper = SurrogateStepper(objective, init.coordinates, init.z0, t_bound=100.0, tol=1e-6)
    with pytest.raises(FlowError, match=r"from t = [0-9.]+: no step is .* g is nan .*method"):
        walk(stepper, 100.0)
    assert 0.3 < np.max(np.abs(init.coordinates.theta(stepper.z))) <= 0.51
    z = init.coordinates.z_of_theta(np.array([0.7, 0.1]))
    with pytest.raises(FlowError, match=r"t = 0\.0: the field g is nan at product w\[0\]"):
        SurrogateStepper(objective, init.coordinates, z)


def test_a_flow_at_rest_goes_on_without_evaluations():
    objective = CountedObjective(Quadratic([0.4, -0.2]))
    init = Initialization.gaussian(2, log10_alpha=-6, rng=1)
    stepper = SurrogateStepper(objective, init.coordinates, init.z0, t_bound=1e9, tol=1e-6)
    walk(stepper, 1e9)
    np.testing.assert_allclose(init.coordinates.theta(stepper.z), [0.4, -0.2], atol=1e-9)
    assert objective.nfev < 40
    with pytest.raises(FlowError, match=r"t_bound=1000000000\.0 is reached"):
        stepper.step()


def test_nothing_moves_without_a_field():
    objective = Quadratic([0.0, 0.0])
    chart = BalancedCoordinates(np.zeros(2))
    stepper = SurrogateStepper(objective, chart, np.zeros(2))
    with pytest.raises(FlowError, match="nothing moves any more"):
        walk(stepper, np.inf)
