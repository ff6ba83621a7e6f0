"""What a PyTorch model refuses or warns of, by the text the user reads."""

import sys
import threading
import types
import warnings

import numpy as np
import pytest
import torch
from fake_device import fake_device
from torch import nn
from torch.utils.checkpoint import checkpoint

from dynalyze import FrozenParametersWarning
from dynalyze.errors import (
    DynalyzeError,
    InvalidInputError,
    MissingDependencyError,
    NonSmoothWarning,
    UpcastWarning,
)
from dynalyze.models import TorchModel


class Net(nn.Module):
    def __init__(self, middle=None, dtype=torch.float64, size=3):
        super().__init__()
        self.u = nn.Parameter(torch.randn(size, dtype=dtype))
        self.v = nn.Parameter(torch.randn(size, dtype=dtype))
        self.long = nn.Parameter(torch.randn(size + 1, dtype=dtype), requires_grad=False)
        self.middle = middle if middle is not None else nn.Tanh()

    def forward(self, x):
        return self.middle(x * (self.u * self.v))


PAIRS = [("u", "v")]
DATA = np.random.default_rng(0).standard_normal((2, 6, 3))


def bind(module, data=(DATA[0], DATA[1]), pairs=PAIRS, **options):
    return TorchModel(module, pairs).bind(data, **options)


def test_missing_names_list_close_matches():
    net = nn.Sequential(Net())
    with pytest.raises(InvalidInputError, match=r"'0.uu', which is no parameter .*: 0\.u, 0\.v"):
        TorchModel(net, [("0.uu", "0.v")])


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ([], "products is empty"),
        ([("u", "long")], r"u has shape \(3,\) and long \(4,\)"),
        ([("u", "u")], r"uses u, which products\[0\] uses already"),
        ([("u", "v"), ("v", "u")], r"products\[1\] uses v, which products\[0\] uses"),
        (["uv"], "is not a pair of parameter names"),
        ([("u", "v", "long")], "is not a pair of parameter names"),
    ],
)
def test_pairs_that_are_no_products(pairs, text):
    with pytest.raises(InvalidInputError, match=text):
        TorchModel(Net(), pairs)


def test_module_must_be_a_module():
    with pytest.raises(InvalidInputError, match=r"use TorchModel\.from_function"):
        TorchModel(lambda x: x, PAIRS)


def test_a_function_has_no_weights():
    with pytest.raises(InvalidInputError, match="has no weights u and v: draw them"):
        TorchModel.from_function(lambda x, theta: x * theta, 3).weights()


def test_product_names_must_fit():
    with pytest.raises(InvalidInputError, match=r"2 entries: give one per product \(3\)"):
        TorchModel(Net(), PAIRS, product_names=["a", "b"])


@pytest.mark.parametrize("device", ["nowhere", "meta"])
def test_device_without_float64(device):
    with pytest.raises(InvalidInputError, match=f"device='{device}'"):
        TorchModel(Net(), PAIRS, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there():
    with pytest.raises(InvalidInputError, match="no CUDA device is available; use 'cpu'"):
        TorchModel(Net(), PAIRS, device="cuda")


def test_active_dropout_is_refused():
    net = Net(nn.Dropout(0.5))
    with pytest.raises(InvalidInputError, match=r"middle \(Dropout\) drops .* call module.eval"):
        TorchModel(net, PAIRS)
    bind(net.eval())


def test_functional_dropout_is_refused():
    class Noisy(Net):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5)

    with pytest.raises(InvalidInputError, match=r"two evaluations of the module .* differ"):
        bind(Noisy())


def test_batch_norm_in_training_mode_is_refused():
    net = Net(nn.BatchNorm1d(3, affine=False).double())
    with pytest.raises(
        InvalidInputError, match=r"middle \(BatchNorm1d\) normalizes .* module.eval\(\)"
    ):
        TorchModel(net, PAIRS)
    bind(net.eval())


def test_instance_norm_in_training_mode_is_no_batch_norm():
    norm = nn.InstanceNorm1d(1)
    bind(Net(nn.Sequential(nn.Unflatten(1, (1, 3)), norm, nn.Flatten())))
    assert norm.training


