"""Limit points at which the Hessian vanishes, or that are none."""

import time

import numpy as np
import pytest
import sympy as sp
from objectives import OnlyObjective, Power, Quadratic

from dynalyze import predict_stages
from dynalyze.models import DiagonalLinear, SymbolicModel
from dynalyze.models.formula.expressions import degree


def test_an_inflection_is_no_limit_point():
    prediction = predict_stages(Power(3))
    assert prediction.status == "no_limit"
    assert "an inflection, no minimum" in prediction.message


@pytest.mark.parametrize(("exponent", "accuracy"), [(4, 1e-6), (6, 1e-3)])
def test_a_minimum_of_higher_order_is_a_limit_point_with_a_caveat(exponent, accuracy):
    prediction = predict_stages(Power(exponent))
    assert prediction.status == "converged"
    np.testing.assert_allclose(prediction.theta[1], 1, rtol=accuracy)
    assert "the curvature of the loss vanishes" in prediction.caveats[0]
    assert "stage 1: the curvature" in prediction.summary()


def test_a_strict_minimum_has_no_caveat():
    prediction = predict_stages(Power(2))
    np.testing.assert_allclose(prediction.theta[1], 1, rtol=1e-12)
    assert prediction.caveats == ("",)


def test_a_valley_of_minima_is_reached_with_a_caveat():
    # L = ½ (1 − b e^{−b} − a/2)²: b rests where b e^{−b} has its maximum, at b = 1, and stays
    # there while a goes on to where the loss is 0, along a whole curve through that point.
    a, b, x = sp.symbols("a b x")
    model = SymbolicModel(x * (b * sp.exp(-b) + a / 2), [x], [a, b])
    prediction = predict_stages(model, (np.ones((1, 1)), np.ones(1)))
    assert prediction.status == "converged"
    np.testing.assert_array_equal(prediction.coordinates, [1, 0])
    np.testing.assert_allclose(prediction.theta[2], [2 - 2 * np.exp(-1), 1], rtol=1e-8)
    assert prediction.caveats[0] == ""
    assert "the curvature of the loss vanishes" in prediction.caveats[1]


def test_the_time_limit_holds_inside_a_transition():
    class Slow(Quadratic):
        def field(self, theta):
            time.sleep(0.02)
            return super().field(theta)

    hessian = [[1.0, 0.3], [0.3, 1.0]]
    whole = predict_stages(OnlyObjective(Quadratic([2.0, -1.0], hessian)))
    prediction = predict_stages(Slow([2.0, -1.0], hessian), max_seconds=0.05)
    assert prediction.status == "max_seconds"
    assert "after 0 stages, when w[0] activates: max_seconds passed" in prediction.message
    assert prediction.stats.nfev < whole.stats.nfev / 2


def test_a_formula_that_is_linear_in_its_products_is_solved_without_the_flow():
    rng = np.random.default_rng(1)
    X, names = rng.standard_normal((30, 4)), sp.symbols("x0:4")
    y = X @ [2.0, -1.0, 0.5, 0.0] + 0.1 * rng.standard_normal(30)
    products = sp.symbols("a0:4")
    formula = sum(a * x for a, x in zip(products, names, strict=True))
    found = predict_stages(SymbolicModel(formula, names, products), (X, y))
    expected = predict_stages(DiagonalLinear(4), (X, y))
    assert found.known_durations is None
    np.testing.assert_array_equal(found.coordinates, expected.coordinates)
    np.testing.assert_allclose(found.theta, expected.theta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.times, expected.times, rtol=1e-12)
    curved = SymbolicModel(products[0] * names[0] + sp.sin(products[1] * names[1]), names[:2],
                           products[:2])  # fmt: skip
    assert not curved.bind((X[:, :2], y)).is_quadratic


def test_the_degree_of_nested_formulas_is_found_in_linear_time():
    a, b, x = sp.symbols("a b x")
    assert degree(x * a + 3 * sp.sin(x) * b, [a, b]) == 1
    assert degree((a + x * b) ** 2 * b, [a, b]) == 3
    assert degree(a / b, [a, b]) == np.inf
    assert degree(sp.exp(a) * x, [a, b]) == np.inf
    assert degree(sp.exp(x), [a, b]) == 0
    nested = a
    for _ in range(200):  # as a tree it has 2^200 leaves
        nested = nested + sp.sin(nested) * x
    assert degree(nested, [a]) == np.inf
