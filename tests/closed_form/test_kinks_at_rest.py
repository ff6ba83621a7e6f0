"""Kinks at θ = 0 and on plateaus, where automatic differentiation sees one side at most."""

import warnings

import numpy as np
import pytest
import sympy as sp
from functions import Function
from objectives import Exponential, Quadratic, Scaled, small_head

from dynalyze import check_assumptions, predict_stages
from dynalyze.models import DiagonalLinear, SymbolicModel


def verdict_on(objective, *data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prediction = predict_stages(objective, *data, **options)
    return check_assumptions(prediction, trials=0).regularity[3]


def torch_verdict(function, *, units=1.0, n_products=2):
    """h(x; θ) = function(⟨x, θ⟩) on targets of a smooth teacher, x in the units given."""
    torch = pytest.importorskip("torch")
    from dynalyze.models import TorchModel

    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, n_products))
    y = (X @ np.linspace(1.0, 0.5, n_products) + 0.1 * rng.standard_normal(40))[:, None]
    model = TorchModel.from_function(
        lambda x, theta: function(torch, x @ theta)[:, None], n_products
    )
    return verdict_on(model, (X * units, y), max_stages=2)


KINKED = {
    "times its own sign": lambda torch, z: z * (z > 0),
    "where": lambda torch, z: torch.where(z > 0, z, 0.0 * z),
    "leaky": lambda torch, z: torch.where(z > 0, z, 0.1 * z),
    "hardly leaky": lambda torch, z: torch.where(z > 0, z, 0.9999 * z),
    "absolute": lambda torch, z: z + 0.3 * z.abs(),
    "masked": lambda torch, z: z * (z > 0).to(z.dtype) + 0.5 * z,
    "ceiling": lambda torch, z: 2 * z - torch.minimum(z, 0.5 * z),
    "square of one side": lambda torch, z: z + z * z * (z > 0),
}


@pytest.mark.parametrize("units", [1.0, 1e8, 1e-8])
@pytest.mark.parametrize("kind", KINKED)
def test_a_kink_at_zero_is_found_without_its_name(kind, units):
    verdict = torch_verdict(KINKED[kind], units=units)
    assert not verdict.passed
    assert "θ = 0" in verdict.message
    assert "GELU" in verdict.message


SMOOTH = {
    "GELU": lambda torch, z: torch.nn.functional.gelu(z) + 0.5 * z,
    "tanh": lambda torch, z: torch.tanh(z),
    "steep softplus": lambda torch, z: torch.nn.functional.softplus(100 * z) / 100,
    "cubic": lambda torch, z: z + z**3,
    "cube of the size": lambda torch, z: z + z.abs() ** 3,  # twice differentiable
    "identity": lambda torch, z: z,
}


@pytest.mark.parametrize("units", [1.0, np.array([1e8, 1e-8])])
@pytest.mark.parametrize("kind", SMOOTH)
def test_smooth_functions_raise_no_alarm(kind, units):
    assert torch_verdict(SMOOTH[kind], units=units).passed


def kinked(center, size, goals=(2.0, -1.0)):
    """L = ½ ‖θ − a‖² + size |θ_0 − center|, its slope at the kink taken as 0."""
    goals = np.array(goals)
    first = np.eye(len(goals))[0]

    return Function(
        len(goals),
        lambda theta: 0.5 * np.sum((theta - goals) ** 2) + size * abs(theta[0] - center),
        lambda theta: goals - theta - size * np.sign(theta[0] - center) * first,
        lambda theta: np.eye(len(goals)),
    )


@pytest.mark.parametrize("length", [1.0, 1e8, 1e-8])
@pytest.mark.parametrize("energy", [1.0, 1e30, 1e-30])
def test_a_kink_in_an_objective_of_ones_own(length, energy):
    verdict = verdict_on(Scaled(kinked(0.0, 0.1), length, energy))
    assert not verdict.passed
    assert "at θ = 0 the field jumps along a random direction" in verdict.message


def test_a_kink_on_a_later_plateau_names_the_plateau():
    # w[1] is learned first, to −3; the kink in w[0] is at 0 only while w[1] is there.
    def gate(theta):
        return theta[1] ** 2

    bent = Function(
        2,
        lambda t: 0.5 * (t[0] - 1) ** 2 + 0.5 * (t[1] + 3) ** 2 + 1e-2 * gate(t) * abs(t[0]),
        lambda t: [
            1 - t[0] - 1e-2 * gate(t) * np.sign(t[0]),
            -3 - t[1] - 2e-2 * t[1] * abs(t[0]),
        ],
        lambda t: [
            [1.0, 2e-2 * t[1] * np.sign(t[0])],
            [2e-2 * t[1] * np.sign(t[0]), 1 + 2e-2 * abs(t[0])],
        ],
    )
    verdict = verdict_on(bent)
    assert not verdict.passed
    assert "at plateau 1 the field jumps" in verdict.message


def test_a_field_that_is_not_a_number_beside_zero():
    rooted = Function(
        1,
        lambda theta: 0.5 * (theta[0] - 1) ** 2,
        lambda theta: [1 - theta[0] if theta[0] >= 0 else np.nan],
        lambda theta: [[1.0]],
    )
    verdict = verdict_on(rooted)
    assert not verdict.passed
    assert "not a number" in verdict.message


def test_linear_problems_in_odd_units_raise_no_alarm():
    rng = np.random.default_rng(1)
    checked = 0
    for _ in range(25):
        n, p = rng.integers(5, 40), rng.integers(1, 12)
        X = rng.standard_normal((n, p))
        if p > 1 and rng.random() < 0.5:  # near-duplicates
            X[:, 1] = X[:, 0] + 10.0 ** -rng.integers(3, 9) * rng.standard_normal(n)
        y = X @ rng.standard_normal(p) + rng.choice([0.0, 0.1]) * rng.standard_normal(n)
        units = 10.0 ** rng.uniform(-8, 8, p) * rng.choice([-1, 1], p)
        offset = rng.choice([0.0, 1e6])
        verdict = verdict_on(DiagonalLinear(int(p)), (X * units, y + offset), max_stages=6)
        assert verdict.passed, verdict.message
        checked += 1
    assert checked == 25


def test_heads_formulas_and_losses_without_end_raise_no_alarm():
    a, b, x = sp.symbols("a b x", real=True)
    formula = SymbolicModel(sp.tanh(a * x) + sp.exp(b * x) - 1, [x], [a, b])
    X = np.random.default_rng(0).standard_normal((30, 1))
    assert verdict_on(formula, (X, np.tanh(X[:, 0]) + 0.2 * X[:, 0])).passed
    for seed in range(3):
        assert verdict_on(small_head(seed), max_stages=4).passed
    assert verdict_on(Exponential(2)).passed
    correlated = [[1.0, 0.9], [0.9, 1.0]]
    assert verdict_on(Quadratic([1.0, -0.5], correlated, factor=1e-12)).passed
