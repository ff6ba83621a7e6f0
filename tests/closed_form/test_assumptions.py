"""Each verdict of `check_assumptions` where it is known: a problem that passes, one that fails."""

import dataclasses
import warnings

import numpy as np
import pytest
import sympy as sp
from functions import Function
from objectives import Exponential, Quadratic

from dynalyze import Initialization, check_assumptions, predict_stages
from dynalyze.checks.minima import smallest_curvature
from dynalyze.models import DiagonalLinear, SymbolicModel
from dynalyze.models.formula.model import SymbolicLoss


def report_on(objective, **options):
    return check_assumptions(predict_stages(objective), **options)


def two_wells():
    """L' = −(1 − θ)(2 − θ)(3 − θ): minima at 1 and 3, and the divide between them at 2."""
    roots = np.polynomial.Polynomial.fromroots([1, 2, 3])
    loss = roots.integ()
    return Function(
        1,
        lambda theta: loss(theta[0]),
        lambda theta: [-roots(theta[0])],
        lambda theta: [[roots.deriv()(theta[0])]],
    )


def flat_valley():
    """L = ½ s², s = 1 − θ_1 + (θ_0 − 1)²: the second stage ends on a curve of minima."""

    def gradient(theta):
        return np.array([2 * (theta[0] - 1), -1.0])

    def s(theta):
        return 1 - theta[1] + (theta[0] - 1) ** 2

    return Function(
        2,
        lambda theta: 0.5 * s(theta) ** 2,
        lambda theta: -s(theta) * gradient(theta),
        lambda theta: np.outer(gradient(theta), gradient(theta)) + s(theta) * np.diag([2.0, 0.0]),
    )


def test_all_hold_for_an_orthogonal_design():
    report = report_on(Quadratic([2.0, -1.0, 0.5]), init=([1.0, 2, 3], [0.5, 1, 1]), trials=4)
    assert report.passed
    assert report.n_stages_passed == 3
    assert len(report.nondegenerate) == len(report.strict_minimum) == len(report.noise_robust) == 3
    # θ = s u²: the Hessian in u is 4|θ_i| on the diagonal, and c half its smallest entry.
    np.testing.assert_allclose([v.margin for v in report.strict_minimum], [4, 2, 1])
    # T = 1/|a|: 0.5, 1 and 2.
    np.testing.assert_allclose([v.margin for v in report.nondegenerate], [1, 2, np.inf])
    np.testing.assert_allclose([v.values["gap"] for v in report.nondegenerate], [0.5, 1, np.inf])
    assert report.initialization.margin == pytest.approx(1 / 3)
    assert "all assumptions hold" in str(report)


def test_planted_tie():
    X = np.random.default_rng(0).standard_normal((20, 2))
    data = (X[:, [0, 0, 1]], X @ np.array([2.0, 0.3]))
    prediction = predict_stages(DiagonalLinear(3), data)
    report = check_assumptions(prediction)
    assert not report.passed
    (verdict,) = report.nondegenerate
    assert not verdict.passed
    assert verdict.stage == 1
    assert "theta[0] and theta[1] tie" in verdict.message
    assert verdict.values["log10_alpha"] == -np.inf
    assert report.n_stages_passed == 0


def test_near_tie_fails_above_the_scale_that_separates_it():
    objective = Quadratic([1.0, -1.0 / (1 + 1e-3)])
    verdict = report_on(objective, trials=0).nondegenerate[0]
    assert verdict.margin == pytest.approx(1e-3)
    assert not verdict.passed
    assert "near-tie, told apart only below α = 1e-" in verdict.message
    needed = verdict.values["log10_alpha"]
    assert needed < -1000
    assert report_on(objective, trials=0, log10_alpha=needed - 1).passed