@pytest.mark.parametrize(
    "mixing",
    [
        lambda z, x: z - z.mean(0),
        lambda z, x: z + torch.cat([0 * z[:1], z[:-1]]),  # the first sample stands alone
        lambda z, x: z / len(z),
    ],
)
def test_samples_that_affect_each_other_are_refused(mixing):
    with pytest.raises(InvalidInputError, match="depends on the other samples of its batch"):
        bind(acting(mixing))


def test_samples_that_are_alike_at_first_do_not_hide_that_they_affect_each_other():
    X = np.repeat([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]], 10, axis=0)
    with pytest.raises(InvalidInputError, match="depends on the other samples of its batch"):
        bind(acting(lambda z, x: z - z.mean(0)), (X, X))


def test_rare_randomness_is_refused():
    def drop(z, x):
        return nn.functional.dropout(z, 1e-9)

    with pytest.raises(InvalidInputError, match=r"draws random numbers \(bernoulli\).*\.eval\(\)"):
        bind(acting(drop))


def test_random_numbers_of_a_seed_set_in_forward_are_a_function():
    def features(z, x):
        torch.manual_seed(3)
        return z @ torch.randn(3, 3, dtype=z.dtype)

    bind(acting(features))


def test_sums_in_varying_order_are_no_randomness():
    """As a GPU's atomic additions make them: two passes differ by rounding."""
    generator = np.random.default_rng(0)

    def accumulate(z, x):
        z = torch.cat([z, 0.1 * z, 1e3 * z], 1)
        order = torch.from_numpy(generator.permutation(9))
        return sum(z[:, i] for i in order)[:, None] * torch.ones(1, 3, dtype=z.dtype)

    bind(acting(accumulate))


def test_inputs_changed_in_place_are_refused():
    with pytest.raises(InvalidInputError, match=r"changes its inputs in place.*x\.clone\(\)"):
        bind(acting(lambda z, x: z * x.clamp_(-1, 1)))
    with pytest.raises(InvalidInputError, match="loss changes the targets in place"):
        bind(Net(), loss=lambda output, target: (output - target.clamp_(-1, 1)).square().sum(-1))


class _Passed(torch.autograd.Function):
    """Rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.round(decimals=1)

    @staticmethod
    def backward(ctx, grad):
        return grad


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0] ** 2


class _Forgotten(torch.autograd.Function):
    """A cube whose second derivative lacks a term: its backward leaves the graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0].detach() ** 2


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda z, x: z * z.detach(), "gradient of the loss is .* by autograd and .* by finite"),
        (lambda z, x: z + z.data, r"gradient of the loss is .* cut off \(detach, no_grad"),
        (lambda z, x: z * float(z[0, 0]) if len(z) == 1 else z, "other samples of its batch"),
        (lambda z, x: _Forgotten.apply(z), "second derivative of the loss is .* by autograd"),
        (lambda z, x: _Once.apply(z), "second derivative of the loss is .* by autograd"),
        (
            lambda z, x: checkpoint(torch.exp, z, use_reentrant=True),
            "gradient of the loss cannot be had by autograd: .* use_reentrant=False",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # checkpoint's own
def test_derivatives_that_are_not_those_of_the_loss_are_refused(function, text):
    with pytest.raises(InvalidInputError, match=text):
        bind(acting(function))


def test_straight_through_estimators_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonSmoothWarning)
        with pytest.raises(InvalidInputError, match=r"gradient of the loss is .* by autograd"):
            bind(acting(lambda z, x: _Passed.apply(z)))


def test_a_module_that_does_not_use_its_products_is_refused():
    class Cached(Net):
        def __init__(self):
            super().__init__()
            self.weight = (self.u * self.v).detach()

        def forward(self, x):
            return x * self.weight

    with pytest.raises(InvalidInputError, match=r"output does not change with \(u, v\)"):
        bind(Cached())


def test_a_module_that_cannot_be_copied_is_refused():
    net = Net()
    net.lock = threading.Lock()
    with pytest.raises(InvalidInputError, match=r"<Net> cannot be copied, .*locks, open files"):
        TorchModel(net, PAIRS)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_modules_are_refused():
    example = torch.ones(2, 3, dtype=torch.float64)
    for compiled in (torch.jit.trace(Net(), example, check_trace=False), torch.compile(Net())):
        pairs = [(name, name.replace("u", "v")) for name, _ in compiled.named_parameters()
                 if name.endswith("u")]  # fmt: skip
        with pytest.raises(InvalidInputError, match=r"compiled by .* give the module that it was"):
            TorchModel(compiled, pairs)


