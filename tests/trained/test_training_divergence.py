"""Which runs diverge is told by the loss on all samples, and ends no other run."""

import warnings

import numpy as np
import pytest
import torch

from dynalyze import Initialization
from dynalyze.errors import DynalyzeWarning, InvalidInputError, LearningRateWarning
from dynalyze.training import DiagonalHead, FullHead, train, train_many

D = 3
X = np.random.default_rng(0).standard_normal((60, 4, D))


def start(seed=1, n=2 * D, log10_alpha=-2.0):
    return Initialization.gaussian(n, log10_alpha=log10_alpha, rng=seed)


def rare_targets(n_samples, seed):
    """Zero but for a few samples, with which no first batch begins."""
    y = np.zeros_like(X)
    chosen = np.random.default_rng(seed).choice(len(X), n_samples, replace=False)
    y[chosen] = X[chosen] * [0.5, -1.0, 0.2]
    return y


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("n_samples", [0, 1, 4])
def test_rare_targets_are_no_divergence(n_samples, optimizer, seed):
    run = train(
        DiagonalHead(D), (X, rare_targets(n_samples, seed)), init=start(seed), lr=1e-3, steps=100,
        optimizer=optimizer, batch_size=2, rng=seed,
    )  # fmt: skip
    assert (run.status, run.steps[-1]) == ("finished", 100)


def test_adam_from_a_loss_near_zero_is_no_divergence():
    run = train(
        DiagonalHead(D), (X, np.zeros_like(X)), init=start(log10_alpha=-3.0), lr=1.0, steps=100,
        optimizer="adam",
    )  # fmt: skip
    assert run.losses.max() > 1e6 * run.losses[0]
    assert (run.status, run.steps[-1]) == ("finished", 100)


@pytest.mark.parametrize("shift", [-5.0, -1e-3, 0.0, 1e-9])
def test_a_loss_below_zero_is_no_divergence(shift):
    y = X * [0.5, -1.0, 0.2]
    level = float(0.5 * (y**2).sum((1, 2)).mean())

    def shifted(output, target):
        return 0.5 * (output - target).square().flatten(1).sum(1) - level + shift

    plain = train(DiagonalHead(D), (X, y), init=start(), lr=0.05, steps=150)
    run = train(DiagonalHead(D), (X, y), init=start(), lr=0.05, steps=150, loss=shifted)
    assert run.status == "finished"
    np.testing.assert_allclose(run.theta[-1], plain.theta[-1], atol=1e-12)


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "sgd", "batch_size": 20}])
@pytest.mark.parametrize("seed", range(3))
def test_divergence_is_noticed(optimizer, seed):
    with pytest.warns(LearningRateWarning, match="lr=40 is too large"):
        run = train(
            DiagonalHead(D), (X, X * [0.5, -1.0, 0.2]), init=start(log10_alpha=-1.0, seed=seed),
            lr=40.0, steps=300, rng=seed, **optimizer,
        )  # fmt: skip
    assert run.status == "diverged"
    assert run.steps[-1] < 300
    assert np.isfinite(run.theta).all()


def huge(n):
    return Initialization(1e200 * np.ones(n), 9e199 * np.ones(n), log10_alpha=-1)


@pytest.mark.parametrize("model", [DiagonalHead(D), FullHead(D, 2)], ids=["diagonal", "full"])
@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "batch_size": 7}])
def test_one_run_that_is_not_finite_at_the_start_leaves_the_others(model, options, tmp_path):
    n = model.n_weights if isinstance(model, FullHead) else 2 * D
    inits = [start(seed, n) for seed in range(3)]
    inits[1] = huge(n)
    data, options = (X, 0.5 * X), {"lr": 0.01, "steps": 30, "rngs": range(3), **options}
    with pytest.warns(DynalyzeWarning, match="not finite at the initial weights of run 1"):
        runs = train_many(model, data, inits, checkpoint=tmp_path, **options)
    assert [run.status for run in runs] == ["finished", "diverged", "finished"]
    assert "initial weights of run 1: check init" in runs[1].message
    assert runs[1].steps.tolist() == [0]
    rngs = options.pop("rngs")
    for index in (0, 2):
        alone = train(model, data, init=inits[index], rng=rngs[index], **options)
        np.testing.assert_allclose(runs[index].values, alone.values, rtol=1e-9, atol=1e-12)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        again = train_many(model, data, inits, checkpoint=tmp_path, rngs=rngs, **options)
    np.testing.assert_array_equal(again[2].values, runs[2].values)
    with pytest.raises(InvalidInputError, match="not finite at the initial weights of run 0"):
        train_many(model, data, [huge(n)] * 2, lr=0.01, steps=3)


