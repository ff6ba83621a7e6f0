"""The same numbers on a GPU as on the CPU: on a card where there is one, else on a stand-in.

The stand-in computes on the CPU and refuses what a card refuses; what only a card can show, its
memory and its own sums, is skipped without one.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from fake_device import fake_device

from dynalyze import Initialization, predict_stages, simulate
from dynalyze.models import DiagonalTransformer, TorchModel
from dynalyze.training import DiagonalHead, train, train_many

on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def device():
    with nullcontext() if torch.cuda.is_available() else fake_device():
        yield


def transformer_and_data(n=20):
    X, y = np.random.default_rng(0).standard_normal((2, n, 3, 2))
    return DiagonalTransformer(2, n_layers=2, n_heads=2, bases="random", rng=0), (X, y)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_objective(precision):
    module, data = transformer_and_data()
    cpu, gpu = (
        TorchModel(module, module.products, device=place, precision=precision).bind(data)
        for place in ("cpu", "cuda")
    )
    theta = np.random.default_rng(1).standard_normal(module.n_products)
    every = np.arange(module.n_products)
    error = 1e-12 if precision == "float64" else 1e-4
    assert gpu.value(theta) == pytest.approx(cpu.value(theta), rel=error)
    np.testing.assert_allclose(gpu.field(theta), cpu.field(theta), atol=error)
    columns = gpu.hessian_columns(theta, every)
    assert gpu._batched
    np.testing.assert_allclose(columns, cpu.hessian_columns(theta, every), atol=10 * error)
    assert gpu.rounding == pytest.approx(cpu.rounding, rel=1.0)


def test_data_that_stay_in_main_memory():
    module, data = transformer_and_data()
    kept, sent = (
        TorchModel(module, module.products, device="cuda", memory_budget=budget).bind(data)
        for budget in (10**8, 1000)
    )
    theta = np.random.default_rng(1).standard_normal(module.n_products)
    assert kept._inputs.is_cuda
    assert not sent._inputs.is_cuda
    np.testing.assert_allclose(sent.field(theta), kept.field(theta), atol=1e-12)


def test_stages_and_flow():
    module, data = transformer_and_data()
    models = [TorchModel(module, module.products, device=place) for place in ("cpu", "cuda")]
    expected, ours = (predict_stages(model, data, max_stages=2) for model in models)
    np.testing.assert_array_equal(ours.coordinates, expected.coordinates)
    np.testing.assert_allclose(ours.times, expected.times, rtol=1e-9)
    init = Initialization.gaussian(module.n_products, log10_alpha=-3, rng=0)
    until = float(expected.times[0]) * 3 * np.log(10)
    cpu, gpu = (simulate(model, data, init, until=until) for model in models)
    np.testing.assert_allclose(gpu.theta[-1], cpu.theta[-1], atol=1e-6)


def test_training():
    X = np.random.default_rng(2).standard_normal((30, 4, 3))
    data = X, X * [0.5, -1.0, 0.2]
    inits = [Initialization.gaussian(6, log10_alpha=-2, rng=seed) for seed in range(3)]
    options = {"lr": 0.05, "steps": 60}
    many = train_many(DiagonalHead(3), data, inits, device="cuda", **options)
    for init, run in zip(inits, many, strict=True):
        alone = train(DiagonalHead(3), data, init=init, device="cpu", **options)
        np.testing.assert_allclose(run.theta[-1], alone.theta[-1], atol=1e-10)


@on_a_card
def test_a_lack_of_memory_halves_the_chunk():
    model = TorchModel.from_function(lambda x, theta: torch.tanh(x * theta), 2000, device="cuda")
    X = np.random.default_rng(3).standard_normal((2000, 2000))
    objective = model.bind((X, X))
    expected = objective.field(np.ones(2000))
    before = objective.memory_budget
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((used + 16 * 2**20) / total)
    try:
        np.testing.assert_allclose(objective.field(np.ones(2000)), expected, atol=1e-13)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert objective.memory_budget < before


@on_a_card
def test_atomic_sums_are_no_randomness():
    """index_add on a card adds in an order that changes from call to call."""
    groups = torch.arange(20_000, device="cuda") % 3

    def function(x, theta):
        spread = torch.tanh(x * theta)[:, groups]
        sums = torch.zeros(len(x), 3, dtype=x.dtype, device=x.device)
        return sums.index_add(1, groups, spread)

    X = np.random.default_rng(4).standard_normal((30, 3))
    objective = TorchModel.from_function(function, 3, device="cuda").bind((X, X))
    counts = np.array([6667, 6667, 6666])
    slopes = counts * X / np.cosh(X) ** 2
    expected = np.mean((X - counts * np.tanh(X)) * slopes, axis=0)
    np.testing.assert_allclose(objective.field(np.ones(3)), expected, rtol=1e-9)
