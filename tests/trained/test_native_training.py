"""Gradient descent on the library's own kernels makes the steps of PyTorch."""

import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalyze import Initialization, LearningRateWarning
from dynalyze.models import AttentionHead, TorchModel
from dynalyze.training import DiagonalHead, FullHead, Recording, assemble, train, train_many
from dynalyze.training.descent import descend

D = 3
MOMENTUM = {"momentum": 0.5}
RULES = {
    "gd": {},
    "mse": {"loss": "mse", "lr": 0.2},
    "momentum": {"lr": 0.01, "optimizer_options": MOMENTUM},
    "dampening": {"optimizer_options": {"momentum": 0.6, "dampening": 0.3}},
    "nesterov": {"lr": 0.01, "optimizer_options": {**MOMENTUM, "nesterov": True}},
    "decay": {"lr": 0.01, "optimizer_options": {**MOMENTUM, "weight_decay": 0.01}},
    "sgd": {"optimizer": "sgd", "batch_size": 7},  # the last batch of an epoch has 3
    "sgd with momentum": {"optimizer": "sgd", "batch_size": 5, "optimizer_options": MOMENTUM},
    "sgd on all": {"optimizer": "sgd", "batch_size": 100},
    "rarely looked at": {"recording": Recording(check_every=7, every=20)},
}


def data(n=24, tokens=4, d=D, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, tokens, d))
    return X, AttentionHead(d).predict(rng.standard_normal(2 * d), X)


def start(seed=1, d=D, log10_alpha=-1.0):
    return Initialization.gaussian(2 * d, log10_alpha=log10_alpha, rng=seed)


def in_torch(monkeypatch, function, *args, **options):
    with monkeypatch.context() as patch:
        patch.setattr(assemble, "runs_natively", lambda *given: False)
        run = function(*args, **options)
    return run


