"""The same numbers on a GPU as on the CPU, where there is one."""

import numpy as np
import pytest
import torch

from dynalyze import Initialization, predict_stages
from dynalyze.models import DiagonalTransformer, TorchModel
from dynalyze.training import DiagonalHead, train, train_many

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def transformer_and_data():
    X, y = np.random.default_rng(0).standard_normal((2, 40, 5, 3))
    return DiagonalTransformer(3, n_layers=2, n_heads=2, bases="random", rng=0), (X, y)


def test_objective_and_stages():
    module, data = transformer_and_data()
    models = [TorchModel(module, module.products, device=place) for place in ("cpu", "cuda")]
    theta = np.random.default_rng(1).standard_normal(module.n_products)
    every = np.arange(module.n_products)
    cpu, gpu = (model.bind(data) for model in models)
    np.testing.assert_allclose(gpu.field(theta), cpu.field(theta), atol=1e-12)
    np.testing.assert_allclose(
        gpu.hessian_columns(theta, every), cpu.hessian_columns(theta, every), atol=1e-11
    )
    expected, ours = (predict_stages(model, data, max_stages=4) for model in models)
    np.testing.assert_array_equal(ours.coordinates, expected.coordinates)
    np.testing.assert_allclose(ours.times, expected.times, rtol=1e-9)


def test_training():
    X = np.random.default_rng(2).standard_normal((30, 4, 3))
    data = X, X * [0.5, -1.0, 0.2]
    inits = [Initialization.gaussian(6, log10_alpha=-2, rng=seed) for seed in range(3)]
    options = {"lr": 0.05, "steps": 200}
    many = train_many(DiagonalHead(3), data, inits, device="cuda", **options)
    for init, run in zip(inits, many, strict=True):
        alone = train(DiagonalHead(3), data, init=init, device="cpu", **options)
        np.testing.assert_allclose(run.theta[-1], alone.theta[-1], atol=1e-10)


def test_a_lack_of_memory_halves_the_chunk():
    model = TorchModel.from_function(lambda x, theta: torch.tanh(x * theta), 2000, device="cuda")
    X = np.random.default_rng(3).standard_normal((64, 2000))
    objective = model.bind((X, X))
    used = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    expected = objective.field(np.ones(2000))
    torch.cuda.set_per_process_memory_fraction((used + 2 * 2**20) / total)
    try:
        torch.cuda.empty_cache()
        np.testing.assert_allclose(objective.field(np.ones(2000)), expected, atol=1e-13)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