def test_trainable_parameters_outside_the_products_are_named():
    net = Net(nn.Linear(3, 3, dtype=torch.float64))
    with pytest.warns(FrozenParametersWarning, match=r"middle\.weight, middle\.bias: trainable"):
        TorchModel(net, PAIRS)
    TorchModel(net, PAIRS, parameters="frozen")
    with pytest.raises(InvalidInputError, match="parameters='train' is not known"):
        TorchModel(net, PAIRS, parameters="train")
    net.middle.requires_grad_(False)
    TorchModel(net, PAIRS)


def test_tied_parameters_are_inside_the_products():
    net = Net()
    net.again = net.u
    net.register_buffer("scale", torch.ones(3, dtype=torch.float64))
    TorchModel(net, PAIRS)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(inplace=True), nn.LeakyReLU(inplace=True), nn.Hardswish(), nn.ReLU6()]
)
def test_non_smooth_modules_are_named(activation):
    name = type(activation).__name__
    with pytest.warns(NonSmoothWarning, match=rf"middle \({name}\): not twice differentiable"):
        model = TorchModel(Net(activation), PAIRS)
    objective = model.bind((DATA[0], DATA[1]))
    assert np.isfinite(objective.hessian_columns(np.ones(3), np.arange(3))).all()
    assert getattr(activation, "inplace", None) in (True, False, None)


def test_in_place_relu_of_the_caller_stays_in_place():
    activation = nn.ReLU(inplace=True)
    with pytest.warns(NonSmoothWarning):
        TorchModel(Net(activation), PAIRS)
    assert activation.inplace


def acting(function):
    """A module that applies `function` to its product output z, with the inputs x beside."""

    class Acting(Net):
        def forward(self, x):
            return function(super().forward(x) * 1.0, x)

    return Acting()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda z, x: nn.functional.relu(z), "relu"),
        (lambda z, x: z.relu_(), "relu"),
        (lambda z, x: z.abs(), "abs"),
        (lambda z, x: torch.where(z > 0, z, 0.1 * z), "where with a mask or index of θ"),
        (lambda z, x: z * (z > 0), "mul with a mask or index of θ"),
        (lambda z, x: z.masked_fill(z < 0, 0.0), "masked_fill with a mask or index of θ"),
        (lambda z, x: z.clamp_min(0.0), "clamp_min"),
        (lambda z, x: z + z.max(-1, keepdim=True).values, "max"),
        (lambda z, x: z + z.amin(-1, keepdim=True), "amin"),
        (lambda z, x: z + z.sort(-1).values, "sort"),
        (lambda z, x: nn.functional.elu(z), "elu"),
        (lambda z, x: z + z.norm(dim=-1, keepdim=True), "linalg_vector_norm"),
        (lambda z, x: torch.vmap(torch.relu)(z), "relu"),
    ],
)
def test_non_smooth_functions_are_named(function, name):
    with pytest.warns(NonSmoothWarning, match=f"forward pass uses {name}: not twice"):
        bind(acting(function))


@pytest.mark.parametrize(
    "function",
    [
        lambda z, x: z * x.abs() * (x > 0),
        lambda z, x: torch.where(x > 0, z, 0.1 * z),
        lambda z, x: torch.softmax(z.masked_fill(torch.eye(3)[0] > 0, -1e9), -1),
        lambda z, x: z if not torch.isnan(z).any() else x,
        lambda z, x: nn.functional.layer_norm(z, (3,)).logsumexp(-1, keepdim=True) + z,
    ],
)
def test_kinks_in_the_data_and_fixed_masks_are_none_in_the_products(function):
    bind(acting(function))


