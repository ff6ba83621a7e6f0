"""TorchModel in surroundings that modules and callers bring along, against plain formulas."""

import warnings

import numpy as np
import pytest
import torch
from claims import every
from fake_device import fake_device
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from dynalyze import Initialization, predict_stages, simulate
from dynalyze.errors import InvalidInputError, NonSmoothWarning, UpcastWarning
from dynalyze.models import DiagonalTransformer, TorchModel
from dynalyze.training import train, train_many

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((2, 7, 3))
THETA = np.array([0.6, -1.1, 0.4])
EVERY = np.arange(3)


class Net(nn.Module):
    """act(x ⊙ u ⊙ v)."""

    def __init__(self, act):
        super().__init__()
        self.u, self.v = (nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in "uv")
        self.act = act

    def forward(self, x):
        return self.act(x * (self.u * self.v))


def held_against(objective, formula):
    """Value, field and Hessian columns against autograd on the loss written out."""
    x, y = torch.from_numpy(X), torch.from_numpy(Y)

    def loss(theta):
        return 0.5 * (formula(x, theta) - y).square().sum(1).mean()

    theta = torch.from_numpy(THETA)
    hessian = torch.autograd.functional.hessian(loss, theta)
    gradient = torch.autograd.functional.jacobian(loss, theta)
    assert objective.value(THETA) == pytest.approx(float(loss(theta)), rel=1e-13)
    np.testing.assert_allclose(objective.field(THETA), -gradient.numpy(), atol=1e-13)
    np.testing.assert_allclose(objective.hessian_columns(THETA, EVERY), hessian.numpy(), atol=1e-12)


def test_complex_buffers_keep_their_imaginary_part():
    class Fourier(Net):
        def __init__(self, dtype):
            super().__init__(None)
            phases = torch.exp(1j * torch.arange(9.0).reshape(3, 3)).to(dtype)
            self.register_buffer("phases", phases)

        def forward(self, x):
            z = (x * (self.u * self.v)).to(torch.complex128) @ self.phases
            return z.abs().square()

    wide = Fourier(torch.complex128)
    phases = wide.phases
    objective = TorchModel(wide, [("u", "v")]).bind((X, Y))

    def formula(x, theta):
        z = x * theta
        return (z @ phases.real).square() + (z @ phases.imag).square()

    held_against(objective, formula)
    with pytest.warns(UpcastWarning, match=r"phases \(complex64\): copied to float64"):
        model = TorchModel(Fourier(torch.complex64), [("u", "v")])
    assert model.module.phases.dtype == torch.complex128
    np.testing.assert_allclose(model.module.phases.numpy(), phases.numpy(), atol=1e-6)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_models_are_made_and_bound_where_gradients_are_off(context):
    module = Net(torch.tanh)
    with context():
        X_there, Y_there = torch.from_numpy(X.copy()), torch.from_numpy(Y.copy())
        objective = TorchModel(module, [("u", "v")]).bind((X_there, Y_there))
        held_against_inside = objective.field(THETA), objective.hessian_columns(THETA, EVERY)
    held_against(objective, lambda x, theta: torch.tanh(x * theta))
    np.testing.assert_array_equal(held_against_inside[0], objective.field(THETA))
    np.testing.assert_array_equal(held_against_inside[1], objective.hessian_columns(THETA, EVERY))


def test_modules_made_in_inference_mode():
    with torch.inference_mode():
        module = Net(torch.tanh)
    held_against(
        TorchModel(module, [("u", "v")]).bind((X, Y)), lambda x, theta: torch.tanh(x * theta)
    )


def test_another_default_device_and_type_change_nothing():
    module = Net(torch.tanh)
    with torch.device("meta"):
        objective = TorchModel(module, [("u", "v")]).bind((X, Y))
        field = objective.field(THETA)
        columns = objective.hessian_columns(THETA, EVERY)
    torch.set_default_dtype(torch.float16)
    try:
        np.testing.assert_array_equal(objective.field(THETA), field)
        np.testing.assert_array_equal(objective.hessian_columns(THETA, EVERY), columns)
    finally:
        torch.set_default_dtype(torch.float32)
    held_against(objective, lambda x, theta: torch.tanh(x * theta))


