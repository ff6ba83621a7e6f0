"""Sixty random modules: TorchModel against autograd on the raw weights (u, v), or a refusal.

The reference is the module itself in float64, its loss over the whole batch, and derivatives in u
and v: ∂L/∂u = −g ⊙ v and ∂²L/∂u∂u = v vᵀ ⊙ H, with g and H the model's at θ = u ⊙ v. What is no
function of θ alone, or has no derivatives of its own, must be refused in words.
"""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from dynalyze.errors import InvalidInputError, NonSmoothWarning, UpcastWarning
from dynalyze.models import TorchModel

D, N = 4, 9
F = nn.functional
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(x)
        ctx.slope = slope
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return ctx.slope * x**2 * grad, None


def frozen_square(z):
    with torch.no_grad():
        return z * z


def kept(module):
    if not hasattr(module, "was"):
        module.was = module.u * module.v
    return module.was


# How the product enters: (module, inputs) to z, shape (n, D).
RIGHT = {
    "diagonal": lambda m, x: x * (m.u * m.v),
    "one after the other": lambda m, x: (x * m.u) * m.v,
    "attention": lambda m, x: (
        torch.softmax((x[:, :, None] * x[:, None]) * (m.u * m.v), -1) @ x[:, :, None]
    )[:, :, 0],
    "matrix": lambda m, x: x @ ((m.u * m.v)[:, None] * m.mix),
    "vmap": lambda m, x: torch.vmap(lambda r: r * m.u * m.v + torch.tanh(r @ (m.u * m.v)))(x),
    "in place": lambda m, x: x.clone().mul_(m.u).mul_(m.v),
    "index_add": lambda m, x: torch.zeros_like(x).index_add_(1, torch.arange(D), x * (m.u * m.v)),
    "complex": lambda m, x: torch.view_as_real(
        torch.complex(x * (m.u * m.v), x) * torch.exp(torch.tensor(1j, dtype=torch.complex128))
    ).sum(-1),
    "Fourier": lambda m, x: torch.fft.irfft(torch.fft.rfft(x * (m.u * m.v)) ** 2, n=D),
    "fused attention": lambda m, x: F.scaled_dot_product_attention(
        (x * (m.u * m.v))[:, :, None], x[:, :, None], x[:, :, None]
    )[:, :, 0],
    "own backward": lambda m, x: Cube.apply(x * (m.u * m.v), 3),
    "checkpoint": lambda m, x: checkpoint(
        lambda x: torch.tanh(x * (m.u * m.v)), x, use_reentrant=False
    ),
    "lstm": lambda m, x: m.lstm((x * (m.u * m.v))[:, :, None])[0][:, :, 0],
    "kink": lambda m, x: torch.where(x * m.u * m.v > 0, x * m.u * m.v, 0.1 * x * m.u * m.v),
}
WRONG = {
    "not the product": lambda m, x: x * m.u * m.v + 1e-3 * m.u,
    "detached": lambda m, x: x * (m.u * m.v) * (m.u * m.v).detach(),
    "item": lambda m, x: x * (m.u * m.v) * (1 + (m.u * m.v).sum().item()),
    "no_grad": lambda m, x: x * (m.u * m.v) + frozen_square(x * (m.u * m.v)),
    "wrong backward": lambda m, x: Cube.apply(x * (m.u * m.v), 2.99),
    "reentrant": lambda m, x: checkpoint(
        lambda x: torch.tanh(x * (m.u * m.v)), x, use_reentrant=True
    ),
    "bfloat16": lambda m, x: (x * (m.u * m.v)).bfloat16().to(x.dtype),
    "cached": lambda m, x: x * kept(m),
    "in place on the data": lambda m, x: x.clamp_(-1, 1) * (m.u * m.v),
    "over the batch": lambda m, x: (x * (m.u * m.v)).cumsum(0),
    "random": lambda m, x: x * (m.u * m.v) + 1e-14 * torch.randn(1, dtype=x.dtype),
}


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mix", torch.randn(D, 3, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(self.mix.dtype) @ self.mix).imag


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.there, self.back = nn.Linear(D, D), nn.Linear(D, D)
        self.back.weight = self.there.weight

    def forward(self, x):
        return self.back(torch.tanh(self.there(x)))


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(D, 3))


