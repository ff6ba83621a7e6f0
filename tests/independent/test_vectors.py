"""The kernels' exponential against mpmath's, and their products of matrices against NumPy's."""

import os
import subprocess
import sys

import llvmlite.binding
import mpmath
import numba
import numpy as np
import pytest
from numba.core import config

from dynalyze.models import kernels
from dynalyze.models.kernels import gradient, hessian, plain, products
from dynalyze.models.kernels.vectors import LANES, _cpu_features, exp, vectors


@numba.njit
def exponentials(values, out):
    arguments, results = vectors(values), vectors(out)
    for i in range(len(arguments)):
        results[i] = exp(arguments[i])


def evaluate(values):
    values = np.asarray(values, dtype=np.float64)
    padding = -len(values) % LANES
    source = np.concatenate([values, np.zeros(padding)])
    out = np.empty_like(source)
    exponentials(source.reshape(-1, LANES), out.reshape(-1, LANES))
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
    code = "from dynalyze.models import kernels; print(kernels.LANES)"
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
    assert _cpu_features() == [""]


@numba.njit
def grams(full, symmetric, left, right, scale):
    products.gram(vectors(full), vectors(left), vectors(right))
    products.scaled_gram(vectors(symmetric), vectors(left), vectors(scale))


@numba.njit
def contraction(out, factors, weights, tokens, lower, start):
    products.contraction(
        vectors(out), vectors(factors), vectors(weights), vectors(tokens), lower, start
    )


@numba.njit
def residuals(out, targets, weights, tokens, scale, omega, sums):
    products.residual(
        vectors(out),
        vectors(targets),
        vectors(weights),
        vectors(tokens),
        vectors(scale),
        vectors(omega)[0],
        vectors(sums),
    )


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 21])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 50])
def test_products_of_matrices_of_every_size_equal_numpys(n, d):
    rng = np.random.default_rng(100 * n + d)
    left, right, targets = rng.standard_normal((3, n, d, LANES))
    weights, scale = rng.standard_normal((n, n, LANES)), rng.standard_normal((d, LANES))

    full, symmetric = np.full((2, n, n, LANES), np.nan)
    grams(full, symmetric, left, right, scale)
    np.testing.assert_allclose(full, np.einsum("aiv,biv->abv", left, right), atol=1e-13)
    expected = np.einsum("aiv,iv,biv->abv", left, scale, left)
    np.testing.assert_allclose(symmetric, expected, atol=1e-13)

    start = int(rng.integers(d))
    for lower, summed in ((False, weights), (True, np.tri(n)[:, :, None] * weights)):
        out = np.ones((d, LANES))
        contraction(out, left, weights, right, lower, start)
        expected = 1.0 + np.einsum("aiv,abv,biv->iv", left, summed, right)
        np.testing.assert_allclose(out[start:], expected[start:], atol=1e-12)
        assert (out[:start] == 1.0).all()

    out, sums = np.full_like(left, np.nan), np.ones((2, d, LANES))
    omega = rng.uniform(size=(1, LANES))
    residuals(out, targets, weights, right, scale, omega, sums)
    means = np.einsum("abv,biv->aiv", weights, right)
    residual = scale * means - targets
    np.testing.assert_allclose(out, omega * scale * residual, atol=1e-12)
    expected = 1.0 + (omega * residual * means).sum(axis=0)
    np.testing.assert_allclose(sums[0], expected, rtol=1e-12, atol=1e-12)
    squares = d + (omega * residual**2).sum(axis=(0, 1))
    np.testing.assert_allclose(sums[1].sum(axis=0), squares, rtol=1e-12)


def columns_of_both(shape, p_columns, q_columns):
    rng = np.random.default_rng(shape[0])
    X, y = (kernels.sample_lanes(values) for values in rng.standard_normal((2, *shape)))
    weight = rng.uniform(size=(len(X), LANES))
    weight.flat[shape[0] :] = 0.0
    theta = rng.standard_normal(2 * shape[2])
    bounds = np.array([0, len(X) // 2, len(X)])
    chosen = np.array(p_columns), np.array(q_columns)
    for module in (plain, gradient):
        out = np.zeros((2, 3, shape[2], LANES))
        module.loss_and_gradient(X, y, weight, theta, bounds, out)
        yield out
    for module in (plain, hessian):
        out = np.zeros((2, 2 * len(p_columns) + len(q_columns) + 1, shape[2], LANES))
        module.hessian_columns(X, y, weight, theta, *chosen, bounds, out)
        yield out


@pytest.mark.parametrize("shape", [(3, 2, 4), (40, 5, 8), (33, 7, 6), (20, 10, 50), (9, 17, 3)])
def test_compiled_and_plain_functions_give_the_same_in_each_chunk(shape):
    d = shape[2]
    results = columns_of_both(shape, [d - 1, 0], [1, d - 1, 1])
    plain, compiled, plain_columns, columns = (out.sum(axis=-1) for out in results)
    np.testing.assert_allclose(compiled[:, :2], plain[:, :2], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(compiled[:, 2].sum(-1), plain[:, 2].sum(-1), rtol=1e-12)
    np.testing.assert_allclose(columns, plain_columns, rtol=1e-10, atol=1e-10)


def test_arrays_that_are_not_contiguous_are_refused():
    @numba.njit
    def first(values):
        return len(vectors(values))

    with pytest.raises(numba.TypingError, match="C-contiguous arrays alone"):
        first(np.zeros((LANES, 3)).T)

    @numba.njit
    def gram_of_columns(out, left):
        products.gram(vectors(out), vectors(left)[:, ::2], vectors(left)[:, ::2])

    with pytest.raises(numba.TypingError, match="C-contiguous arrays alone"):
        gram_of_columns(np.zeros((2, 2, LANES)), np.zeros((2, 4, LANES)))