def test_field_of_a_product_that_left():
    # The second product does the first one's work more cheaply, and drives it out: with
    # b = (2 − δ, 1) the least squares solution has θ_0 = −5 δ·…, and g_0 = −δ at θ = (0, 5).
    hessian = np.array([[1.0, 0.4], [0.4, 0.2]])

    def valley(delta):
        return Quadratic(np.linalg.solve(hessian, [2 - delta, 1.0]), hessian)

    verdict = report_on(valley(0.5), trials=0).nondegenerate[1]
    assert verdict.passed
    assert verdict.values["departed_field"] == pytest.approx(0.5 / 1.5)
    assert "w[0] leaves with |g| = 3.3e-01" in verdict.message
    prediction = predict_stages(valley(0.5))
    fields = prediction.fields.copy()
    fields[2, 0] = 0.0
    touching = dataclasses.replace(prediction, fields=fields)
    verdict = check_assumptions(touching, trials=0).nondegenerate[1]
    assert not verdict.passed
    assert "counts as 0" in verdict.message


def test_planted_flat_direction():
    report = report_on(flat_valley(), trials=0)
    assert [v.passed for v in report.strict_minimum] == [True, False]
    verdict = report.strict_minimum[1]
    assert verdict.stage == 2
    assert "flat along w[0]" in verdict.message
    assert abs(verdict.margin) < 1e-6 * verdict.values["largest"]
    assert report.finite_limit.passed
    assert report.n_stages_passed == 1
    # At θ = (1, 0) s = 1, so ∂²L/∂θ_0² = 2 and the Hessian in u is 4 · 2.
    assert report.strict_minimum[0].margin == pytest.approx(4.0)


def logistic(y):
    x, w, t = sp.symbols("x w t", real=True)
    f = sp.Symbol("f", real=True)
    model = SymbolicModel(w * x, inputs=[x], products=[w])
    loss = SymbolicLoss(sp.log(1 + sp.exp(-t * f)), outputs=[f], targets=[t])
    X = np.array([[1.0], [2.0], [-1.0], [-1.5]])
    return model, (X, np.array(y, dtype=float)), loss


def test_units_far_apart_are_no_flat_direction():
    units = np.array([1e5, 1.0, 1e-4])
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3))
    y = X @ [1.0, 0.3, -0.5] + 0.1 * rng.standard_normal(60)
    prediction = predict_stages(DiagonalLinear(3), (X * units, y))
    assert prediction.support_sizes[-1] == 3
    report = check_assumptions(prediction, trials=0)
    assert all(verdict.passed for verdict in report.strict_minimum)
    # In θ the curvature is that of XᵀX / n; in u it is 4 |θ| times as much, which is c alone
    # where the other directions are far stiffer.
    gram = np.linalg.inv(X.T @ X / 60)
    theta = abs(prediction.theta[-1][2])
    expected = 2 * theta * units[2] ** 2 / gram[2, 2]
    np.testing.assert_allclose(report.strict_minimum[-1].margin, expected, rtol=1e-3)
    # A feature that is the sum of two others stays flat, whatever the units.
    X = np.column_stack([X[:, :2], X[:, 0] + X[:, 1]])
    tied = DiagonalLinear(3).bind((X * units, y))
    theta = np.array([0.5, 0.3, 0.2]) / units
    found = smallest_curvature(tied, theta, theta != 0, fields=units)
    assert abs(found.eigenvalue) < 1e-12 * found.largest


@pytest.mark.parametrize(("y", "separable"), [([1, 1, -1, -1], True), ([1, 1, -1, 1], False)])
def test_separable_logistic_regression_has_no_finite_limit(y, separable):
    model, data, loss = logistic(y)
    prediction = predict_stages(model, data, loss=loss)
    report = check_assumptions(prediction, trials=2)
    assert report.finite_limit.passed != separable
    assert report.passed != separable
    if separable:
        assert "no finite minimum" in report.finite_limit.message
        assert "Add weight decay" in report.finite_limit.message


def test_unbounded_loss_has_no_finite_limit():
    falling = Function(1, lambda theta: -theta[0], lambda _: [1.0], lambda _: [[0.0]])
    assert not report_on(falling, trials=0).finite_limit.passed
    assert not report_on(Exponential(1), trials=0).finite_limit.passed


