"""What a PyTorch model refuses or warns of, by the text the user reads."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from dynalyze.errors import DynalyzeError, InvalidInputError, MissingDependencyError
from dynalyze.models import TorchModel
from dynalyze.models.torch_inspection import NonSmoothWarning, UpcastWarning


class Net(nn.Module):
    def __init__(self, middle=None, dtype=torch.float64, size=3):
        super().__init__()
        self.u = nn.Parameter(torch.randn(size, dtype=dtype))
        self.v = nn.Parameter(torch.randn(size, dtype=dtype))
        self.long = nn.Parameter(torch.randn(size + 1, dtype=dtype))
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
    net = Net(nn.BatchNorm1d(3).double())
    with pytest.raises(
        InvalidInputError, match=r"middle \(BatchNorm1d\) normalizes .* module.eval\(\)"
    ):
        TorchModel(net, PAIRS)
    bind(net.eval())


def test_hand_written_batch_statistics_are_refused():
    class Centred(Net):
        def forward(self, x):
            out = super().forward(x)
            return out - out.mean(0)

    with pytest.raises(InvalidInputError, match="depends on the other samples of its batch"):
        bind(Centred())


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


@pytest.mark.parametrize("function", [nn.functional.relu, torch.relu_, torch.abs])
def test_non_smooth_functions_are_named(function):
    class Rectified(Net):
        def forward(self, x):
            return function(super().forward(x) * 1.0)

    name = function.__name__
    with pytest.warns(NonSmoothWarning, match=f"forward pass uses {name}: not twice"):
        bind(Rectified())


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
        ((DATA[0][:, :2], DATA[1]), r"does not run on inputs of shape \(4, 2\), torch.float64"),
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
    with pytest.raises(InvalidInputError, match=r"loss returns \(\) for 4 samples"):
        bind(Net(), loss=nn.functional.mse_loss)


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
    def hopeless(x, theta):
        if theta.requires_grad:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return x * theta

    objective = TorchModel.from_function(hopeless, 3).bind((DATA[0], DATA[1]))
    objective._bytes_per_sample = 100
    with pytest.raises(DynalyzeError, match="cpu ran out of memory on one sample: free memory"):
        objective.field(np.zeros(3))


def test_missing_torch_names_the_extra(monkeypatch):
    for name in [m for m in sys.modules if m == "dynalyze._torch" or "models.torch_" in m]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    import dynalyze.models

    with pytest.raises(MissingDependencyError, match=r'pip install "dynalyze\[torch\]"'):
        _ = dynalyze.models.TorchModel
