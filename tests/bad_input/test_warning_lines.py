"""Warnings point at the line of the caller, whichever way the library is entered."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from dynalyze import Initialization, predict_stages, simulate
from dynalyze.errors import (
    ConstantFeatureWarning,
    FrozenParametersWarning,
    StagesOverlapWarning,
)
from dynalyze.models import AttentionHead, DiagonalLinear

X = np.column_stack([np.ones(6), np.arange(6.0), [1.0, 0, 0, 2, 0, 1]])
Y = X @ [0.3, 0.1, -0.2]
INIT = Initialization([1.0, 0.8, 0.9], [0.5, -0.3, 0.2], log10_alpha=-20)


def assert_here(call, category):
    """`call` warns once, at its own line in this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    mine = [warning for warning in caught if warning.category is category]
    assert len(mine) == 1
    assert Path(mine[0].filename) == Path(__file__)
    assert mine[0].lineno == call.__code__.co_firstlineno


def test_constant_features():
    model, data = DiagonalLinear(3), (X, Y)
    assert_here(lambda: model.bind(data), ConstantFeatureWarning)
    assert_here(lambda: predict_stages(model, data, max_stages=1), ConstantFeatureWarning)
    assert_here(lambda: simulate(model, data, INIT, until=1.0), ConstantFeatureWarning)
    head, tokens = AttentionHead(3), X.reshape(2, 3, 3)
    assert_here(lambda: head.bind((tokens, tokens)), ConstantFeatureWarning)


def test_stages_that_overlap():
    objective = DiagonalLinear(2).bind((np.eye(2), [1.0, 0.99]))
    init = Initialization([1.0, 0.8], [0.5, -0.3], log10_alpha=-2)
    assert_here(lambda: predict_stages(objective, init=init), StagesOverlapWarning)


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    import sympy as sp

    from dynalyze.errors import KernelCacheWarning
    from dynalyze.models import SymbolicModel

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    x, a = sp.symbols("x a", real=True)
    formula = 1.25 * a * x + sp.sin(0.375 * a) * x  # of no other test, so that it is not loaded
    model = SymbolicModel(formula, [x], [a])
    assert_here(lambda: model.bind((X[:, 1:2], Y)), KernelCacheWarning)


def test_models_in_pytorch():
    torch = pytest.importorskip("torch")
    from dynalyze.errors import NonSmoothWarning, UpcastWarning
    from dynalyze.models import TorchModel

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.u = torch.nn.Parameter(torch.ones(3))
            self.v = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            return (x @ (self.u * self.v)).relu()

    module, pairs = Net(), [("u", "v")]
    assert_here(lambda: TorchModel(module, pairs), UpcastWarning)
    model = TorchModel(module.double(), pairs)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(Y)
    assert_here(lambda: model.bind((inputs, targets)), NonSmoothWarning)
    module.bias = torch.nn.Parameter(torch.zeros(()).double())
    assert_here(lambda: TorchModel(module, pairs), FrozenParametersWarning)


def test_learning_rates():
    pytest.importorskip("torch")
    from dynalyze.errors import LearningRateWarning
    from dynalyze.training import DiagonalHead, train, train_many

    tokens = np.random.default_rng(0).standard_normal((10, 3, 2))
    data, head = (tokens, 0.5 * tokens), DiagonalHead(2)
    init = Initialization.gaussian(4, log10_alpha=-1, rng=0)
    options = {"lr": 80.0, "steps": 200}
    assert_here(lambda: train(head, data, init=init, **options), LearningRateWarning)
    assert_here(lambda: train_many(head, data, [init], **options), LearningRateWarning)
