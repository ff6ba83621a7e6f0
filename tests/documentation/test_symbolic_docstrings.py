"""The examples in the docstrings of the symbolic modules are true."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "models.symbolic_loss",
        "models.symbolic_model",
        "symbolic.algorithm",
        "symbolic.equations",
        "symbolic.problem",
    ],
)
def test_examples(name):
    failed, attempted = doctest.testmod(import_module(f"dynalyze.{name}"))
    assert attempted > 0
    assert failed == 0
