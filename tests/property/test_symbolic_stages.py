"""Symbolic and numeric stages are the same, over random rational problems; and exact invariants."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import sympy as sp
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from dynalyze import models, predict_stages
from dynalyze.models.linear import DiagonalLinear
from dynalyze.symbolic import (
    attention_head,
    diagonal_linear,
    mean_loss,
    orthogonal_stages,
    stages,
)
from dynalyze.symbolic.least_squares import sign_constrained_least_squares

# small integers draw constant features, and the scalar model is one
pytestmark = pytest.mark.filterwarnings("ignore::dynalyze.errors.ConstantFeatureWarning")

TOLERANCE = 1e-12
SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
INTEGERS = st.integers(-6, 6)


def matrix(draw, rows, columns, entries=INTEGERS):
    row = st.lists(entries, min_size=columns, max_size=columns)
    return draw(st.lists(row, min_size=rows, max_size=rows))


@st.composite
def regressions(draw):
    p = draw(st.integers(1, 4))
    n = p + draw(st.integers(1, 4))
    X = matrix(draw, n, p)
    y = draw(st.lists(INTEGERS, min_size=n, max_size=n))
    singular = np.linalg.svd(np.array(X, dtype=float), compute_uv=False)
    # rounding is amplified by the condition number, for the numeric side
    assume(singular[-1] > 0.05 * singular[0])
    return X, y


def moments(X, y):
    M, v = sp.Matrix(X), sp.Matrix(y)
    return M.T * M / len(X), list(M.T * v / len(X)), (v.T * v)[0] / len(X)


def assert_equal(exact, prediction, n_stages=None):
    """Agreement of the first `n_stages` stages, of all if None, and of the ending then."""
    assert list(prediction.coordinates)[:n_stages] == list(exact.coordinates)
    assert list(prediction.signs)[:n_stages] == [int(sign) for sign in exact.signs]
    assert prediction.departed[:n_stages] == exact.departed
    if n_stages is None:
        assert str(prediction.status) == exact.status
    numeric = exact.numeric()
    stop = None if n_stages is None else n_stages + 1
    for mine, theirs in (
        (numeric.times, prediction.times[:n_stages]),
        (numeric.theta, prediction.theta[:stop]),
        (numeric.b, prediction.b[:stop]),
        (numeric.losses, prediction.losses[:stop]),
    ):
        scale = np.abs(mine).max(initial=1.0)
        np.testing.assert_allclose(theirs, mine, rtol=TOLERANCE, atol=TOLERANCE * scale)


def clear(exact):
    """No exact tie or zero, near which rounding would rightly decide otherwise."""
    return exact.status == "converged" and "Assumption 4.2 fails" not in exact.message


@SETTINGS
@given(regressions())
def test_correlated_linear_networks(regression):
    X, y = regression
    exact = stages(diagonal_linear(*moments(X, y)))
    assume(clear(exact))
    data = (np.array(X, dtype=float), np.array(y, dtype=float))
    assert_equal(exact, predict_stages(DiagonalLinear(len(X[0])), data))


@SETTINGS
@given(regressions())
def test_exact_invariants_of_the_recursion(regression):
    sigma, r, y2 = moments(*regression)
    exact = stages(diagonal_linear(sigma, r, y2))
    if exact.status == "converged":
        # the end minimizes the loss over everything
        assert sigma * sp.Matrix(exact.theta[-1]) == sp.Matrix(r)
    assert all(a < b for a, b in zip((0, *exact.times), exact.times, strict=False))
    assert all(a > b for a, b in zip(exact.losses, exact.losses[1:], strict=False))
    for theta, b in zip(exact.theta, exact.b, strict=True):
        assert all(0 <= entry <= 2 for entry in b)
        assert all(e == 1 - sp.sign(x) for x, e in zip(theta, b, strict=True) if x != 0)
        field = sp.Matrix(r) - sigma * sp.Matrix(theta)
        assert all(g == 0 for x, g in zip(theta, field, strict=True) if x != 0)
    for k, gone in enumerate(exact.departed):
        field = sp.Matrix(r) - sigma * sp.Matrix(exact.theta[k + 1])
        for i in gone:  # Lemma D.4: it points against the old sign
            assert field[i] * (1 - exact.b[k + 1][i]) <= 0


@SETTINGS
@given(
    st.lists(st.fractions(Fraction(1, 9), 9, max_denominator=9), min_size=3, max_size=3),
    st.lists(st.fractions(-9, 9, max_denominator=9), min_size=3, max_size=3),
)
def test_orthogonal_designs_in_symbols(scales, r):
    assume(len({abs(entry) for entry in r}) == 3 and 0 not in r)
    order = sorted(range(3), key=lambda i: -abs(r[i]))
    lam = sp.symbols("lambda:3", positive=True)
    rho = sp.symbols("r:3", real=True)
    general = orthogonal_stages(lam, rho, order, 30)
    values = {
        symbol: sp.Rational(value.numerator, value.denominator)
        for symbol, value in zip(lam + rho, scales + r, strict=True)
    }
    exact = general.subs(values)
    assert exact.conditions == ()
    direct = stages(
        diagonal_linear(sp.diag(*(values[s] for s in lam)), [values[s] for s in rho], 30)
    )
    for name in ("times", "theta", "b", "losses", "coordinates", "signs"):
        assert getattr(exact, name) == getattr(direct, name)
    numbers = general.lambdify(lam + rho)(*(float(values[s]) for s in lam + rho))
    for mine, theirs in zip(numbers, exact.numeric(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_correlated_pair_in_symbols_holds_wherever_its_conditions_do():
    s12, r1, r2 = symbols = sp.symbols("s r1 r2", real=True)
    problem = diagonal_linear([[2, s12], [s12, 3]], [r1, r2], 40)
    general = stages(problem, at={s12: 1, r1: 3, r2: 1})
    assert general.status == "converged"
    evaluate = general.lambdify(symbols)
    held = 0
    for s in (-1, 0, 1, 2):
        for a in (-4, 1, 3, 4):
            for b in (-3, 1, 2):
                values = {s12: sp.Integer(s), r1: sp.Integer(a), r2: sp.Integer(b)}
                direct = stages(diagonal_linear([[2, s], [s, 3]], [a, b], 40))
                if all(condition.subs(values) == sp.true for condition in general.conditions):
                    held += 1
                    special = general.subs(values)
                    assert (special.times, special.theta, special.b, special.losses) == (
                        direct.times,
                        direct.theta,
                        direct.b,
                        direct.losses,
                    )
                    np.testing.assert_allclose(
                        evaluate(s, a, b).times, direct.numeric().times, rtol=1e-14
                    )
    assert held >= 5


@st.composite
def two_token_samples(draw, d):
    n = draw(st.integers(1, 3))
    X = [matrix(draw, 2, d, st.integers(-2, 2)) for _ in range(n)]
    half = st.integers(-6, 6).map(lambda k: sp.Rational(k, 2))
    y = [matrix(draw, 2, d, half) for _ in range(n)]
    return X, y


@pytest.mark.parametrize("d", [1, 2])
def test_two_token_heads(d):
    reached = []

    @settings(SETTINGS, max_examples=4, phases=[Phase.generate])
    @given(two_token_samples(d))
    def check(samples):
        X, y = samples
        exact = stages(attention_head(X, y), max_seconds=1)
        assume(exact.status not in ("tie", "degenerate") and exact.times)
        data = (np.array(X, dtype=float), np.array(y, dtype=float))
        n_stages = len(exact.times)
        further = exact.status == "unsolved"
        prediction = predict_stages(
            models.AttentionHead(d, threads=1), data, max_stages=n_stages + further
        )
        assert_equal(exact, prediction, n_stages)
        reached.append(n_stages)
        if further:
            # the numeric limit point is where the equations left vanish
            assert float(exact.next_time) == pytest.approx(prediction.times[n_stages], rel=1e-12)
            point = dict(zip(exact.products, prediction.theta[n_stages + 1], strict=True))
            for equation in exact.equations:
                scale = sum(abs(float(t.subs(point))) for t in equation.as_ordered_terms())
                assert abs(float(equation.subs(point))) <= 1e-8 * max(1.0, scale)

    check()
    assert max(reached) >= d  # W_V W_O is reached one after the other, W_K W_Q seldom solved


Y1, Y2 = sp.symbols("y1 y2", positive=True)


@cache
def one_sample_head():
    """X = (1, 0), targets (y1, y2) with y2 < y1 < 2 y2: both products in symbols."""
    problem = attention_head([[[1], [0]]], [[[Y1], [Y2]]])
    return stages(problem, at={Y1: sp.Rational(3, 2), Y2: 1})


@settings(SETTINGS, max_examples=15)
@given(st.integers(1, 9), st.integers(10, 16), st.integers(3, 9))
def test_a_head_in_closed_form_through_the_softmax(n2, n1, denominator):
    a, b = sp.Rational(n1, denominator), sp.Rational(n1 + n2, 2 * denominator)
    assume(b < a < 2 * b)
    exact = one_sample_head().subs({Y1: a, Y2: b})
    assert exact.conditions == ()
    assert exact.theta[-1] == (sp.log(a / (2 * b - a)), 2 * b)
    assert exact.times == (2 / (a + b), 2 / (a + b) + 8 / (a**2 - b**2))
    data = (np.array([[[1.0], [0.0]]]), np.array([[[float(a)], [float(b)]]]))
    assert_equal(exact, predict_stages(models.AttentionHead(1, threads=1), data))


@SETTINGS
@given(st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_scalar_products(numerator, denominator, negative):
    target = sp.Rational(-numerator if negative else numerator, denominator)
    theta = sp.Symbol("theta")
    exact = stages(mean_loss(theta, [], [theta], [[], []], [target, target]))
    assert exact.times == (1 / abs(target),)
    model = DiagonalLinear(1)
    assert_equal(exact, predict_stages(model, (np.ones((2, 1)), np.full(2, float(target)))))


@SETTINGS
@given(st.data())
def test_least_squares_satisfies_the_optimality_conditions_exactly(data):
    p = data.draw(st.integers(1, 5))
    A = [[Fraction(x, 3) for x in row] for row in matrix(data.draw, p + 1, p)]
    sigma = [[sum(row[i] * row[j] for row in A) for j in range(p)] for i in range(p)]
    r = [Fraction(x) for x in data.draw(st.lists(INTEGERS, min_size=p, max_size=p))]
    signs = data.draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=p, max_size=p))
    assume(sp.Matrix(p, p, lambda i, j: sp.Rational(*sigma[i][j].as_integer_ratio())).det() > 0)
    theta = sign_constrained_least_squares(sigma, r, signs)
    for i in range(p):
        g = r[i] - sum(sigma[i][j] * theta[j] for j in range(p))
        assert theta[i] * signs[i] >= 0
        assert theta[i] == 0 if signs[i] == 0 else signs[i] * g <= 0
        assert theta[i] == 0 or g == 0
