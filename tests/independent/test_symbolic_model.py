"""SymbolicModel against automatic differentiation of the same formula written in PyTorch."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import sympy as sp

from dynalyze.models import AttentionHead, Model, Objective, SymbolicLoss, SymbolicModel

torch = pytest.importorskip("torch")

N_SAMPLES = 7


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def gated(xs, thetas, m):
    """Two outputs with every kind of operation that the generator prints."""
    x1, x2 = xs
    a, b, c = thetas
    return [
        a * m.tanh(b * x1) + c**3 * m.erf(x2 * b) / 3,
        m.sqrt(1 + (c * x2) ** 2) * m.exp(-a * x1) + abs(x1) * b + (2 + a * a) ** 0.75,
    ]


X1, X2, A, B, C = sp.symbols("x1 x2 a b c")
MODEL = SymbolicModel(gated((X1, X2), (A, B, C), sp), inputs=[X1, X2], products=[A, B, C])


def data(rng):
    return rng.normal(size=(N_SAMPLES, 2)), rng.normal(size=(N_SAMPLES, 2))


def torch_loss(X, y, weights, kind):
    X, y, weights = (torch.as_tensor(array) for array in (X, y, weights / weights.sum()))

    def loss(theta):
        f = torch.stack(gated((X[:, 0], X[:, 1]), tuple(theta), torch), dim=1)
        if kind == "logistic":
            per_sample = torch.log(1 + torch.exp(-y[:, 0] * f[:, 0])) + f[:, 1] ** 2
        else:
            per_sample = ((y - f) ** 2).sum(1) / 2
        return (weights * per_sample).sum()

    return loss


F1, F2, Y = sp.symbols("f1 f2 y")
LOGISTIC = SymbolicLoss(sp.log(1 + sp.exp(-Y * F1)) + F2**2, targets=Y, outputs=[F1, F2])


@pytest.mark.parametrize("kind", ["squared", "logistic"])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_field_and_hessian_equal_autograd(kind, weighted):
    rng = np.random.default_rng(3)
    X, y = data(rng)
    weights = rng.uniform(0, 2, size=N_SAMPLES) if weighted else np.ones(N_SAMPLES)
    objective = MODEL.bind(
        (X, y if kind == "squared" else y[:, 0]),
        loss="squared" if kind == "squared" else LOGISTIC,
        sample_weight=weights if weighted else None,
    )
    loss = torch_loss(X, y, weights, kind)
    for _ in range(5):
        theta = rng.normal(size=3)
        point = torch.as_tensor(theta).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(point), point)
        hessian = torch.autograd.functional.hessian(loss, point.detach()).numpy()
        value, field = objective.value_and_field(theta)
        assert value == pytest.approx(loss(point).item(), rel=1e-13)
        assert objective.value(theta) == pytest.approx(value, rel=1e-14)
        np.testing.assert_allclose(field, -gradient.numpy(), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(objective.field(theta), field)
        np.testing.assert_allclose(
            objective.hessian_columns(theta, np.array([2, 0])), hessian[:, [2, 0]], atol=1e-11
        )


def test_mse_is_squared_times_two_over_outputs():
    X, y = data(np.random.default_rng(0))
    theta = np.array([0.3, -0.2, 0.5])
    squared = MODEL.bind((X, y)).field(theta)
    mse = MODEL.bind((X, y), loss="mse").field(theta)
    np.testing.assert_allclose(mse, squared * 2 / 2, rtol=1e-15)
    one = SymbolicModel(A * X1 + B * X2, [X1, X2], [A, B])
    half = one.bind((X, y[:, 0])).value(theta[:2])
    assert one.bind((X, y[:, :1]), loss="mse").value(theta[:2]) == pytest.approx(2 * half)


def test_satisfies_the_protocols():
    assert isinstance(MODEL, Model)
    assert isinstance(MODEL.bind(data(np.random.default_rng(0))), Objective)
    assert MODEL.product_names == ("a", "b", "c")


def test_a_hessian_that_vanishes_and_a_constant_output():
    model = SymbolicModel([A * X1, 2 * X1], [X1], [A])
    objective = model.bind((np.ones((2, 1)), np.zeros(2)), loss=SymbolicLoss(F1, Y, [F1, F2]))
    assert objective.field(np.zeros(1)) == -1
    assert objective.hessian_columns(np.zeros(1), np.array([0])) == 0


SCRIPT = """
import sys
import numpy as np, sympy as sp
from dynalyze.models import SymbolicModel
from dynalyze.models.formula import codegen
x, a, b = sp.symbols("x a b")
if sys.argv[1] == "cached":
    def refuse(formula):
        raise AssertionError("derived again")
    codegen.generate = refuse
model = SymbolicModel(a * sp.sin(b * x) + b, [x], [a, b])
objective = model.bind((np.array([[0.5], [2.0]]), np.array([1.0, -1.0])))
print(objective.value_and_field(np.array([0.7, 0.1])))
print(sum(objective.kernels.value_and_field.stats.cache_hits.values()))
"""


def run(argument: str, folder: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.getcwd()
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, argument],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_start_at_once_share_the_cache_and_a_later_one_compiles_nothing(tmp_path):
    first = [run("fresh", tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in first]
    assert [process.returncode for process in first] == [0, 0], outputs
    files = list((tmp_path / "dynalyze" / "kernels").glob("*.py"))
    assert len(files) == 1
    assert not list((tmp_path / "dynalyze" / "kernels").glob("*.tmp"))
    later = run("cached", tmp_path)
    out, err = later.communicate(timeout=120)
    assert later.returncode == 0, err
    value, hits = out.splitlines()
    assert hits == "1"
    assert {text.splitlines()[0] for text, _ in outputs} == {value}


def test_the_formula_of_the_attention_head_equals_the_built_in_head():
    d, n_tokens = 2, 3
    x = sp.Matrix(n_tokens, d, lambda i, j: sp.Symbol(f"x{i}{j}"))
    kq, vo = sp.symbols(f"kq:{d}"), sp.symbols(f"vo:{d}")
    logits = x * sp.diag(*kq) * x.T
    exponentials = logits.applyfunc(sp.exp)
    weights = sp.Matrix(
        n_tokens, n_tokens, lambda i, j: exponentials[i, j] / sum(exponentials[i, :])
    )
    model = SymbolicModel(weights * x * sp.diag(*vo), inputs=list(x), products=[*kq, *vo])
    rng = np.random.default_rng(11)
    X, y = rng.normal(size=(2, 40, n_tokens, d))
    flat = (X.reshape(40, -1), y.reshape(40, -1))
    sample_weight = rng.uniform(size=40)
    for loss in ("squared", "mse"):
        head = AttentionHead(d).bind((X, y), loss=loss, sample_weight=sample_weight)
        formula = model.bind(flat, loss=loss, sample_weight=sample_weight)
        for scale in (0, 0.1, 1, 2):
            theta = scale * rng.normal(size=2 * d)
            every = np.arange(2 * d)
            (value, field), (value_h, field_h) = (
                objective.value_and_field(theta) for objective in (formula, head)
            )
            assert value == pytest.approx(value_h, rel=1e-12)
            np.testing.assert_allclose(field, field_h, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(
                formula.hessian_columns(theta, every),
                head.hessian_columns(theta, every),
                rtol=1e-12,
                atol=1e-12,
            )
