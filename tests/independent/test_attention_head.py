"""The head's loss, gradient and Hessian against PyTorch's automatic differentiation."""

import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dynalyze.models import AttentionHead, Model, Objective, kernels
from dynalyze.models.kernels import plain

torch = pytest.importorskip("torch")


def torch_loss(theta, X, y, loss, sample_weight=None):
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    d = X.shape[2]
    p, q = theta[:d], theta[d:]
    A = torch.softmax((X * p) @ X.transpose(1, 2), dim=2)
    residual = (A @ X) * q - y
    per_sample = (residual**2).sum(dim=(1, 2))
    per_sample = per_sample / 2 if loss == "squared" else per_sample / y[0].numel()
    if sample_weight is None:
        return per_sample.mean()
    weight = torch.as_tensor(sample_weight, dtype=torch.float64)
    return (weight * per_sample).sum() / weight.sum()


def torch_derivatives(theta, *args):
    def loss(theta):
        return torch_loss(theta, *args)

    theta = torch.as_tensor(theta)
    gradient = torch.autograd.functional.jacobian(loss, theta)
    hessian = torch.autograd.functional.hessian(loss, theta)
    return float(loss(theta)), gradient.numpy(), hessian.numpy()


def problem(shape, seed=0, scale=0.5):
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((2, *shape))
    return X, y, scale * rng.standard_normal(2 * shape[2]), rng


def assert_close(actual, expected, rtol=1e-10):
    # Each entry to its own size; sums that cancel are known to the rounding of their parts.
    rounding = 1e-4 * rtol * float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rounding)


SHAPES = [
    (1, 1, 1),
    (1, 4, 3),
    (3, 1, 5),
    (5, 3, 1),
    (7, 2, 2),
    (8, 5, 8),
    (9, 6, 10),
    (17, 7, 4),
    (23, 11, 9),
    (64, 8, 8),
    (130, 10, 13),
    (6, 13, 50),
    (20, 10, 50),
    (2, 33, 20),
    (9, 41, 8),
    (3, 4, 130),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ["squared", "mse"])
@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_equal_autograd(shape, loss, weighted):
    X, y, theta, rng = problem(shape)
    sample_weight = rng.uniform(0.0, 3.0, shape[0]) if weighted else None
    value, gradient, hessian = torch_derivatives(theta, X, y, loss, sample_weight)
    objective = AttentionHead(shape[2]).bind((X, y), loss=loss, sample_weight=sample_weight)
    assert objective.value(theta) == pytest.approx(value, rel=1e-12)
    assert_close(objective.field(theta), -gradient)
    assert_close(objective.hessian_columns(theta, np.arange(2 * shape[2])), hessian)


@pytest.mark.parametrize("n_tokens", [6, 8, 19])
@pytest.mark.parametrize(
    "indices", [[], [3], [12], [0, 15], [9, 2, 2, 14, 0], [-1], range(4), range(8)]
)
def test_chosen_columns_of_short_and_long_sequences_come_in_the_order_asked_for(indices, n_tokens):
    X, y, theta, _ = problem((30, n_tokens, 8))
    _, _, hessian = torch_derivatives(theta, X, y, "squared")
    indices = np.array(list(indices), dtype=np.int64)
    columns = AttentionHead(8).bind((X, y)).hessian_columns(theta, indices)
    assert columns.shape == (16, len(indices))
    if len(indices):
        assert_close(columns, hessian[:, indices])


def test_all_columns_of_long_sequences_keep_their_digits_where_features_are_far_from_zero():
    X, y, theta, _ = problem((5, 12, 4), scale=1.0)
    X, theta = X + 100.0, theta / np.repeat([100.0, 1.0], 4)
    in_blocks = [np.moveaxis(values, 0, -1)[None].astype(np.longdouble) for values in (X, y)]
    weight, everything = np.full((1, 5), 1 / np.longdouble(5)), np.arange(4)
    out = np.zeros((1, 2 * 4 + 4 + 1, 4, 1), dtype=np.longdouble)
    plain.hessian_columns(
        *in_blocks, weight, theta.astype(np.longdouble), everything, everything, [0, 1], out
    )
    hessian = AttentionHead(4).bind((X, y)).hessian_columns(theta, np.arange(8))
    for ours, expected in ((hessian[:4, :4], out[0, 0:8:2]), (hessian[4:, :4], out[0, 1:8:2])):
        reference = expected[:, :, 0].T.astype(np.float64)
        np.testing.assert_allclose(ours, reference, atol=1e-12 * np.abs(reference).max())


def test_value_and_field_agree_with_value_and_with_field():
    X, y, theta, _ = problem((30, 6, 8))
    objective = AttentionHead(8).bind((X, y))
    value, field = objective.value_and_field(theta)
    assert value == objective.value(theta)
    np.testing.assert_array_equal(field, objective.field(theta))


@pytest.mark.parametrize("n_samples", [1, 40, 333])
def test_results_do_not_depend_on_the_number_of_threads(n_samples):
    X, y, theta, _ = problem((n_samples, 5, 9))
    results = []
    for threads in (None, 1, 2, 3, 7):
        objective = AttentionHead(9, threads=threads).bind((X, y))
        value, field = objective.value_and_field(theta)
        results.append((value, field, objective.hessian_columns(theta, np.arange(0, 18, 2))))
    for value, field, columns in results[1:]:
        assert value == results[0][0]
        np.testing.assert_array_equal(field, results[0][1])
        np.testing.assert_array_equal(columns, results[0][2])


def test_field_of_the_key_query_products_is_exactly_zero_while_the_others_are_zero():
    X, y, theta, _ = problem((50, 10, 7))
    theta[7:] = 0.0
    field = AttentionHead(7).bind((X, y)).field(theta)
    np.testing.assert_array_equal(field[:7], np.zeros(7))
    assert np.abs(field[7:]).min() > 0.0