def test_checkpoints_recompute_with_the_products_in_place():
    class Checkpointed(Net):
        def forward(self, x):
            return checkpoint(lambda x: torch.exp(torch.tanh(x * (self.u * self.v))), x,
                              use_reentrant=False)  # fmt: skip

    objective = TorchModel(Checkpointed(None), [("u", "v")]).bind((X, Y))
    held_against(objective, lambda x, theta: torch.exp(torch.tanh(x * theta)))


def test_weights_return_to_their_places_whatever_the_forward_pass_does():
    class Strange(Net):
        fails = False

        def forward(self, x):
            with torch.no_grad():
                self.v.add_(0.0)
                self.u.add_(0.0)
            if self.fails:
                raise ZeroDivisionError
            return self.act(x * (self.u * self.v))

    model = TorchModel(Strange(torch.tanh), [("u", "v")])
    objective = model.bind((X, Y))
    module = objective._network.module
    before = dict(module.named_parameters())
    held_against(objective, lambda x, theta: torch.tanh(x * theta))
    module.fails = True
    with pytest.raises(ZeroDivisionError):
        objective.field(THETA)
    after = dict(module.named_parameters())
    assert before.keys() == after.keys()
    assert every(after[name] is parameter for name, parameter in before.items())
    module.fails = False
    held_against(objective, lambda x, theta: torch.tanh(x * theta))


@pytest.mark.parametrize("caller", [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
def test_the_callers_choice_of_attention_kernels_stays(caller):
    class Attention(Net):
        def forward(self, x):
            tokens = (x * (self.u * self.v))[:, :, None]
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, :, 0]

    def formula(x, theta):
        z = x * theta
        return (torch.softmax(z[:, :, None] * z[:, None, :], -1) @ z[:, :, None])[:, :, 0]

    objective = TorchModel(Attention(None), [("u", "v")]).bind((X, Y))
    kernels = torch.backends.cuda
    with sdpa_kernel(caller):
        held_against(objective, formula)
        assert not kernels.math_sdp_enabled()
        assert kernels.flash_sdp_enabled() == (caller == SDPBackend.FLASH_ATTENTION)
        assert kernels.mem_efficient_sdp_enabled() == (caller == SDPBackend.EFFICIENT_ATTENTION)


def test_functional_derivatives_and_sparse_tensors_inside_the_module():
    def slope(x, theta):
        energy = torch.func.grad(lambda row: torch.tanh(row * theta).square().sum())
        return torch.vmap(energy)(x)

    def formula(x, theta):
        z = torch.tanh(x * theta)
        return 2 * z * (1 - z * z) * theta

    held_against(TorchModel.from_function(slope, 3).bind((X, Y)), formula)
    mix = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.5, 3.0]], dtype=torch.float64)

    def sparse(x, theta):
        return torch.sparse.mm(mix.to_sparse(), torch.tanh(x * theta).T).T

    held_against(
        TorchModel.from_function(sparse, 3).bind((X, Y)),
        lambda x, theta: torch.tanh(x * theta) @ mix.T,
    )


def test_training_recomputes_checkpoints_with_the_weights_that_train():
    class Checkpointed(Net):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    init = Initialization.gaussian(3, log10_alpha=-1, rng=0)
    options = {"lr": 0.3, "steps": 20}
    plain, saving = (TorchModel(kind(torch.tanh), [("u", "v")]) for kind in (Net, Checkpointed))
    expected = train(plain, (X, Y), init=init, **options)
    np.testing.assert_array_equal(train(saving, (X, Y), init=init, **options).theta, expected.theta)
    with pytest.raises(InvalidInputError, match="cannot be batched over runs"):
        train_many(saving, (X, Y), [init, init], **options)


@pytest.mark.parametrize("old", [True, False])
def test_modules_with_weight_norm(old):
    linear = nn.Linear(3, 3, dtype=torch.float64)
    if old:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            linear = nn.utils.weight_norm(linear)
    else:
        linear = nn.utils.parametrizations.weight_norm(linear)
    weight, bias = linear.weight.detach(), linear.bias.detach()
    module = Net(nn.Sequential(nn.Tanh(), linear))
    linear(torch.ones(3, dtype=torch.float64))  # keeps a result that cannot be copied
    objective = TorchModel(module, [("u", "v")], parameters="frozen").bind((X, Y))
    held_against(objective, lambda x, theta: torch.tanh(x * theta) @ weight.T + bias)