def test_a_kink_in_the_loss_is_named():
    with pytest.warns(NonSmoothWarning, match="uses abs: not twice"):
        bind(Net(), loss=lambda output, target: (output - target).abs().sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_upcast_with_a_note(dtype):
    net = Net(dtype=dtype)
    short = str(dtype).removeprefix("torch.")
    with pytest.warns(UpcastWarning, match=rf"u \({short}\), .*copied to float64"):
        model = TorchModel(net, PAIRS)
    assert net.u.dtype == dtype
    u, _ = model.weights()
    np.testing.assert_array_equal(u, net.u.detach().double().numpy())
    assert model.bind((DATA[0], DATA[1])).field(np.ones(3)).dtype == np.float64


def test_complex_products_are_refused():
    net = Net(dtype=torch.complex128)
    with pytest.raises(InvalidInputError, match=r"products\[0\]: u is torch.complex128; .* real"):
        TorchModel(net, PAIRS)


def test_a_cast_within_forward_is_refused():
    with pytest.raises(InvalidInputError, match=r"computes in torch.float32 .* remove the cast"):
        bind(acting(lambda z, x: torch.softmax(z, -1, dtype=torch.float32).to(z.dtype)))


def test_a_cast_inside_forward_is_refused():
    class Casting(Net):
        def forward(self, x):
            return super().forward(x).float()

    with pytest.raises(InvalidInputError, match=r"returns torch.float32 .* remove the cast"):
        bind(Casting())


@pytest.mark.parametrize("kind", ["norm", "one factor", "sum"])
def test_dependence_on_more_than_the_products(kind):
    class Other(Net):
        def forward(self, x):
            out = super().forward(x)
            if kind == "norm":
                return out + 1e-3 * (self.u**2).sum()
            return out * self.u if kind == "one factor" else out + (self.u + self.v)

    with pytest.raises(
        InvalidInputError, match=r"not depend on the products alone.* changes by .* for \(u, v\)"
    ):
        bind(Other())


def test_only_the_pair_at_fault_is_named():
    class Two(Net):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in "ab")

        def forward(self, x):
            return super().forward(x) + x * self.a * self.b + self.a

    with pytest.raises(InvalidInputError, match=r"for \(a, b\)\. Weights that also enter"):
        bind(Two(), pairs=[("u", "v"), ("a", "b")])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ((DATA[0], DATA[1][:, :2]), r"y has shape \(6, 2\) and the module's outputs \(6, 3\)"),
        ((DATA[0], DATA[1][:4]), "X has 6 samples and y 4"),
        ((DATA[0][:0], DATA[1][:0]), "X has 0 samples and y 0"),
        ((DATA[0][:, :2], DATA[1]), r"does not run on inputs of shape \(6, 2\), torch.float64"),
        ((np.full((6, 3), np.nan), DATA[1]), "X contains NaN or infinity"),
        ((DATA[0], np.array(1.0)), "y has no axis of samples"),
        ((["a", "b"], DATA[1]), "X is of type list"),
        ({"X": DATA[0]}, "data is of type dict: give a pair"),
        (3, "data is of type int"),
        ([torch.ones(3)] * 3, "yields batches of type Tensor"),
        ([], "its loader yields no batch"),
    ],
)
def test_data_that_do_not_fit(data, text):
    with pytest.raises(InvalidInputError, match=text):
        bind(Net(), data)


def test_loss_names_and_functions():
    with pytest.raises(InvalidInputError, match="loss='l1' is not known"):
        bind(Net(), loss="l1")
    with pytest.raises(InvalidInputError, match=r"loss returns \(\) for 6 samples"):
        bind(Net(), loss=nn.functional.mse_loss)


def balanced(output, target):
    """Class-balanced: each sample counts by how rare its class is in the batch."""
    counts = torch.bincount(target, minlength=3)[target]
    return nn.functional.cross_entropy(output, target, reduction="none") / counts


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (balanced, np.repeat([0, 1, 2], 20)),
        (lambda o, t: (o - o.mean(0) - t).square().sum(-1), np.ones((60, 3))),
        (lambda o, t: (o - t).square().sum(-1) / len(o), np.ones((60, 3))),
        (lambda o, t: (o - t).square().sum(-1) * torch.rand(len(o)), np.ones((60, 3))),
    ],
)
def test_losses_that_mix_samples_are_refused(loss, targets):
    X = np.random.default_rng(1).standard_normal((60, 3))
    with pytest.raises(InvalidInputError, match="changes with the samples beside it, or from call"):
        bind(Net(), (X, targets), loss=loss)


def test_losses_that_do_not_run():
    with pytest.raises(InvalidInputError, match=r"loss does not run on outputs of shape \(6, 3\)"):
        bind(Net(), loss=nn.CrossEntropyLoss(reduction="none", weight=torch.ones(5)))
    with pytest.raises(InvalidInputError, match=r"loss returns torch\.float32 for outputs in"):
        bind(Net(), loss=lambda o, t: (o - t).square().sum(-1).float())