@pytest.mark.parametrize("scale", [1e-300, 1e-8, 30.0, 1e3, 1e6])
def test_tiny_and_huge_logits(scale):
    X, y, theta, _ = problem((20, 5, 6), scale=1.0)
    theta[:6] *= scale
    value, gradient, hessian = torch_derivatives(theta, X, y, "squared")
    objective = AttentionHead(6).bind((X, y))
    # Logits of size s are rounded to s × 1e-16, in PyTorch too, and so the weights
    rtol = 1e-10 * max(1.0, scale / 1e3)
    assert objective.value(theta) == pytest.approx(value, rel=rtol)
    assert_close(objective.field(theta), -gradient, rtol)
    assert_close(objective.hessian_columns(theta, np.arange(12)), hessian, rtol)


@pytest.mark.parametrize("size", [1e160, 1e300, np.inf, np.nan])
def test_products_too_large_give_no_number_and_no_warning(size):
    X, y, theta, _ = problem((40, 5, 6))
    objective = AttentionHead(6).bind((X, y))
    value, field = objective.value_and_field(size * theta)
    assert not np.isfinite(value)
    assert not np.isfinite(field).all()
    for indices in (np.arange(3), np.arange(12)):
        assert not np.isfinite(objective.hessian_columns(size * theta, indices)).all()


def test_evaluations_in_several_threads_do_not_disturb_one_another():
    X, y, theta, rng = problem((300, 5, 9))
    objective = AttentionHead(9, threads=2).bind((X, y))
    points = [theta * scale for scale in rng.uniform(0.1, 1.0, 40)]

    def evaluate(point):
        return objective.field(point), objective.hessian_columns(point, np.arange(5))

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(evaluate, points))
    for point, (field, columns) in zip(points, together, strict=True):
        expected_field, expected_columns = evaluate(point)
        np.testing.assert_array_equal(field, expected_field)
        np.testing.assert_array_equal(columns, expected_columns)


def test_the_other_width_of_vectors_gives_the_same(tmp_path):
    """Four lanes, as without AVX-512, or eight where that is the width of this machine."""
    other = {4: 8, 8: 4}[kernels.LANES]
    script = tmp_path / "narrower_or_wider.py"
    script.write_text(_OTHER_WIDTH, encoding="utf-8")
    files = [__file__, str(Path(__file__).with_name("test_vectors.py"))]
    result = subprocess.run(
        [sys.executable, str(script), str(other), *files],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


def test_with_compiling_off_derivatives_are_those_of_autograd_too():
    arguments = ["-q", "-p", "no:cacheprovider", "-k", "equal_autograd or huge", __file__]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_with_compiling_off_a_prediction_is_the_same():
    code = (
        "import numpy as np, dynalyze; from dynalyze.models import AttentionHead; "
        "rng = np.random.default_rng(0); X = rng.standard_normal((20, 3, 2)); "
        "data = X, AttentionHead(2).predict(rng.standard_normal(4), X); "
        "print(*dynalyze.predict_stages(AttentionHead(2), data).times)"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | off,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for off in ({}, {"NUMBA_DISABLE_JIT": "1"})
    ]
    compiled, interpreted = (np.array(text.split(), dtype=float) for text in printed)
    assert compiled.size == 4
    np.testing.assert_allclose(interpreted, compiled, rtol=1e-10)


# Without AVX-512 the compiler is told so; vectors of eight work everywhere, only not as fast.
_OTHER_WIDTH = """
import sys
import pytest
from numba.core import codegen, config
lanes, *files = sys.argv[1:]
features = codegen.get_host_cpu_features().replace("+avx512", "-avx512")
config.CPU_FEATURES = features + (",+avx512f" if lanes == "8" else "")
from dynalyze.models import kernels
config.CPU_FEATURES = features
assert kernels.LANES == int(lanes)
chosen = "equal_autograd or exponential or threads_do_not_disturb or numpys or each_chunk"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", chosen, *files]))
"""


def test_predict_equals_the_torch_head_and_gives_the_loss():
    X, y, theta, _ = problem((12, 6, 5))
    model = AttentionHead(5)
    output = model.predict(theta, X)
    p, q = theta[:5], theta[5:]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.as_tensor(z) for z in (X * p, X, X * q)), scale=1.0
    )
    np.testing.assert_allclose(output, expected.numpy(), rtol=1e-12, atol=1e-13)
    mse = float(np.mean((output - y) ** 2))
    assert model.bind((X, y), loss="mse").value(theta) == pytest.approx(mse, rel=1e-13)


@pytest.mark.parametrize("n_without_weight", [0, 6])
def test_binding_takes_at_most_a_fifth_more_memory_than_the_data(n_without_weight):
    X, y, _, _ = problem((4000, 10, 10))
    sample_weight = np.ones(len(X))
    sample_weight[:n_without_weight] = 0.0
    tracemalloc.start()
    try:
        objective = AttentionHead(10).bind((X, y), sample_weight=sample_weight)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert objective.n_products == 20
    assert most < 1.2 * (X.nbytes + y.nbytes)


def test_model_and_objective_satisfy_the_protocols_and_name_their_products():
    X, y, _, _ = problem((3, 2, 2))
    model = AttentionHead(2)
    assert isinstance(model, Model)
    assert isinstance(model.bind((X, y)), Objective)
    assert model.product_names == ("W_K W_Q[0]", "W_K W_Q[1]", "W_V W_O[0]", "W_V W_O[1]")
    assert model.bind((X, y)).n_products == 4