def test_basin_of_known_radius():
    # From u = 0 the divide lies at u² = 2, and every start on the sphere is at u = δ.
    (verdict,) = report_on(two_wells(), largest_radius=3.0).noise_robust
    assert verdict.passed
    assert verdict.values["radius"] == pytest.approx(np.sqrt(2), rel=0.02)
    assert verdict.margin == pytest.approx(np.sqrt(2), rel=0.02)  # ‖u^1 − u^0‖ is 1
    (verdict,) = report_on(two_wells(), required_radius=1.5, largest_radius=3.0).noise_robust
    assert not verdict.passed
    assert verdict.margin == 0
    assert "noise can lead elsewhere" in verdict.message
    (verdict,) = report_on(Quadratic([1.0]), largest_radius=3.0).noise_robust
    assert "within δ = at least 3" in verdict.message


@pytest.mark.parametrize(("activation", "smooth"), [("ReLU", False), ("GELU", True)])
def test_relu_is_named(activation, smooth):
    torch = pytest.importorskip("torch")
    from dynalyze.models import TorchModel

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.u = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.v = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.act = getattr(torch.nn, activation)()

        def forward(self, x):
            return self.act(1 + x @ (self.u * self.v))[:, None]

    X = np.random.default_rng(0).standard_normal((30, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = TorchModel(Net(), [("u", "v")])
        data = (X, (1 + X @ np.array([0.4, -0.2]))[:, None])
        prediction = predict_stages(model, data)
    report = check_assumptions(prediction, trials=0)
    named = report.regularity[1]
    assert named.passed == smooth
    if not smooth:
        assert "act (ReLU)" in named.message
        assert not report.passed


def test_kinks_and_numbers_that_are_not_finite():
    kinks = np.linspace(-3, 3, 2001)

    def rough(weight):
        return Function(
            1,
            lambda theta: 0.5 * (theta[0] - 1) ** 2 + weight * np.abs(theta[0] - kinks).mean(),
            lambda theta: [1 - theta[0] - weight * np.sign(theta[0] - kinks).mean()],
            lambda _: [[1.0]],
        )

    prediction = predict_stages(rough(0.0))
    passing = check_assumptions(prediction, trials=0)
    assert passing.passed
    rough_report = check_assumptions(predict_stages(rough(0.5)), trials=0)
    assert not rough_report.regularity[2].passed
    assert "the loss has kinks" in rough_report.regularity[2].message
    broken = dataclasses.replace(prediction, losses=np.array([0.5, np.nan]))
    report = check_assumptions(broken, trials=0)
    assert not report.regularity[0].passed
    assert "not finite on some plateau" in str(report)


def test_balanced_initial_weights():
    objective = Quadratic([2.0, -1.0])
    balanced = report_on(objective, init=([1.0, 1.0], [0.5, -1.0]), trials=0)
    assert not balanced.initialization.passed
    assert "|u| = |v| at w[1]" in balanced.initialization.message
    init = Initialization.gaussian(2, log10_alpha=-8, rng=0)
    assert report_on(objective, init=init, trials=0).initialization.passed


def test_the_smallest_curvature_is_that_of_finite_differences_in_u():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((80, 60))
    theta = rng.standard_normal(60)
    objective = Quadratic(theta, factor.T @ factor / 80)
    found = smallest_curvature(objective, theta, np.ones(60, dtype=bool))
    signs, u = np.sign(theta), np.sqrt(np.abs(theta))

    def slope_in_u(u):  # dL/du of L(u, s ⊙ u)
        return -2 * signs * u * objective.field(signs * u**2)

    def curvature_along(direction):
        return (slope_in_u(u + 1e-5 * direction) - slope_in_u(u - 1e-5 * direction)) / 2e-5

    along = curvature_along(found.vector)
    np.testing.assert_allclose(along, found.eigenvalue * found.vector, atol=1e-7 * found.largest)
    others = rng.standard_normal((50, 60))
    others /= np.linalg.norm(others, axis=1)[:, None]
    assert min(d @ curvature_along(d) for d in others) > found.eigenvalue
