"""TorchModel against the closed-form attention head, finite differences and SciPy's quadrature."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from dynalyze import Initialization, compare, predict_stages, simulate
from dynalyze.errors import InvalidInputError
from dynalyze.models import AttentionHead, DiagonalLinear, Model, Objective, TorchModel
from validation.benchmarks.work import operations

D, N, T = 4, 9, 3


class Head(nn.Module):
    """Eq. (1) with diagonal weights, as a user would write it."""

    def __init__(self, d, **options):
        super().__init__()
        for name in ("w_k", "w_q", "w_v", "w_o"):
            setattr(self, name, nn.Parameter(torch.randn(d, dtype=torch.float64, **options)))

    def forward(self, x):
        logits = (x * (self.w_k * self.w_q)) @ x.mT
        return torch.softmax(logits, -1) @ x * (self.w_v * self.w_o)


class GatedMLP(nn.Module):
    """A gated network with elementwise product weights and a scaled-dot-product layer."""

    def __init__(self, n_in=5, n_hidden=3):
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def draw(*shape):
            return nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=generator))

        self.gate_a, self.gate_b = draw(n_hidden, n_in), draw(n_hidden, n_in)
        self.value_a, self.value_b = draw(n_hidden), draw(n_hidden)
        self.readout = nn.Linear(n_hidden, 2, dtype=torch.float64)
        self.readout.weight, self.readout.bias = draw(2, n_hidden), draw(2)
        self.readout.requires_grad_(False)

    def forward(self, x):
        hidden = torch.sigmoid(x @ (self.gate_a * self.gate_b).mT) * x[:, :3]
        tokens = nn.functional.silu(hidden * (self.value_a * self.value_b))[:, :, None]
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, :, 0]
        return self.readout(hidden + mixed)


HEAD_PAIRS = [("w_k", "w_q"), ("w_v", "w_o")]
GATED_PAIRS = [("gate_a", "gate_b"), ("value_a", "value_b")]


def head_data(seed=0, n=N):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, T, D)), rng.standard_normal((n, T, D))


def gated_objective(**options):
    rng = np.random.default_rng(4)
    data = rng.standard_normal((7, 5)), rng.standard_normal((7, 2))
    return TorchModel(GatedMLP(), GATED_PAIRS, **options).bind(data)


@pytest.mark.parametrize("loss", ["squared", "mse"])
@pytest.mark.parametrize("weighted", [False, True])
def test_diagonal_head_equals_the_closed_form(loss, weighted):
    rng = np.random.default_rng(1)
    data = head_data()
    options = {"loss": loss, "sample_weight": rng.random(N) if weighted else None}
    ours = TorchModel(Head(D), HEAD_PAIRS).bind(data, **options)
    reference = AttentionHead(D).bind(data, **options)
    theta = rng.standard_normal(2 * D)
    every = np.arange(2 * D)
    assert ours.value(theta) == pytest.approx(reference.value(theta), rel=1e-13)
    np.testing.assert_allclose(ours.field(theta), reference.field(theta), atol=1e-12)
    np.testing.assert_allclose(
        ours.hessian_columns(theta, every), reference.hessian_columns(theta, every), atol=1e-12
    )


def test_protocols_and_names():
    model = TorchModel(Head(D), HEAD_PAIRS)
    assert isinstance(model, Model)
    assert isinstance(model.bind(head_data()), Objective)
    assert model.product_names[0] == "w_k*w_q[0]"
    assert model.product_names[-1] == f"w_v*w_o[{D - 1}]"
    gated = TorchModel(GatedMLP(), GATED_PAIRS, product_names=["gate", "value"])
    assert gated.product_names[7] == "gate[1, 2]"
    named = TorchModel(Head(2), HEAD_PAIRS, product_names=["a", "b", "c", "d"])
    assert named.product_names == ("a", "b", "c", "d")


def test_weights_are_those_of_the_module():
    module = GatedMLP()
    u, v = TorchModel(module, GATED_PAIRS).weights()
    np.testing.assert_array_equal(u[:15], module.gate_a.detach().numpy().ravel())
    np.testing.assert_array_equal(v[15:], module.value_b.detach().numpy())


@pytest.mark.parametrize("point", ["zero", "random", "boundary"])
def test_gated_mlp_against_finite_differences(point):
    objective = gated_objective()
    p = objective.n_products
    theta = np.zeros(p) if point == "zero" else np.random.default_rng(5).standard_normal(p)
    if point == "boundary":
        theta[::2] = 0.0
    step = 1e-5
    field = objective.field(theta)
    columns = objective.hessian_columns(theta, np.arange(p))
    for i in range(p):
        e = step * np.eye(p)[i]
        slope = (objective.value(theta + e) - objective.value(theta - e)) / (2 * step)
        assert field[i] == pytest.approx(-slope, abs=1e-8)
        curve = (objective.field(theta - e) - objective.field(theta + e)) / (2 * step)
        np.testing.assert_allclose(columns[:, i], curve, atol=1e-7)
    np.testing.assert_allclose(columns, columns.T, atol=1e-13)


def test_value_and_field_agree_and_columns_are_selected():
    objective = gated_objective()
    theta = np.linspace(-1, 1, objective.n_products)
    value, field = objective.value_and_field(theta)
    assert value == pytest.approx(objective.value(theta), rel=1e-14)
    np.testing.assert_array_equal(field, objective.field(theta))
    everything = objective.hessian_columns(theta, np.arange(objective.n_products))
    some = objective.hessian_columns(theta, np.array([4, 1]))
    np.testing.assert_allclose(some, everything[:, [4, 1]], rtol=1e-13, atol=1e-15)
    assert objective.hessian_columns(theta, np.array([], dtype=int)).shape == (18, 0)


def test_stages_of_a_diagonal_head_are_those_of_the_closed_form():
    X, _ = head_data(n=20)
    y = AttentionHead(D).predict(np.array([0.9, 0.0, -0.7, 0.0, 1.2, -0.8, 0.0, 0.5]), X)
    ours = predict_stages(TorchModel(Head(D), HEAD_PAIRS), (X, y), max_stages=5)
    expected = predict_stages(AttentionHead(D), (X, y), max_stages=5)
    assert ours.n_stages == 5
    np.testing.assert_array_equal(ours.coordinates, expected.coordinates)
    np.testing.assert_array_equal(ours.signs, expected.signs)
    assert ours.departed == expected.departed
    np.testing.assert_allclose(ours.times, expected.times, rtol=1e-9)
    np.testing.assert_allclose(ours.theta, expected.theta, atol=1e-8)


def test_stages_of_the_callers_own_module():
    """A gated network as a user would write it is predicted and simulated without any change."""
    X = np.random.default_rng(12).standard_normal((30, 5))
    module = GatedMLP()  # its weights are the teacher's
    y = module(torch.from_numpy(X)).detach()
    model = TorchModel(module, GATED_PAIRS)
    init = Initialization.gaussian(model.n_products, log10_alpha=-200, rng=3)
    prediction = predict_stages(model, (X, y), init=init, max_stages=3)
    assert prediction.n_stages == 3
    end = float(prediction.jump_times()[-1]) + 5
    comparison = compare(prediction, simulate(model, (X, y), init, until=end))
    assert comparison.relative_errors.max() < 1e-2
    assert comparison.inversions == ()


def test_the_callers_module_is_left_alone():
    module = Head(D)
    model = TorchModel(module, HEAD_PAIRS)
    objective = model.bind(head_data())
    before = objective.value(np.ones(2 * D))
    with torch.no_grad():
        module.w_k.fill_(7.0)
    assert objective.value(np.ones(2 * D)) == before
    assert module.w_k.requires_grad
    assert module.w_k.grad is None


def test_a_function_of_theta_is_a_model_too():
    data = head_data()

    def head(x, theta):
        weights = torch.softmax((x * theta[:D]) @ x.mT, -1)
        return weights @ x * theta[D:]

    objective = TorchModel.from_function(head, 2 * D).bind(data)
    theta = np.random.default_rng(6).standard_normal(2 * D)
    expected = AttentionHead(D).bind(data)
    np.testing.assert_allclose(objective.field(theta), expected.field(theta), atol=1e-12)
    assert objective.product_names[3] == "theta[3]"


def test_loaders_datasets_and_tensors_are_data():
    X, y = (torch.from_numpy(a) for a in head_data())
    model = TorchModel(Head(D), HEAD_PAIRS)
    theta = np.linspace(0.1, 1, 2 * D)
    expected = model.bind((X, y)).field(theta)
    dataset = torch.utils.data.TensorDataset(X, y)
    generator = torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True, generator=generator)
    for data in (dataset, loader, (X.numpy(), y.float().double())):
        np.testing.assert_allclose(model.bind(data).field(theta), expected, atol=1e-6)
    np.testing.assert_allclose(model.bind(loader).field(theta), expected, atol=1e-14)


def test_a_loss_of_the_callers_own():
    rng = np.random.default_rng(8)
    X, labels = rng.standard_normal((6, 3)), rng.integers(0, 3, 6)

    def loss(output, target):
        return nn.functional.cross_entropy(output, target, reduction="none")

    model = TorchModel.from_function(lambda x, theta: x * theta, 3)
    objective = model.bind((X, labels), loss=loss)
    theta = np.array([0.5, -1.0, 2.0])
    logits = X * theta
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean(np.log(softmax[np.arange(6), labels]))
    assert objective.value(theta) == pytest.approx(expected, rel=1e-13)
    residual = np.eye(3)[labels] - softmax
    np.testing.assert_allclose(objective.field(theta), (residual * X).mean(0), atol=1e-14)


def test_predictions_with_a_loss_of_the_callers_own_can_be_saved(tmp_path):
    def half_square(output, target):
        return 0.5 * ((output - target) ** 2).sum(-1)

    X = np.random.default_rng(2).standard_normal((20, 2))
    model = TorchModel.from_function(lambda x, theta: x * theta, 2)
    own = predict_stages(model, (X, X * [1.0, -0.3]), loss=half_square)
    named = predict_stages(model, (X, X * [1.0, -0.3]))
    np.testing.assert_allclose(own.times, named.times, rtol=1e-12)
    assert own.configuration["loss"] == "half_square"
    own.save(tmp_path / "prediction.npz")
    with pytest.raises(InvalidInputError, match=r"half_square.* is not known"):
        predict_stages(DiagonalLinear(2), (X, X[:, 0]), loss=half_square)


@pytest.mark.parametrize("budget", [1, 3_000, 10**5])
def test_chunks_do_not_change_the_result(budget):
    whole, chunked = gated_objective(), gated_objective(memory_budget=budget)
    theta = np.linspace(-1, 1, whole.n_products)
    every = np.arange(whole.n_products)
    assert chunked.value(theta) == pytest.approx(whole.value(theta), rel=1e-13)
    np.testing.assert_allclose(chunked.field(theta), whole.field(theta), atol=1e-13)
    np.testing.assert_allclose(
        chunked.hessian_columns(theta, every), whole.hessian_columns(theta, every), atol=1e-13
    )


class Greedy:
    """A head on a device that fails as CUDA does once a batch exceeds its memory."""

    def __init__(self, most_samples):
        self.most_samples = most_samples
        self.failures = 0
        self.largest = 0

    def __call__(self, x, theta):
        if len(x) > self.most_samples:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        self.largest = max(self.largest, len(x))
        return torch.softmax((x * theta[:D]) @ x.mT, -1) @ x * theta[D:]


@pytest.mark.parametrize("most_samples", [4, 13, 40])
def test_out_of_memory_halves_the_chunk_and_goes_on(most_samples):
    data = head_data(n=50)
    greedy = Greedy(most_samples)
    objective = TorchModel.from_function(greedy, 2 * D).bind(data)
    theta = np.random.default_rng(9).standard_normal(2 * D)
    every = np.arange(2 * D)
    expected = AttentionHead(D).bind(data)
    before = objective.memory_budget
    np.testing.assert_allclose(objective.field(theta), expected.field(theta), atol=1e-12)
    np.testing.assert_allclose(
        objective.hessian_columns(theta, every),
        expected.hessian_columns(theta, every),
        atol=1e-12,
    )
    assert objective.memory_budget < before
    assert most_samples // 2 <= greedy.largest <= most_samples
    failures = greedy.failures
    objective.field(theta)
    assert greedy.failures == failures  # the smaller chunk is remembered


def batched_head(n=6):
    """A head whose Hessian columns are computed as on a GPU."""
    objective = TorchModel(Head(D), HEAD_PAIRS).bind(head_data(n=n))
    objective._batched = True
    return objective, AttentionHead(D).bind(head_data(n=n))


def test_batched_columns_equal_the_loop():
    objective, expected = batched_head()
    theta = np.random.default_rng(10).standard_normal(2 * D)
    every = np.arange(2 * D)
    np.testing.assert_allclose(
        objective.hessian_columns(theta, every), expected.hessian_columns(theta, every), atol=1e-12
    )
    assert objective._batched


def test_small_modules_take_all_hessian_columns_in_one_pass_and_large_ones_in_a_loop():
    every = np.arange(2 * D)
    theta = np.random.default_rng(10).standard_normal(2 * D)
    taken = []
    for n in (6, 2000):
        objective = TorchModel(Head(D), HEAD_PAIRS).bind(head_data(n=n))
        expected = AttentionHead(D).bind(head_data(n=n)).hessian_columns(theta, every)
        np.testing.assert_allclose(objective.hessian_columns(theta, every), expected, atol=1e-12)
        few, all_of_them = (
            operations(partial(objective.hessian_columns, theta, every[:k])) for k in (4, 8)
        )
        taken.append(all_of_them / few)
    assert taken[0] < 1.1
    assert taken[1] > 1.5


def test_too_many_columns_at_once_are_halved_too(monkeypatch):
    objective, reference = batched_head()
    compute = objective._products_with
    widest = 0

    def limited(gradient, point, directions):
        nonlocal widest
        if len(directions) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        widest = max(widest, len(directions))
        return compute(gradient, point, directions)

    monkeypatch.setattr(objective, "_products_with", limited)
    theta = np.random.default_rng(10).standard_normal(2 * D)
    every = np.arange(2 * D)
    expected = reference.hessian_columns(theta, every)
    np.testing.assert_allclose(objective.hessian_columns(theta, every), expected, atol=1e-12)
    assert 1 <= widest <= 3


def test_modules_without_a_batching_rule_are_worked_through_in_a_loop():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return CubeSlope.apply(x, grad)

    class CubeSlope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, grad):
            ctx.save_for_backward(x, grad)
            return grad * 3 * x**2

        @staticmethod
        def backward(ctx, outer):
            x, grad = ctx.saved_tensors
            slope = torch.from_numpy(6 * x.detach().numpy())  # leaves torch: cannot be batched
            return outer * grad * slope, torch.from_numpy(outer.numpy() * 3 * x.numpy() ** 2)

    rng = np.random.default_rng(11)
    data = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    exotic = TorchModel.from_function(lambda x, theta: Cube.apply(x * theta), 3).bind(data)
    exotic._batched = True
    plain = TorchModel.from_function(lambda x, theta: (x * theta) ** 3, 3).bind(data)
    theta = np.array([0.3, -1.0, 0.8])
    every = np.arange(3)
    np.testing.assert_allclose(
        exotic.hessian_columns(theta, every), plain.hessian_columns(theta, every), atol=1e-13
    )
    assert not exotic._batched


def test_import_does_not_load_torch():
    code = "import sys, dynalyze, dynalyze.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
