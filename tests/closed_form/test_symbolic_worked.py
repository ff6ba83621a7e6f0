"""Worked models against numbers computed by hand, and how the symbolic recursion can end."""

import numpy as np
import pytest
import sympy as sp

from dynalyze import Initialization, predict_stages, simulate
from dynalyze.errors import InvalidInputError
from dynalyze.models import SymbolicModel
from dynalyze.symbolic import (
    ExpectedLoss,
    ScalarProduct,
    attention_head,
    diagonal_linear,
    expectation,
    mean_loss,
    orthogonal_stages,
    stages,
)
from dynalyze.symbolic.decisions import Decisions
from dynalyze.symbolic.equations import activation, log_scale, time_until_active

R = sp.Rational
A, B = sp.symbols("a b")


def test_the_three_stage_example_of_the_docs():
    exact = stages(diagonal_linear([[4, 2, 1], [2, 3, 1], [1, 1, 2]], [5, -1, 2], 20))
    assert exact.times == (R(1, 5), R(3, 7), R(9, 13))
    assert exact.coordinates == (0, 1, 2)
    assert exact.signs == (1, -1, 1)
    assert exact.theta == (
        (0, 0, 0), (R(5, 4), 0, 0), (R(17, 8), R(-7, 4), 0), (2, -2, 1)
    )  # fmt: skip
    assert exact.b == ((1, 1, 1), (0, R(6, 5), R(3, 5)), (0, 2, R(3, 7)), (0, 2, 0))
    assert exact.losses == (10, R(55, 8), R(61, 16), 3)
    assert exact.departed == ((), (), ())
    assert exact.status == "converged"
    assert exact.conditions == ()


def test_a_coordinate_that_leaves_and_comes_back_with_the_other_sign():
    exact = stages(diagonal_linear([[1, -2, 2], [-2, 9, -6], [2, -6, 5]], [0, 3, -2], 8))
    assert exact.times == (R(1, 3), R(11, 6), R(9, 4), R(17, 4))
    assert exact.coordinates == (1, 0, 2, 1)
    assert exact.signs == (1, 1, -1, -1)
    assert exact.departed == ((), (), (1,), ())
    assert exact.theta == (
        (0, 0, 0), (0, R(1, 3), 0), (R(6, 5), R(3, 5), 0), (4, 0, -2), (6, -1, -4)
    )  # fmt: skip
    # having left, it waits the full way, b = 0 to b = 2, at field −1
    assert exact.b[3][1] == 0
    assert exact.times[3] - exact.times[2] == 2


def test_equations_8_to_10():
    g, b = sp.symbols("g b", real=True)
    positive, negative = sp.Symbol("g", positive=True), sp.Symbol("g", negative=True)
    assert time_until_active(b, positive) == b / positive
    assert sp.simplify(time_until_active(b, negative) - (b - 2) / negative) == 0
    assert time_until_active(1, 0) == sp.oo
    for value in (R(3, 4), R(-5, 7)):
        wait = time_until_active(R(1, 3), value)
        assert wait == (R(1, 3) - 1 + sp.sign(value)) / value
        assert time_until_active(b, g).subs({g: value, b: R(1, 3)}) == wait
        assert log_scale(R(1, 3), value, wait) == 1 - sp.sign(value)
    assert activation([R(1, 2), R(1, 3), sp.oo]) == ((1,), R(1, 3))
    assert activation([R(1, 2), sp.oo, R(1, 2)]) == ((0, 2), R(1, 2))
    assert activation([sp.oo, sp.oo]) == ((), sp.oo)


def test_equal_algebraic_times_tie():
    root = sp.sqrt(2) + sp.sqrt(3)
    waits = [root, sp.sqrt(5 + 2 * sp.sqrt(6))]  # the same number
    assert activation(waits)[0] == (0, 1)