AFTER = {
    "nothing": nn.Identity,
    "linear": lambda: nn.Linear(D, 3),
    "old weight norm": old_weight_norm,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(D, 3)),
    "layer norm": lambda: nn.LayerNorm(D),
    "group norm": lambda: nn.GroupNorm(2, D),
    "batch norm, eval": lambda: nn.BatchNorm1d(D).eval(),
    "dropout, eval": lambda: nn.Dropout(0.3).eval(),
    "silu in place": lambda: nn.SiLU(inplace=True),
    "relu in place": lambda: nn.ReLU(inplace=True),
    "encoder": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.TransformerEncoderLayer(2, 1, 4, 0.0, "gelu", batch_first=True),
        nn.Flatten(),
    ),
    "complex": Complex,
    "tied": Tied,
}
REFUSED_AFTER = {
    "batch norm": lambda: nn.BatchNorm1d(D),
    "dropout": lambda: nn.Dropout(0.3),
    "rare dropout": lambda: nn.AlphaDropout(1e-9),
}


class Random(nn.Module):
    def __init__(self, enter, after, *, tied):
        super().__init__()
        self.enter, self.after = enter, after
        self.u, self.v = (nn.Parameter(torch.randn(D)) for _ in "uv")
        self.register_buffer("mix", torch.randn(D, D))
        self.lstm = nn.LSTM(1, 1, batch_first=True)
        if tied:
            self.again = nn.Module()
            self.again.u = self.u

    def forward(self, x):
        return self.after(self.enter(self, x))


def drawn(seed, enter, after):
    """A random module in a random type, and its own copy in float64 with (u, v) to derive by."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    module = Random(enter, after(), tied=rng.random() < 0.3)
    dtype = (torch.float32, torch.float64, torch.bfloat16)[rng.integers(3)]
    module._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)
    if hasattr(module.after, "weight_g"):  # a result that is kept, which cannot be copied
        module.after.weight = module.after.weight.detach()
    wide = copy.deepcopy(module).requires_grad_(False)
    wide._apply(lambda t: t.to(torch.complex128 if t.is_complex() else torch.float64))
    if hasattr(wide, "again"):
        del wide.again.u
    for part in wide.modules():
        if hasattr(part, "inplace"):
            part.inplace = False
    u, v = (torch.from_numpy(w).requires_grad_() for w in rng.standard_normal((2, D)))
    del wide.u, wide.v
    wide.u, wide.v = u, v
    return rng, module, wide, u, v


def bound(module, X, Y):
    with warnings.catch_warnings():
        for category in (NonSmoothWarning, UpcastWarning):
            warnings.simplefilter("ignore", category)
        return TorchModel(module, [("u", "v")], parameters="frozen").bind((X, Y))


@pytest.mark.parametrize("seed", range(46))
def test_random_modules_agree_with_autograd_on_the_raw_weights(seed):
    names = list(RIGHT)
    enter, after = names[seed % len(names)], list(AFTER)[(seed * 5 + seed // 14) % len(AFTER)]
    rng, module, wide, u, v = drawn(seed, RIGHT[enter], AFTER[after])
    X = rng.standard_normal((N, D))
    with sdpa_kernel(SDPBackend.MATH):
        output = wide(torch.from_numpy(X))
        Y = rng.standard_normal(tuple(output.shape))
        loss = 0.5 * (output - torch.from_numpy(Y)).square().reshape(N, -1).sum(1).mean()
        by_u, by_v = torch.autograd.grad(loss, (u, v), create_graph=True)
        rows = [
            torch.autograd.grad(slope, u, retain_graph=True, materialize_grads=True)[0]
            if slope.requires_grad
            else torch.zeros_like(u)
            for slope in by_u
        ]
    objective = bound(module, X, Y)
    theta = (u * v).detach().numpy()
    a, b = u.detach().numpy(), v.detach().numpy()
    field = objective.field(theta)
    columns = objective.hessian_columns(theta, np.arange(D))
    size = 1e-9 * (1 + float(loss.detach()))
    assert objective.value(theta) == pytest.approx(float(loss.detach()), abs=size)
    np.testing.assert_allclose(-field * b, by_u.detach().numpy(), atol=size, rtol=1e-9)
    np.testing.assert_allclose(-field * a, by_v.detach().numpy(), atol=size, rtol=1e-9)
    np.testing.assert_allclose(
        columns * np.outer(b, b), torch.stack(rows).numpy(), atol=10 * size, rtol=1e-8
    )


@pytest.mark.parametrize("what", [*WRONG, *REFUSED_AFTER])
def test_modules_that_are_none_of_the_theory_are_refused(what):
    enter = WRONG.get(what, RIGHT["diagonal"])
    rng, module, *_ = drawn(len(what), enter, REFUSED_AFTER.get(what, AFTER["nothing"]))
    with pytest.raises(InvalidInputError):
        bound(module, rng.standard_normal((N, D)), rng.standard_normal((N, D)))