@pytest.mark.parametrize("units", [1e-8, 1e-3, 1e5, 1e12])
@pytest.mark.parametrize("function", [torch.sin, torch.tanh, torch.square, nn.functional.relu])
def test_no_unit_of_the_data_makes_a_right_derivative_look_wrong(function, units):
    model = TorchModel.from_function(lambda x, theta: function(x * theta), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonSmoothWarning)
        model.bind((X * units * [1, 1e3, 1e-3], Y / units))


def test_float32_states_its_error():
    module = DiagonalTransformer(3, n_layers=2, n_heads=2, bases="random", rng=0)
    data = tuple(np.random.default_rng(1).standard_normal((2, 90, 4, 3)))
    exact = TorchModel(module, module.products).bind(data)
    objective = TorchModel(module, module.products, precision="float32").bind(data)
    theta = np.random.default_rng(2).standard_normal(module.n_products)
    field = exact.field(theta)
    error = np.abs(objective.field(theta) - field).max() / np.abs(field).max()
    assert 1e-9 < error < 10 * objective.rounding
    assert 1e-8 < objective.rounding < 1e-5
    assert exact.rounding == np.finfo(np.float64).eps
    columns = exact.hessian_columns(theta, np.arange(5))
    np.testing.assert_allclose(
        objective.hessian_columns(theta, np.arange(5)), columns, atol=1e-5 * np.abs(columns).max()
    )
    assert objective.field(theta).dtype == np.float64


@pytest.mark.parametrize(
    "function",
    [
        lambda x, theta: (1e4 + x * theta) - 1e4,
        lambda x, theta: 1e6 * (1 - torch.cos(0.003 * x * theta)),
        lambda x, theta: ((x * theta + 300) ** 2 - 300**2) / 600,
    ],
)
def test_float32_states_the_error_of_terms_that_cancel(function):
    exact, single = (
        TorchModel.from_function(function, 3, precision=precision).bind((X, Y))
        for precision in ("float64", "float32")
    )
    rng = np.random.default_rng(5)
    for theta in rng.standard_normal((30, 3)):
        field = exact.field(theta)
        error = np.abs(single.field(theta) - field).max() / np.abs(field).max()
        assert error <= 2 * single.rounding


def test_functions_in_float32_receive_float32():
    seen = set()

    def function(x, theta):
        seen.add((x.dtype, theta.dtype))
        return torch.tanh(x * theta)

    model = TorchModel.from_function(function, 3, precision="float32")
    objective = model.bind((X, Y))
    seen.clear()
    value = objective.value(THETA)
    assert seen == {(torch.float32, torch.float32)}
    expected = TorchModel.from_function(function, 3).bind((X, Y)).value(THETA)
    assert value == pytest.approx(expected, rel=1e-6)
    assert value != expected


def test_losses_with_tensors_of_their_own_follow_the_model():
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), reduction="none")
    objective = TorchModel(Net(torch.tanh), [("u", "v")]).bind((X, labels), loss=loss)
    logits = np.tanh(X * THETA)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    weights = np.array([1.0, 2.0, 0.5])[labels]
    expected = -(weights * log_softmax[np.arange(7), labels]).mean()
    assert objective.value(THETA) == pytest.approx(expected, rel=1e-12)