def test_output_must_be_a_batch():
    class Summed(Net):
        def forward(self, x):
            return super().forward(x).sum()

    with pytest.raises(InvalidInputError, match="first axis counts the samples is needed"):
        bind(Summed())


def test_theta_of_another_length():
    with pytest.raises(InvalidInputError, match=r"theta has shape \(2,\)"):
        bind(Net()).field(np.zeros(2))


def test_out_of_memory_on_a_single_sample():
    free = True

    def hopeless(x, theta):
        if not free and theta.requires_grad:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return x * theta

    model = TorchModel.from_function(hopeless, 3)
    objective = model.bind((DATA[0], DATA[1]))
    objective.field(np.zeros(3))
    free = False
    for use in (lambda: objective.field(np.zeros(3)), lambda: model.bind((DATA[0], DATA[1]))):
        with pytest.raises(DynalyzeError, match="cpu ran out of memory on one sample: free memory"):
            use()


def test_a_device_that_is_not_there_is_refused():
    with fake_device(), pytest.raises(InvalidInputError, match="'cuda:3': there are 1 CUDA dev"):
        TorchModel(Net(), PAIRS, device="cuda:3")


def test_unknown_precision():
    with pytest.raises(InvalidInputError, match="precision='half' is not known"):
        TorchModel(Net(), PAIRS, precision="half")


def test_missing_torch_names_the_extra(monkeypatch):
    for name in [
        m for m in sys.modules if m == "dynalyze._core.pytorch" or "dynalyze.models.torch" in m
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    import dynalyze.models

    with pytest.raises(MissingDependencyError, match=r'pip install "dynalyze\[torch\]"'):
        dynalyze.models.TorchModel(None, [])


def test_weights_of_samples_that_a_loader_shuffles_are_refused():
    X = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = torch.utils.data.TensorDataset(X, X.sin())
    weights = np.arange(1.0, 13.0)

    def loader(**order):
        return torch.utils.data.DataLoader(samples, batch_size=5, **order)

    with pytest.raises(
        InvalidInputError, match=r"order of its own \(RandomSampler\).*shuffle=False"
    ):
        bind(Net(), loader(shuffle=True), sample_weight=weights)
    theta = np.full(3, 0.3)
    in_order = bind(Net(), loader(shuffle=False), sample_weight=weights)
    whole = bind(Net(), samples, sample_weight=weights)
    np.testing.assert_allclose(in_order.field(theta), whole.field(theta), rtol=1e-12)
    bind(Net(), loader(shuffle=True))  # without weights the order does not matter


class TwoPairs(Net):
    """A second pair enters by what `second` makes of the module, once, before it is copied."""

    def __init__(self, second):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2))
        self.second = second(self)

    def forward(self, x):
        return super().forward(x) + self.second(x)


def kept_product(module):
    def second(self, x):
        if not hasattr(self, "kept"):
            self.kept = self.a * self.b
        return x * self.kept

    return types.MethodType(second, module)


def hooked(module):
    layer = nn.Identity()
    layer.register_forward_hook(lambda _, inputs, output: output * module.a * module.b)
    return layer


TWO_PAIRS = [*PAIRS, ("a", "b")]
READ_OUTSIDE = "a, b: read from the module that was given, and not from the copy"


@pytest.mark.parametrize(
    ("second", "text"),
    [
        (lambda module: lambda x: x * (module.a * module.b), READ_OUTSIDE),
        (hooked, READ_OUTSIDE),
        (kept_product, "the output at one θ depends on the θ before it"),
    ],
    ids=["lambda", "hook", "cache"],
)
def test_a_pair_that_would_not_change_with_theta_is_refused(second, text):
    model = TorchModel(TwoPairs(second), TWO_PAIRS)
    for _ in range(2):  # what was refused leaves nothing in the model that makes it pass
        with pytest.raises(InvalidInputError, match=text):
            model.bind((DATA[0], DATA[1]))


def test_a_loss_that_reads_the_callers_weights_is_refused():
    net = Net()

    def loss(output, target):
        return ((output - target) ** 2).sum(1) + (net.u * net.v).square().sum()

    with pytest.raises(InvalidInputError, match="u, v: read from the module that was given"):
        bind(net, loss=loss)


