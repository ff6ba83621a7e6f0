"""The kernels' own exponential against mpmath's."""

import os
import subprocess
import sys

import llvmlite.binding
import mpmath
import numba
import numpy as np
import pytest
from numba.core import config

from dynalyze.models import _vector_math
from dynalyze.models._vector_math import LANES, VECTOR_BYTES, address, exp, load, store
from dynalyze.models._vector_tiles import TILE, gram_tile


@numba.njit
def exponentials(values, out):
    for i in range(len(values) // LANES):
        store(address(out) + i * VECTOR_BYTES, exp(load(address(values) + i * VECTOR_BYTES)))


def evaluate(values):
    values = np.asarray(values, dtype=np.float64)
    padding = -len(values) % LANES
    source = np.concatenate([values, np.zeros(padding)])
    out = np.empty_like(source)
    exponentials(source, out)
    return out[: len(values)]


def test_exponential_is_within_two_units_in_the_last_place():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            -rng.uniform(0.0, 1.0, 2000),
            -rng.uniform(0.0, 708.0, 2000),
            -(10.0 ** rng.uniform(-18, 0, 500)),
            # where the rounding of x / ln 2 changes, the reduced argument is largest
            (np.arange(-1020, 1) + 0.5) * np.log(2.0),
        ]
    )
    values = values[values > -708.0]
    actual = evaluate(values)
    with mpmath.workdps(40):
        errors = [
            abs(float((mpmath.mpf(float(a)) - mpmath.exp(mpmath.mpf(float(x)))) / np.spacing(a)))
            for x, a in zip(values, actual, strict=True)
        ]
    assert max(errors) < 2.0


def test_exponential_of_zero_of_very_negative_numbers_and_of_nan():
    np.testing.assert_array_equal(
        evaluate([0.0, -0.0, -709.0, -1e4, -1e300, -np.inf]), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    )
    assert np.isnan(evaluate([np.nan])[0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"NUMBA_CPU_FEATURES": "+avx512f,+avx2"}, 8),
        ({"NUMBA_CPU_FEATURES": "+avx2,-avx512f"}, 4),
        ({"NUMBA_CPU_FEATURES": ""}, 4),
        ({"NUMBA_CPU_NAME": "generic"}, 4),
        ({"NUMBA_ENABLE_AVX": "0"}, 4),
    ],
)
def test_switches_of_numba_set_the_width(settings, expected):
    code = "from dynalyze.models import _vector_math; print(_vector_math.LANES)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(expected)


def test_a_processor_that_llvm_does_not_know_gets_the_narrow_vectors(monkeypatch):
    def unknown():
        raise RuntimeError("failed to get the host's features")

    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", unknown)
    monkeypatch.setattr(config, "CPU_FEATURES", None)
    assert _vector_math._cpu_features() == [""]


def test_kernels_work_where_plain_python_is_asked_for():
    code = (
        "import numpy as np; from dynalyze.models import AttentionHead; X = np.ones((3, 2, 2)); "
        "print(AttentionHead(2).bind((X, X)).field(np.zeros(4)))"
    )
    plain, compiled = (
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"NUMBA_DISABLE_JIT": switch},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for switch in "10"
    )
    assert plain == compiled != ""


def test_a_tile_of_a_size_that_is_not_there_is_an_error():
    @numba.njit
    def gram(out, left, rows, columns):
        view = (address(left), VECTOR_BYTES, VECTOR_BYTES)
        gram_tile((address(out), VECTOR_BYTES, VECTOR_BYTES), view, view, 1, rows, columns)

    out, left = np.zeros((40, LANES)), np.ones((40, LANES))
    gram(out, left, 1, 1)
    assert (out[0] == 1).all()
    for rows, columns in ((0, 0), (TILE + 1, TILE), (0, 16 + TILE), (-1, 1), (1, 2**33)):
        with pytest.raises(ValueError, match="there is no tile of this size"):
            gram(out, left, rows, columns)