class TestOnADevice:
    """As on a GPU, with a stand-in that refuses what a GPU refuses."""

    def test_field_and_batched_columns_equal_those_on_the_cpu(self):
        module = DiagonalTransformer(3, n_layers=2, n_heads=2, bases="random", rng=0)
        data = tuple(np.random.default_rng(1).standard_normal((2, 9, 4, 3)))
        theta = np.random.default_rng(2).standard_normal(module.n_products)
        every = np.arange(module.n_products)
        cpu = TorchModel(module, module.products).bind(data)
        with fake_device() as device:
            gpu = TorchModel(module, module.products, device="cuda").bind(data)
            assert gpu.memory_budget < device.free_bytes
            np.testing.assert_array_equal(gpu.field(theta), cpu.field(theta))
            columns = gpu.hessian_columns(theta, every)
            assert gpu._batched
        np.testing.assert_allclose(columns, cpu.hessian_columns(theta, every), atol=1e-13)

    def test_a_field_takes_one_copy_there_and_one_back_and_waits_for_nothing_else(self):
        with fake_device() as device:
            model = TorchModel(Net(torch.tanh), [("u", "v")], device="cuda")
            objective = model.bind((X, Y))
            objective.field(THETA)  # measures what a sample takes
            device.copies_to_host = device.copies_to_device = device.waits = 0
            objective.field(THETA)
            assert (device.copies_to_device, device.copies_to_host, device.waits) == (1, 1, 0)

    def test_losses_and_buffers_are_moved(self):
        labels = np.array([0, 1, 2, 0, 1, 2, 0])
        loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), reduction="none")
        module = Net(nn.Sequential(nn.BatchNorm1d(3, affine=False).double().eval(), nn.Tanh()))
        cpu = TorchModel(module, [("u", "v")]).bind((X, labels), loss=loss)
        with fake_device():
            gpu = TorchModel(module, [("u", "v")], device="cuda").bind((X, labels), loss=loss)
            np.testing.assert_array_equal(gpu.field(THETA), cpu.field(THETA))

    @pytest.mark.parametrize(("of_the_data", "kept"), [(2.5, True), (1.5, False)])
    def test_data_and_a_pass_do_not_take_the_same_half(self, of_the_data, kept):
        data_bytes = X.nbytes + Y.nbytes + 8 * len(X)
        free = int(of_the_data * data_bytes)
        with fake_device(free_bytes=free) as device:
            objective = TorchModel(Net(torch.tanh), [("u", "v")], device="cuda").bind((X, Y))
            assert (objective._inputs in device) == kept
            remaining = free - data_bytes if kept else free
            assert objective.memory_budget == remaining // 2

    @pytest.mark.parametrize(
        "text",
        [
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "CUDA error: out of memory",
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory",
        ],
    )
    def test_every_lack_of_memory_halves_the_chunk(self, text):
        largest = 0

        def greedy(x, theta):
            nonlocal largest
            if len(x) > 3:
                raise RuntimeError(text)
            largest = max(largest, len(x))
            return torch.tanh(x * theta)

        objective = TorchModel.from_function(greedy, 3).bind((X, Y))
        held_against(objective, lambda x, theta: torch.tanh(x * theta))
        assert 1 <= largest <= 3

    def test_an_error_of_the_device_is_raised_and_not_taken_for_a_missing_batching_rule(
        self, monkeypatch
    ):
        with fake_device():
            module = Net(torch.tanh)
            objective = TorchModel(module, [("u", "v")], device="cuda").bind((X, Y))
            compute = torch.autograd.grad

            def failing(*args, is_grads_batched=False, **options):
                if is_grads_batched:
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                return compute(*args, **options)

            monkeypatch.setattr(torch.autograd, "grad", failing)
            with pytest.raises(RuntimeError, match="illegal memory access"):
                objective.hessian_columns(THETA, EVERY)
            assert objective._batched


def test_columns_that_the_module_refuses_in_a_batch_are_taken_one_by_one(monkeypatch):
    objective = TorchModel(Net(torch.tanh), [("u", "v")]).bind((X, Y))
    compute, refused = torch.autograd.grad, 0

    def failing(*args, is_grads_batched=False, **options):
        nonlocal refused
        if is_grads_batched:
            refused += 1
            raise TypeError("a backward of the module's own takes no batches")
        return compute(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", failing)
    objective.hessian_columns(THETA, EVERY)
    assert refused == 1
    monkeypatch.undo()
    held_against(objective, lambda x, theta: torch.tanh(x * theta))


def test_flows_in_float32_are_those_in_float64_and_stages_are_refused():
    targets = X * [1.5, -0.7, 0.3]
    init = Initialization.gaussian(3, log10_alpha=-30, rng=0)
    models = [
        TorchModel.from_function(lambda x, theta: x * theta, 3, precision=precision)
        for precision in ("float64", "float32")
    ]
    double, single = (simulate(model, (X, targets), init, until=500.0) for model in models)
    np.testing.assert_allclose(single.theta[-1], double.theta[-1], atol=1e-6)
    found, expected = (flow.crossings(0.1) for flow in (single, double))
    assert len(expected[0]) >= 2
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    with pytest.raises(InvalidInputError, match=r"relative error of .*precision='float64'"):
        predict_stages(models[1], (X, targets))
