"""The diagonal transformer of Example 3.2 against a plain NumPy one with full matrices."""

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

from dynalyze.errors import InvalidInputError
from dynalyze.models import AttentionHead, DiagonalTransformer, Model, Objective

D, T, N = 4, 3, 5


def plain_transformer(model, theta, X):
    """Example 3.2, sample by sample, with the matrices written out."""
    L, H = model.n_layers, model.n_heads
    products = theta.reshape(2, L, H, D)
    Q = np.tile(np.eye(D), (L, H, 1, 1)) if model.bases is None else model.bases.numpy()

    def normalized(Z):
        if not model.pre_norm:
            return Z
        centred = Z - Z.mean(1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)

    outputs = []
    for x in X:
        Z = x
        for layer in range(L):
            A = normalized(Z)
            update = np.zeros_like(Z)
            for head in range(H):
                basis = Q[layer, head]
                KQ = basis @ np.diag(products[0, layer, head]) @ basis.T
                VO = basis @ np.diag(products[1, layer, head]) @ basis.T
                update += softmax(A @ KQ @ A.T, axis=1) @ A @ VO
            Z = Z + update
            if model.W_A is not None:
                hidden = normalized(Z) @ model.W_A[layer].numpy()
                Z = Z + 0.5 * hidden * (1 + erf(hidden / np.sqrt(2))) @ model.W_B[layer].numpy().T
        Z = Z.mean(0) if model.output == "pooled" else Z
        outputs.append(Z if model.readout is None else Z @ model.readout.numpy())
    return np.array(outputs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_layers": 2, "n_heads": 3},
        {"n_layers": 2, "n_heads": 2, "bases": "random", "pre_norm": True},
        {"n_layers": 2, "feedforward": None, "output": "pooled"},
        {"n_heads": 2, "d_mlp": 7, "output": "pooled", "readout": np.eye(D)[:, :2] + 0.1},
    ],
)
def test_output_and_field(options):
    rng = np.random.default_rng(0)
    model = DiagonalTransformer(D, rng=1, **options)
    theta, X = rng.standard_normal(model.n_products), rng.standard_normal((N, T, D))
    output = plain_transformer(model, theta, X)
    y = rng.standard_normal(output.shape)
    objective = model.bind((X, y))
    loss = 0.5 * ((output - y) ** 2).sum() / N
    assert objective.value(theta) == pytest.approx(loss, rel=1e-12)
    step = 1e-5
    for i in rng.choice(model.n_products, 4, replace=False):
        up, down = theta + step * np.eye(len(theta))[i], theta - step * np.eye(len(theta))[i]
        slope = ((plain_transformer(model, up, X) - y) ** 2).sum()
        slope -= ((plain_transformer(model, down, X) - y) ** 2).sum()
        assert objective.field(theta)[i] == pytest.approx(-slope / (4 * step * N), abs=1e-7)


def test_one_head_is_the_attention_head_with_a_residual():
    rng = np.random.default_rng(2)
    model = DiagonalTransformer(D, feedforward=None)
    X, y = rng.standard_normal((2, N, T, D))
    theta = rng.standard_normal(2 * D)
    ours, head = model.bind((X, y)), AttentionHead(D).bind((X, y - X))
    assert ours.value(theta) == pytest.approx(head.value(theta), rel=1e-13)
    every = np.arange(2 * D)
    np.testing.assert_allclose(
        ours.hessian_columns(theta, every), head.hessian_columns(theta, every), atol=1e-12
    )


def test_it_is_a_model_with_readable_names():
    model = DiagonalTransformer(D, n_layers=2, n_heads=2)
    assert isinstance(model, Model)
    assert len(model.product_names) == model.n_products == 2 * D * 4
    theta = np.arange(model.n_products, dtype=float)
    by_name = dict(zip(model.product_names, theta, strict=True))
    parts = theta.reshape(2, 2, 2, D)
    assert by_name["layer 1 head 0 W_V W_O[3]"] == parts[1, 1, 0, 3]
    assert by_name["layer 0 head 1 W_K W_Q[2]"] == parts[0, 0, 1, 2]
    objective = model.bind((np.ones((2, T, D)), np.ones((2, T, D))))
    assert isinstance(objective, Objective)
    assert objective.product_names == model.product_names


def test_heads_of_a_layer_are_interchangeable_unless_they_have_bases():
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((2, N, T, D))

    def tie(**options):
        model = DiagonalTransformer(D, n_layers=2, n_heads=2, rng=4, **options)
        field = model.bind((X, y)).field(np.zeros(model.n_products))
        value_part = field.reshape(2, 2, 2, D)[1]
        return np.abs(value_part[:, 0] - value_part[:, 1]).max() / np.abs(value_part).max()

    assert tie() < 1e-12
    assert tie(bases="random") > 0.1


def test_ranks_count_the_entries_of_each_product():
    model = DiagonalTransformer(3, n_layers=1, n_heads=2)
    theta = np.array([1, 0, 2e-9, 0, 0, 0, 5, 5, 5, 0, -1, 0])
    np.testing.assert_array_equal(model.product_ranks(theta), [[[2, 3], [0, 1]]])
    np.testing.assert_array_equal(model.product_ranks(theta, threshold=1e-6), [[[1, 3], [0, 1]]])


def test_random_parts_follow_the_generator():
    one, two, other = (DiagonalTransformer(D, bases="random", rng=r) for r in (5, 5, 6))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.W_A, other.W_A)


def test_given_parts_are_used():
    W_A, W_B = np.random.default_rng(7).standard_normal((2, 2, D, 3))
    model = DiagonalTransformer(D, n_layers=2, feedforward=(W_A, W_B))
    np.testing.assert_array_equal(model.W_A.numpy(), W_A)
    np.testing.assert_array_equal(model.W_B.numpy(), W_B)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"d_model": 0}, "d_model=0: must be a positive integer"),
        ({"n_heads": -1}, "n_heads=-1"),
        ({"output": "mean"}, 'output=\'mean\' is not known: choose "tokens" or "pooled"'),
        ({"feedforward": "none"}, "feedforward='none' is not known"),
        ({"feedforward": np.ones((2, 2, D, 3))}, r"feedforward\[0\] has shape \(2, 4, 3\)"),
        (
            {"feedforward": (np.ones((1, D, 3)), np.ones((1, D, 2)))},
            r"W_A has shape \(1, 4, 3\) and W_B \(1, 4, 2\)",
        ),
        ({"readout": np.ones((2, 2))}, r"readout has shape \(2, 2\)"),
        ({"bases": np.ones((1, 1, D, D))}, "bases are not orthogonal"),
        ({"bases": np.ones((1, 2, D, D))}, r"\(1, 1, 4, 4\) is needed"),
    ],
)
def test_wrong_arguments(options, text):
    with pytest.raises(InvalidInputError, match=text):
        DiagonalTransformer(**{"d_model": D, **options})