def assert_alike(native, other):
    assert native.configuration["engine"] == "native"
    assert other.configuration["engine"] == "torch"
    np.testing.assert_array_equal(native.steps, other.steps)
    np.testing.assert_allclose(native.values, other.values, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(native.losses, other.losses, rtol=1e-10)
    for name, value in other.weights.items():
        np.testing.assert_allclose(native.weights[name], value, rtol=1e-10, atol=1e-12)
    for name in ("loss_rises", "status", "message"):
        assert getattr(native, name) == getattr(other, name)


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_those_of_torch(rule, monkeypatch):
    options = {"init": start(), "lr": 0.02, "steps": 300, "rng": 3} | RULES[rule]
    told = []
    options["callback"] = lambda step, losses: told.append((step, float(losses)))
    native = train(DiagonalHead(D), data(), **options)
    ours, told = told, []
    assert_alike(native, in_torch(monkeypatch, train, DiagonalHead(D), data(), **options))
    np.testing.assert_allclose(ours, told, rtol=1e-10)
    options["callback"] = None  # so that many steps are made at once
    again = train(DiagonalHead(D), data(), **options)
    np.testing.assert_array_equal(again.values, native.values)


@pytest.mark.parametrize("rule", ["momentum", "sgd"])
def test_many_runs_make_the_steps_of_torch_each(rule, monkeypatch):
    inits = [start(seed, log10_alpha=-0.5 * seed) for seed in range(1, 5)]
    options = {"lr": 0.02, "steps": 200, "rngs": range(4)} | RULES[rule]
    native = train_many(DiagonalHead(D), data(), inits, **options)
    others = in_torch(monkeypatch, train_many, DiagonalHead(D), data(), inits, **options)
    for one, other in zip(native, others, strict=True):
        assert_alike(one, other)


@pytest.mark.parametrize("first", ["native", "torch"])
def test_a_run_goes_on_from_the_checkpoint_of_the_other_engine(first, tmp_path, monkeypatch):
    options = {"init": start(), "lr": 0.02, "rng": 3, "checkpoint": tmp_path}
    options |= RULES["sgd with momentum"]
    plain = [DiagonalHead(D), data()]
    if first == "native":
        train(*plain, steps=101, **options)
        both = in_torch(monkeypatch, train, *plain, steps=200, **options)
    else:
        in_torch(monkeypatch, train, *plain, steps=101, **options)
        both = train(*plain, steps=200, **options)
    options["checkpoint"] = None
    whole = train(*plain, steps=200, **options)
    np.testing.assert_allclose(both.values[-1], whole.values[-1], rtol=1e-10, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 20),
    tokens=st.integers(1, 5),
    d=st.integers(1, 9),
    batch=st.integers(1, 25),
    momentum=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_problems_of_any_shape_are_trained_alike(n, tokens, d, batch, momentum, seed):
    X, y = data(n, tokens, d, seed)
    X[:, 0, 0] += np.arange(n)  # no feature is constant
    options = {"init": start(seed, d), "lr": 1e-3, "steps": 40, "rng": seed}
    options |= {"optimizer": "sgd", "batch_size": batch}
    options["optimizer_options"] = {"momentum": momentum}
    native = train(DiagonalHead(d), (X, y), **options)
    with pytest.MonkeyPatch.context() as patch:
        assert_alike(native, in_torch(patch, train, DiagonalHead(d), (X, y), **options))


def test_nothing_is_compiled_anew_for_samples_in_another_order_of_axes():
    options = {"init": start(), "lr": 0.02, "steps": 30, **RULES["sgd"], "rng": 0}
    expected = train(DiagonalHead(D), data(), **options)
    known = list(descend.signatures)
    X, y = map(np.asfortranarray, data())
    found = train(DiagonalHead(D), (X, torch.from_numpy(y)), **options)
    train_many(DiagonalHead(D), (X, y), [start(), start(2)], lr=0.02, steps=3)
    np.testing.assert_array_equal(found.values, expected.values)
    assert list(descend.signatures) == known


def test_runs_diverge_alike_and_leave_the_others_alone(monkeypatch):
    steep = Initialization(np.full(2 * D, 90.0), np.full(2 * D, 70.0), log10_alpha=-1)
    inits = [start(1), steep]
    options = {"lr": 0.02, "steps": 60, "recording": Recording(every=1)}
    plain = [DiagonalHead(D), data(), inits]
    with pytest.warns(LearningRateWarning, match="exceeded 100 times its start"):
        native = train_many(*plain, **options)
    with pytest.warns(LearningRateWarning, match="exceeded 100 times its start"):
        others = in_torch(monkeypatch, train_many, *plain, **options)
    assert [run.status for run in native] == [run.status for run in others]
    assert [run.status for run in native] == ["finished", "diverged"]
    for one, other in zip(native, others, strict=True):
        np.testing.assert_array_equal(one.steps, other.steps)


class Doubled(DiagonalHead):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    head = DiagonalHead(D)
    head.register_forward_hook(lambda module, inputs, output: 2 * output)
    return head


def changed():
    head = DiagonalHead(D)
    head.forward = types.MethodType(lambda self, x: 2 * DiagonalHead.forward(self, x), head)
    return head


def own_loss(output, target):
    return ((output - target) ** 2).flatten(1).sum(1)


def engine_of(model, **options):
    options = {"lr": 0.01, "steps": 2, "init": start()} | options
    return train(model, data(), **options).configuration["engine"]


def test_the_kernels_train_what_they_compute_and_nothing_else():
    head = DiagonalHead(D)
    for model in (head, AttentionHead(D), TorchModel(head, head.products)):
        assert engine_of(model) == "native"
    for model in (Doubled(D), hooked(), changed()):
        assert engine_of(model) == "torch"
    one_product = TorchModel(head, [("w_k", "w_q")], parameters="frozen")
    init = Initialization.gaussian(D, log10_alpha=-1, rng=0)
    assert engine_of(one_product, init=init) == "torch"
    for options in (
        {"optimizer": "adam"},
        {"loss": own_loss},
        {"precision": "float32"},
        {"optimizer_options": {"maximize": False}},
    ):
        assert engine_of(head, **options) == "torch"
    full = FullHead(D, 2)
    init = Initialization.gaussian(full.n_weights, log10_alpha=-1, rng=0)
    assert engine_of(full, init=init) == "torch"


def test_weights_are_those_of_a_loop_by_hand():
    X, y = map(torch.from_numpy, data())
    head, init = DiagonalHead(D), start()
    run = train(head, (X, y), init=init, lr=2e-3, steps=50, optimizer_options=MOMENTUM)
    u, v = (torch.from_numpy(0.1 * part).view(2, D) for part in (init.u0, init.v0))
    weights = [w.clone().requires_grad_() for w in (u[0], v[0], u[1], v[1])]
    velocities = [torch.zeros(D)] * 4
    for _ in range(50):
        w_k, w_q, w_v, w_o = weights
        out = torch.softmax((X * (w_k * w_q)) @ X.mT, -1) @ X * (w_v * w_o)
        loss = 0.5 * ((out - y) ** 2).sum() / len(X)
        slopes = torch.autograd.grad(loss, weights)
        velocities = [0.5 * m + s for m, s in zip(velocities, slopes, strict=True)]
        weights = [
            (w - 2e-3 * m).detach().requires_grad_()
            for w, m in zip(weights, velocities, strict=True)
        ]
    for name, weight in zip(("w_k", "w_q", "w_v", "w_o"), weights, strict=True):
        np.testing.assert_allclose(run.weights[name], weight.detach(), rtol=1e-11)