def test_hooks_and_lambdas_that_take_the_weights_from_the_copy_are_welcome():
    net = TwoPairs(lambda module: types.MethodType(lambda self, x: x * self.a * self.b, module))
    net.register_forward_hook(lambda module, inputs, output: output * module.u * module.v)
    assert bind(net, pairs=TWO_PAIRS).n_products == 6


@pytest.mark.parametrize(
    "decide",
    [
        lambda z: z.sum() > 0,
        lambda z: z.sum().item() > 0,
        lambda z: (z > 1).any(),
        lambda z: torch.equal(z, z + 1),
        lambda z: z.tolist()[0][0] > 0,
        lambda z: z.detach().numpy().sum() > 0,
        lambda z: np.asarray(z.detach())[0, 0] > 0,
        lambda z: np.from_dlpack(z.detach())[0, 0] > 0,
    ],
)
def test_a_branch_that_depends_on_theta_is_named(decide):
    class Branching(Net):
        def forward(self, x):
            z = super().forward(x)
            return z if decide(z) else 2 * z

    net = Branching()
    with pytest.warns(NonSmoothWarning, match="a decision by numbers that depend on θ"):
        bind(net, (DATA[0][:1], DATA[1][:1]))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda z: torch.copysign(torch.ones_like(z), z) * z, "copysign"),
        (lambda z: torch.copysign(z, torch.ones_like(z)), "copysign"),
        (lambda z: torch.hypot(z, torch.zeros_like(z)), "hypot"),
        (lambda z: z + 0 * torch.div(z, 2, rounding_mode="floor"), "div"),
        (lambda z: z + z.amax(1, keepdim=True), "amax"),
        (lambda z: z.relu_(), "relu"),
        (lambda z: z.sort(1).values, "sort"),
        (lambda z: z + (z.detach() > 0), "add with a mask or index"),
    ],
)
def test_operations_with_kinks_are_named(function, name):
    with pytest.warns(NonSmoothWarning, match=f"the forward pass uses {name}"):
        TorchModel.from_function(lambda x, theta: function(x * theta), 3).bind((DATA[0], DATA[1]))


@pytest.mark.parametrize(
    "shift",
    [
        lambda z: z.amax(1, keepdim=True).detach(),
        lambda z: z.max(dim=1, keepdim=True).values.detach(),
        lambda z: z.amax(1)[:, None].detach(),
        lambda z: z.detach().abs().amax(1, keepdim=True),
    ],
)
def test_a_kink_that_is_detached_and_cancels_is_none(shift):
    def softmax(x, theta):
        z = x * theta
        e = torch.exp(z - shift(z))
        return e / e.sum(1, keepdim=True)

    objective = TorchModel.from_function(softmax, 3).bind((DATA[0], DATA[1]))
    assert objective.non_smooth == ()


def test_rare_classes_and_tokens_are_tried_when_data_are_bound():
    inputs, classes = np.random.default_rng(0).standard_normal((50, 3)), np.zeros(50, dtype=int)
    classes[33] = 7
    with pytest.raises(InvalidInputError, match=r"loss does not run .*Target 7 is out of bounds"):
        bind(Net(), (inputs, classes), loss=nn.CrossEntropyLoss(reduction="none"))


def test_sparse_data():
    sparse = torch.eye(3, dtype=torch.float64).to_sparse()
    with pytest.raises(InvalidInputError, match=r"X is sparse: give X.to_dense\(\)"):
        bind(Net(), (sparse, torch.eye(3)))


def test_a_loss_may_change_the_output_in_place():
    def loss(output, target):
        return output.sub_(target).square().sum(1)

    objective = bind(net := Net(nn.Identity()), loss=loss)
    plain = TorchModel(net, PAIRS).bind((DATA[0], DATA[1]), loss=lambda o, y: (o - y).pow(2).sum(1))
    theta = np.array([0.4, -0.2, 1.0])
    np.testing.assert_allclose(objective.field(theta), plain.field(theta), rtol=1e-14)


@pytest.mark.parametrize("dtype", [">f8", "<f8", np.longdouble])
def test_arrays_of_any_byte_order_and_width_are_data(dtype):
    objective = bind(net := Net(), tuple(DATA.astype(dtype)))
    theta = np.array([0.4, -0.2, 1.0])
    np.testing.assert_array_equal(objective.field(theta), bind(net).field(theta))
