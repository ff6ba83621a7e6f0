"""The package works where compiled code cannot be kept, and says once what to do about it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dynalyze

# Permissions do not bind root, so the folders are made unusable otherwise: Numba is told to look
# at NUMBA_CACHE_DIR alone, which lies below a file.
_UNUSABLE = {
    "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
    "NUMBA_CACHE_DIR": "/dev/null/cache",
}
_USE = """
import numpy as np
import dynalyze.models.attention_head
import dynalyze.flow.simulate
import sympy as sp
linear = dynalyze.models.DiagonalLinear(2).bind((np.eye(2), np.array([1.0, 0.5])))
print(linear.field(np.zeros(2)))
a, x = sp.symbols("a x")
formula = dynalyze.models.SymbolicModel(a * x, [x], [a]).bind((np.ones((1, 1)), np.ones(1)))
print(formula.value(np.zeros(1)))
"""


def test_without_a_writable_cache_folder_all_works_with_one_warning(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(_USE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=os.environ | _UNUSABLE | {"XDG_CACHE_HOME": str(tmp_path)},
        check=False,
    )
    assert done.stdout == "[0.5  0.25]\n0.5\n"
    assert done.stderr.count("KernelCacheWarning") == 1
    assert "NUMBA_CACHE_DIR to a folder that can be" in done.stderr
    assert done.stderr.startswith(f"{script}:3: KernelCacheWarning")


_FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import numpy as np
import dynalyze.models
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
tokens = np.ones((3, 2, 2))
print(dynalyze.models.AttentionHead(2).bind((tokens, tokens)).value(np.zeros(4)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the system are POSIX's")
def test_a_full_disk_costs_the_cache_alone(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK],
        capture_output=True,
        text=True,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        check=False,
    )
    assert done.stdout == "2.0\n"
    assert done.stderr.count("KernelCacheWarning") == 1


def test_every_kernel_is_compiled_in_the_one_place_that_does_without_a_cache():
    package = Path(dynalyze.__file__).parent
    sources = {path.name: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    direct = [
        name
        for name, text in sources.items()
        if "numba.njit(" in text or "from numba import njit" in text
    ]
    assert direct == ["compiled.py"]
    assert sum("from dynalyze._core.compiled import njit" in text for text in sources.values()) > 3


def copied_package(tmp_path: Path) -> Path:
    package = tmp_path / "copy" / "dynalyze"
    shutil.copytree(
        Path(dynalyze.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    return package


def printed_result(package: Path, cache: Path) -> str:
    """What `kernel.result()` of a package returns in a process of its own."""
    return subprocess.run(
        [sys.executable, "-Bc", "from dynalyze.kernel import result; print(result())"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": str(cache)},
        cwd=package.parent,
        check=True,
    ).stdout


def test_kernels_are_compiled_anew_when_a_source_changes_and_only_then(tmp_path: Path):
    """Not when a file is touched; and when what changed is another module, of the same age."""
    package = copied_package(tmp_path)
    inlined, kernel = package / "inlined.py", package / "kernel.py"
    inlined.write_text("RESULT = 1\n", encoding="utf-8")
    kernel.write_text(
        "from dynalyze._core.compiled import njit\nfrom dynalyze.inlined import RESULT\n"
        "@njit(cache=True)\ndef result():\n    return RESULT\n",
        encoding="utf-8",
    )
    cache = tmp_path / "cache"

    def outcome() -> tuple[str, dict[str, int]]:
        stdout = printed_result(package, cache)
        return stdout, {file.name: file.stat().st_mtime_ns for file in cache.rglob("*.nb?")}

    printed, kept = outcome()
    assert printed == "1\n"
    assert kept != {}
    os.utime(kernel, (1e9, 1e9))
    assert outcome() == ("1\n", kept)
    age = inlined.stat().st_mtime_ns
    inlined.write_text("RESULT = 2\n", encoding="utf-8")
    os.utime(inlined, ns=(age, age))
    assert outcome()[0] == "2\n"


def test_kernels_are_compiled_anew_when_a_class_that_they_took_is_gone(tmp_path: Path):
    package = copied_package(tmp_path)
    for name in ("Before", "After"):
        (package / "kernel.py").write_text(
            f"from typing import NamedTuple\nfrom dynalyze._core.compiled import njit\n"
            f"class {name}(NamedTuple):\n    value: int\n"
            f"@njit(cache=True)\ndef first(pair):\n    return pair.value\n"
            f"def result():\n    return first({name}(7))\n",
            encoding="utf-8",
        )
        assert printed_result(package, tmp_path / "cache") == "7\n"


_FORMULA = """
import numpy as np
import dynalyze.models
import sympy as sp
a, x = sp.symbols("a x")
formula = dynalyze.models.SymbolicModel(a * x, [x], [a]).bind((np.ones((1, 1)), np.ones(1)))
print(formula.value(np.zeros(1)))
"""


@pytest.mark.parametrize("why", ["full", "no home", "unwritable"])
def test_generated_code_needs_no_folder(tmp_path: Path, why: str):
    """Neither a disk that is full, nor a user without a home, nor a file in the folder's place."""
    before = {
        "full": "import os\ndef full(*_): raise OSError(28, 'No space left')\nos.replace = full\n",
        "no home": "import pathlib\ndef none(): raise RuntimeError('Could not determine home')\n"
        "pathlib.Path.home = none\n",
        "unwritable": "",
    }[why]
    script = tmp_path / "script.py"
    script.write_text(before + _FORMULA, encoding="utf-8")
    cache = tmp_path / "cache"
    if why == "unwritable":
        cache.touch()
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": "" if why == "no home" else str(cache)},
        check=False,
    )
    assert done.stdout == "0.5\n"
    assert "KernelCacheWarning: generated code cannot be kept" in done.stderr
    assert done.stderr.count("KernelCacheWarning") == 1
    assert "set XDG_CACHE_HOME to a folder that can be" in done.stderr
    if why == "full":
        assert list(cache.rglob("*.tmp")) == []


def test_a_formula_compiled_once_is_loaded_by_the_next_process(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(_FORMULA, encoding="utf-8")
    # Not beside the script, where its folder "dynalyze" would stand for the package.
    cache = tmp_path / "cache"
    kept = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            check=True,
        )
        assert (done.stdout, done.stderr) == ("0.5\n", "")
        kept.append({file.name: file.stat().st_mtime_ns for file in cache.rglob("*.nb?")})
    assert kept[0] == kept[1] != {}


def test_warmup_leaves_nothing_to_compile(tmp_path: Path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "dynalyze", "warmup"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert f"kept in {tmp_path}" in done.stdout
    compiled = {file.name for file in tmp_path.rglob("*.nbc")}
    assert compiled
    subprocess.run(
        [sys.executable, "-m", "dynalyze", "predict", "--data", "digits", "--log10-alpha=-9"],
        capture_output=True,
        env=environment,
        check=True,
    )
    assert {file.name for file in tmp_path.rglob("*.nbc")} == compiled
