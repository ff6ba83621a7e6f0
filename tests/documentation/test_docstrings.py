"""The examples in the docstrings of the whole package are true."""

import doctest
import pkgutil
from importlib import import_module
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

import dynalyze

ROOT = Path(dynalyze.__file__).parents[1]
# Found by their text, so that modules without examples need not be imported.
MODULES = [
    module.name
    for module in pkgutil.walk_packages(dynalyze.__path__, "dynalyze.")
    for place in [ROOT.joinpath(*module.name.split("."))]
    for path in [place / "__init__.py" if module.ispkg else place.with_suffix(".py")]
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_examples_are_found():
    assert "dynalyze.flow.initialization" in MODULES
    assert "dynalyze.training.one_or_many" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    if name.startswith(("dynalyze.training", "dynalyze.spectra")) or "torch" in name:
        pytest.importorskip("torch")
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(import_module(name))
    plt.close("all")
    assert attempted > 0
    assert failed == 0