@pytest.mark.parametrize("target", [R(3, 2), R(-2, 3)])
@pytest.mark.parametrize("log10_alpha", [-4, -30])
def test_scalar_product_for_all_times(target, log10_alpha):
    init = Initialization([0.8], [0.3], log10_alpha=log10_alpha)
    alpha = sp.Rational(10) ** log10_alpha
    c = alpha**2 * abs(R(0.8) ** 2 - R(0.3) ** 2)
    curvature = R(5, 4)
    scalar = ScalarProduct(target, c, alpha**2 * R(0.8) * R(0.3), curvature)
    theta, x = sp.symbols("theta x")
    model = SymbolicModel(x * theta, [x], [theta])
    data = (np.array([[np.sqrt(1.25)]]), np.array([np.sqrt(1.25) * float(target)]))
    trajectory = simulate(model, data, init, until_rescaled=2.5, tol=1e-9)
    for t in trajectory.t[:: max(1, len(trajectory.t) // 12)]:
        exact = scalar.theta(R(float(t))).evalf(30, maxn=1000)
        assert float(trajectory.theta_at(t)[0]) == pytest.approx(float(exact), rel=2e-6)
    crossing, _, _ = trajectory.crossings(0.3)
    exact = scalar.crossing_time(sp.sign(target) * R(3, 10)).evalf(20, maxn=1000)
    assert crossing[0] == pytest.approx(float(exact), rel=1e-7)
    # and to leading order it is T_1 log(1/α)
    (T1,) = stages(scalar.problem).times
    assert float(exact) / float(T1 * -sp.log(alpha)) == pytest.approx(1, abs=2.5 / abs(log10_alpha))


def test_scalar_product_solves_its_differential_equation():
    t, a, s = sp.symbols("t a s", real=True)
    c, k = sp.symbols("c k", positive=True)
    scalar = ScalarProduct(a, c, s, k)
    theta = scalar.theta(t)
    residual = sp.diff(theta, t) - sp.sqrt(4 * theta**2 + c**2) * k * (a - theta)
    for values in (
        {a: 2, s: R(1, 5), c: R(1, 3), k: 3, t: R(1, 7)},
        {a: -1, s: R(1, 9), c: 1, k: 2, t: 1},
    ):
        assert abs(residual.subs(values).evalf(40)) < 1e-35
        assert abs((theta.subs(t, 0) - s).subs(values).evalf(40)) < 1e-35
        back = scalar.crossing_time(theta).subs(values).evalf(40)
        assert abs(back - values[t]) < 1e-35


def test_algebraic_stationary_points_and_the_branch_that_the_flow_takes():
    h = (3 * A + A**3 - B, B + A * B + A)
    problem = mean_loss(h, [], [A, B], [[]], [[2, 1]])
    exact = stages(problem)
    assert exact.status == "converged"
    assert exact.theta[1][0] == sp.CRootOf(3 * A**5 + 12 * A**3 - 6 * A**2 + 10 * A - 7, 0)
    assert exact.losses[-1] == 0  # though θ is a root of degree four
    assert "the one of 3 stationary points that the flow" in exact.branches[1]
    x = sp.Symbol("x")  # predict_stages wants an input
    model = SymbolicModel([e + 0 * x for e in h], [x], [A, B])
    numeric = predict_stages(model, (np.ones((1, 1)), np.array([[2.0, 1.0]])))
    np.testing.assert_allclose(exact.numeric().theta, numeric.theta, atol=1e-12)
    np.testing.assert_allclose(exact.numeric().times, numeric.times, rtol=1e-12)
    assert r"\text{the root } x \approx 0.618473" in exact.latex()
    assert "rho_1 = CRootOf" in str(exact)


def test_parameters_come_out_in_closed_form_with_their_conditions():
    y1, y2 = sp.symbols("y1 y2", positive=True)
    problem = attention_head([[[1], [0]]], [[[y1], [y2]]])
    exact = stages(problem, at={y1: R(3, 2), y2: 1})
    assert sp.simplify(exact.times[1] - 2 / (y1 + y2) - 8 / (y1**2 - y2**2)) == 0
    assert exact.theta[-1] == (sp.log(-y1 / (y1 - 2 * y2)), 2 * y2)
    assert sp.Gt(y1 - y2, 0) in exact.conditions
    with pytest.raises(InvalidInputError, match=r"the condition .* does not hold: find the stages"):
        exact.subs({y1: 1, y2: 2})
    with pytest.raises(InvalidInputError, match=r"depends? on y1, y2: use lambdify"):
        exact.numeric()
    with pytest.raises(InvalidInputError, match="the stages depend on y2: add to parameters"):
        exact.lambdify([y1])
    with pytest.raises(InvalidInputError, match="depend on the value of y1, y2: name a reference"):
        stages(problem)


UNSOLVABLE = ExpectedLoss((A * sp.exp(A) + A - 2 + sp.sin(A) / 9) ** 2 / 2, (A,))


def test_what_sympy_cannot_solve_comes_back_as_equations():
    exact = stages(UNSOLVABLE)
    assert exact.status == "unsolved"
    assert exact.next_coordinates == (0,)
    assert exact.times == ()
    (equation,) = exact.equations
    end = float(exact.message.split("a = ")[1].split(",")[0])
    assert abs(float(equation.subs(A, end))) < 1e-9
    assert "`equations` are left to solve" in exact.message
    assert exact.next_time == time_until_active(1, -sp.diff(UNSOLVABLE.loss, A).subs(A, 0))


def test_the_time_limit_is_kept():
    problem = attention_head(
        [[[-2], [1]], [[1], [2]], [[2], [-1]]], [[[1], [-2]], [[R(1, 2)], [3]], [[-1], [R(5, 2)]]]
    )
    exact = stages(problem, max_seconds=0.2)  # without the limit it would take minutes
    assert exact.status == "unsolved"
    assert "SymPy's solve did not end within max_seconds=0.2 s" in exact.message
    assert len(exact.equations) == 2


def test_a_loss_without_a_minimum_has_no_limit_point():
    exact = stages(ExpectedLoss(sp.log(1 + sp.exp(-A)), (A,)))
    assert exact.status == "no_limit"
    assert "the flow does not come to rest: at flow time" in exact.message
    assert exact.next_time == 2


def test_duplicated_features_tie():
    exact = stages(diagonal_linear([[1, 1], [1, 1]], [2, 2], 5))
    assert exact.status == "tie"
    assert "theta0, theta1 become active at once: Assumption 4.2" in exact.message
    assert exact.next_coordinates == (0, 1)
    assert exact.next_time == R(1, 2)


def test_leaving_with_field_zero_is_degenerate():
    # y is a multiple of feature 0, so coordinate 1 is not needed in the end, exactly
    X = sp.Matrix([[-2, 4], [1, -3]])
    r = list(X.T * sp.Matrix([-4, 2]))
    exact = stages(diagonal_linear(X.T * X, r, 20))
    assert exact.status == "converged"
    assert "theta1 left with field 0: Assumption 4.2 fails" in exact.message
    # with a third feature, independent of both and learned last, the recursion goes on
    sigma = sp.diag(X.T * X, 1)
    exact = stages(diagonal_linear(sigma, [*r, R(1, 10)], 20))
    assert exact.status == "degenerate"
    assert exact.next_coordinates == (2,)


def test_nothing_to_learn_and_a_budget():
    assert stages(diagonal_linear([[2]], [0], 1)).times == ()
    exact = stages(diagonal_linear(sp.eye(3), [3, 2, 1], 20), max_stages=1)
    assert exact.status == "max_stages"
    assert exact.times == (R(1, 3),)
    assert exact.next_time == R(1, 2)


def test_expectations_from_moments():
    x, t = sp.symbols("x t")
    moment = {(1,): 0, (2,): 3, (4,): 27}
    assert expectation((1 - t * x**2) ** 2, [x], moment) == 27 * t**2 - 6 * t + 1
    gauss = {(2, 0): 1, (0, 2): 1, (1, 1): R(1, 2)}
    u, v = sp.symbols("u v")
    h = (2 * u - v - A * u - B * v) ** 2 / 2
    exact = stages(ExpectedLoss(expectation(h, [u, v], gauss), (A, B)))
    assert exact.theta[-1] == (2, -1)
    with pytest.raises(
        InvalidInputError, match=r"the moment of exponents \(3,\) of \(x,\) is miss"
    ):
        expectation(x**3, [x], moment)
    with pytest.raises(InvalidInputError, match="is not a polynomial in x"):
        expectation(sp.exp(x), [x], moment)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ExpectedLoss((A - 0.5) ** 2, (A,)), r"contains the floating-point number -0\.5"),
        (lambda: ExpectedLoss(A**2, (A + 1,)), r"products contains a \+ 1: each entry must be"),
        (lambda: diagonal_linear([[1, 2], [0, 1]], [1, 1]), "give a symmetric matrix"),
        (lambda: diagonal_linear([[1]], [1, 1]), r"sigma has shape \(1, 1\) with a correlation"),
        (lambda: orthogonal_stages([1, 1], [2, 1], [0, 0]), r"order=\[0, 0\]: give a permutation"),
        (lambda: mean_loss(A, [], [A], [], []), "X has 0 rows and y 0"),
        (lambda: mean_loss(A, [], [A], [[1]], [1]), "a sample has 1 inputs and 1 targets"),
        (
            lambda: attention_head([[[1]], [[1], [2]]], [[[1]], [[1], [2]]]),
            r"X has samples of shapes \(1, 1\), \(2, 1\)",
        ),
        (lambda: stages(UNSOLVABLE, max_seconds=0), "max_seconds=0 must be positive"),
        (lambda: activation([]), "waits is empty"),
        (lambda: Decisions({A: B}), "give real numbers for SymPy symbols"),
    ],
)
def test_errors(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
