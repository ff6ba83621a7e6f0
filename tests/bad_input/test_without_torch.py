"""Without torch the package imports, `hasattr` answers, and what needs it names the remedy."""

import subprocess
import sys

_BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
import dynalyze
from dynalyze.errors import MissingDependencyError
"""


def run(code, *, blocked=True):
    done = subprocess.run(
        [sys.executable, "-c", (_BLOCKED if blocked else "import dynalyze, sys") + code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def test_everything_is_imported_by_a_star():
    code = """
from dynalyze import *
from dynalyze.models import *
import numpy as np
print(predict_stages(DiagonalLinear(2), (np.eye(2), np.array([1.0, 0.5]))).n_stages)
print(TorchModel.__name__, DiagonalTransformer.__name__, SymbolicModel.__name__)
"""
    assert run(code) == "2\nTorchModel DiagonalTransformer SymbolicModel\n"


def test_hasattr_answers():
    code = """
for name in dynalyze.models.__all__:
    assert hasattr(dynalyze.models, name), name
print([hasattr(dynalyze, name) for name in ("models", "spectra", "training", "nothing")])
"""
    assert run(code) == "[True, False, False, False]\n"


def test_what_needs_torch_names_the_remedy():
    code = """
from dynalyze.models import TorchModel, DiagonalTransformer
for use in (
    lambda: TorchModel(None, products=[]),
    lambda: DiagonalTransformer(2),
    lambda: __import__("dynalyze.spectra"),
    lambda: __import__("dynalyze.training"),
):
    try:
        use()
    except MissingDependencyError as error:
        print("dynalyze[torch]" in str(error))
try:
    dynalyze.spectra
except AttributeError as error:
    print("dynalyze[torch]" in str(error))
try:
    from dynalyze import training
except ImportError as error:
    print("dynalyze[torch]" in str(error))
"""
    assert run(code) == "True\n" * 6


def test_spectra_and_training_resolve_as_attributes_and_load_torch_on_use_alone():
    code = """
assert "torch" not in sys.modules
print(dynalyze.spectra.SpectraHistory.__name__, dynalyze.training.train.__name__)
print({"spectra", "training"} <= set(dir(dynalyze)), "torch" in sys.modules)
"""
    assert run(code, blocked=False) == "SpectraHistory train\nTrue True\n"