def test_a_full_head_that_diverges_leaves_the_others_at_the_smallest_scales():
    head = FullHead(D, 2)
    small = start(0, head.n_weights, log10_alpha=-14.0)
    large = Initialization(
        300 * np.ones(head.n_weights), 280 * np.ones(head.n_weights), log10_alpha=-1.0
    )
    data, options = (X, 0.5 * X), {"lr": 0.05, "steps": 60}
    with pytest.warns(LearningRateWarning):
        runs = train_many(head, data, [small, large], **options)
    assert [run.status for run in runs] == ["finished", "diverged"]
    alone = train(head, data, init=small, **options)
    np.testing.assert_allclose(runs[0].values, alone.values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", ["gd", "sgd", "adam"])
def test_float32_states_the_error_of_its_gradients(case, tmp_path):
    options = {"init": start(log10_alpha=-1.0), "lr": 0.02, "steps": 200, "precision": "float32"}
    if case != "gd":
        options |= {"optimizer": case, "batch_size": 16, "rng": 1}
    data = X, X * [0.5, -1.0, 0.2]
    run = train(DiagonalHead(D), data, **options)
    exact = train(DiagonalHead(D), data, **options | {"precision": "float64"})
    assert run.weights["w_k"].dtype == np.float32
    assert run.theta.dtype == exact.weights["w_k"].dtype == np.float64
    stated = run.configuration["gradient_errors"]
    assert stated["steps"] == list(range(0, 200, 20))
    assert 0 < max(stated["relative"]) < 1e-4
    assert "in float32, whose gradients differ from float64's by" in run.message
    difference = np.abs(run.theta[-1] - exact.theta[-1]).max()
    assert 0 < difference < 1e-4
    train(DiagonalHead(D), data, checkpoint=tmp_path, **options | {"steps": 200, "max_seconds": 0})
    again = train(DiagonalHead(D), data, checkpoint=tmp_path, **options)
    np.testing.assert_array_equal(again.theta, run.theta)
    assert again.configuration["gradient_errors"] == stated


def test_the_stated_error_is_that_of_autograd_in_both_precisions():
    head, init = DiagonalHead(D), start(log10_alpha=-1.0)
    data = X, X * [0.5, -1.0, 0.2]
    run = train(head, data, init=init, lr=0.02, steps=5, precision="float32")
    alpha = 10.0**init.log10_alpha
    parts = [part[half] for half in (slice(0, D), slice(D, None)) for part in (init.u0, init.v0)]
    weights = [torch.from_numpy(alpha * part).float() for part in parts]
    gradients = []
    for dtype in (torch.float32, torch.float64):
        k, q, v, o = leaves = [w.to(dtype).requires_grad_() for w in weights]
        x, y = (torch.from_numpy(array).to(dtype) for array in data)
        out = torch.softmax((x * (k * q)) @ x.mT, -1) @ x * (v * o)
        loss = (0.5 * (out - y).square().flatten(1).sum(1)).mean()
        gradients.append(torch.cat(torch.autograd.grad(loss, leaves)).double())
    error = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    # Another order of summation rounds otherwise, by about as much.
    assert run.configuration["gradient_errors"]["relative"][0] < 20 * error + 1e-6
    assert run.configuration["gradient_errors"]["relative"][0] > error / 20


def test_float32_refuses_what_it_cannot_hold():
    with pytest.raises(InvalidInputError, match="precision='half' is not known: choose"):
        train(DiagonalHead(D), (X, X), init=start(), lr=0.1, steps=1, precision="half")
    with pytest.raises(InvalidInputError, match=r"below -18, where .* the range of float32"):
        train(
            DiagonalHead(D), (X, X), init=start(log10_alpha=-20.0), lr=0.1, steps=1,
            precision="float32",
        )  # fmt: skip
    head = FullHead(D, 2)
    with pytest.raises(InvalidInputError, match=r"below -3, where rounding .* in float64"):
        train(
            head, (X, X), init=start(n=head.n_weights, log10_alpha=-5.0), lr=0.1, steps=1,
            precision="float32",
        )  # fmt: skip

    class Double(DiagonalHead):
        def forward(self, x):
            return super().forward(x) + torch.zeros(1, dtype=torch.float64)

    with pytest.raises(InvalidInputError, match=r"returns torch.float64 .* precision='float32'"):
        train(Double(D), (X, X), init=start(), lr=0.1, steps=1, precision="float32")
