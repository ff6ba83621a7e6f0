"""Heads with full weights: the flow, gradient descent, and steps of rank one."""

import numpy as np
import pytest

from dynalyze import Initialization
from dynalyze.errors import InvalidInputError, SavedFileError
from dynalyze.training import (
    DiagonalHead,
    FullHead,
    FullTrajectory,
    TrainingRun,
    rank_steps,
    simulate_full,
    train,
)

D, M = 3, 2
HEAD = FullHead(D, M)


def random_teacher(n=40, tokens=4):
    """A head with full matrices of full rank."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, tokens, D))
    key_query, value_output = rng.standard_normal((2, D, D)) / np.sqrt(D)
    weights = np.exp(X @ key_query @ X.transpose(0, 2, 1))
    weights /= weights.sum(-1, keepdims=True)
    return X, weights @ X @ value_output


def start(log10_alpha=-8.0):
    return Initialization.gaussian(HEAD.n_weights, log10_alpha=log10_alpha, rng=1)


@pytest.fixture(scope="module")
def trajectory():
    return simulate_full(HEAD, random_teacher(), start(), until=45.0)


def test_the_flow_conserves_the_imbalance_of_each_product():
    """W_KᵀW_K − W_QᵀW_Q is constant along the flow, the matrix form of eq. (5)."""
    early = simulate_full(HEAD, random_teacher(), start(-1.0), until=8.0)
    begin = 0.1 * start(-1.0).u0.reshape(2, D, M), 0.1 * start(-1.0).v0.reshape(2, D, M)
    for which, (a, b) in enumerate(HEAD.matrix_products):
        at_start = begin[0][which].T @ begin[0][which] - begin[1][which].T @ begin[1][which]
        at_end = early.weights[a].T @ early.weights[a] - early.weights[b].T @ early.weights[b]
        assert np.abs(early.weights[a]).max() > 0.5  # it has moved far
        np.testing.assert_allclose(at_end, at_start, atol=1e-7)


def test_singular_values_are_those_of_the_weights(trajectory):
    expected = [
        np.linalg.svd(trajectory.weights[a] @ trajectory.weights[b].T, compute_uv=False)[:M]
        for a, b in HEAD.matrix_products
    ]
    np.testing.assert_allclose(trajectory.theta[-1], np.concatenate(expected), atol=1e-12)


def test_ranks_rise_by_one_at_a_time_on_plateaus_of_the_loss(trajectory):
    steps = rank_steps(trajectory)
    assert len(steps.t) >= 3
    np.testing.assert_array_equal(steps.changes, 1)
    reached = dict.fromkeys(("W_K W_Q", "W_V W_O"), 0)
    for product, rank in zip(steps.products, steps.ranks, strict=True):
        assert rank == reached[product] + 1
        reached[product] = rank
    assert steps.products[0] == "W_V W_O"  # W_K W_Qᵀ has no gradient before it
    middles = (steps.t[:-1] + steps.t[1:]) / 2
    losses = trajectory.loss_at(np.concatenate([[steps.t[0] / 2], middles]))
    assert np.all(np.diff(losses) < 0)


def test_gradient_descent_takes_the_same_steps(trajectory):
    expected = rank_steps(trajectory)

    def delay(lr):
        run = train(HEAD, random_teacher(), init=start(), lr=lr, until=45.0)
        steps = rank_steps(run)
        assert steps.products == expected.products
        np.testing.assert_array_equal(steps.ranks, expected.ranks)
        return steps.t - expected.t

    coarse, fine = delay(0.04), delay(0.02)
    assert np.abs(fine).max() < 0.05 * expected.t[0]
    np.testing.assert_allclose(coarse / fine, 2, rtol=0.15)


def test_it_survives_its_file(trajectory, tmp_path):
    trajectory.save(tmp_path / "flow.npz")
    again = FullTrajectory.load(tmp_path / "flow.npz")
    for name in ("t", "theta", "losses", "t_rescaled"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trajectory, name))
    np.testing.assert_array_equal(again.weights["w_o"], trajectory.weights["w_o"])
    assert again.configuration == trajectory.configuration
    np.testing.assert_array_equal(rank_steps(again).t, rank_steps(trajectory).t)
    with pytest.raises(SavedFileError, match="holds a saved flow of full weights"):
        TrainingRun.load(tmp_path / "flow.npz")


def test_a_plot_shows_singular_values(trajectory):
    import matplotlib as mpl

    mpl.use("Agg")
    loss_ax, value_ax = trajectory.plot()
    np.testing.assert_array_equal(loss_ax.lines[0].get_xdata(), trajectory.t_rescaled)
    assert len(value_ax.lines) == 2 * M
    assert value_ax.get_ylabel() == "singular value"


def test_between_steps_singular_values_are_interpolated(trajectory):
    t = trajectory.t
    np.testing.assert_array_equal(trajectory.theta_at(t), trajectory.theta)
    k = len(t) // 2
    middle = trajectory.theta_at((t[k] + t[k + 1]) / 2)
    np.testing.assert_allclose(middle, np.sqrt(trajectory.theta[k] * trajectory.theta[k + 1]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"head": DiagonalHead(D)}, "head is of type DiagonalHead: for products of diagonal"),
        ({"until": 0.0}, "until=0.0 must be a positive flow time"),
        ({"method": "Euler"}, "method='Euler' is not known: choose 'auto' or one of 'RK23'"),
        ({"init": start(-20.0)}, "log10_alpha=-20 is below -12"),
        ({"init": Initialization([1.0], [0.5], log10_alpha=-2)}, "has 1 entries in u0"),
    ],
)
def test_wrong_arguments(change, text):
    arguments = {"head": HEAD, "data": random_teacher(), "init": start(), "until": 1.0} | change
    with pytest.raises(InvalidInputError, match=text):
        simulate_full(**arguments)


def test_rank_steps_need_singular_values():
    X, y = random_teacher()
    init = Initialization.gaussian(2 * D, log10_alpha=-1, rng=0)
    run = train(DiagonalHead(D), (X, y), init=init, lr=0.01, steps=2)
    with pytest.raises(InvalidInputError, match="run=TrainingRun records no singular values"):
        rank_steps(run)
