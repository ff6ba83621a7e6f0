"""Heads with full weights: the flow, gradient descent, and steps of rank one."""

import numpy as np
import pytest
from claims import every

from dynalyze import Initialization
from dynalyze.errors import InvalidInputError, SavedFileError
from dynalyze.ranks import FullTrajectory, predict_rank_steps, rank_steps
from dynalyze.ranks import simulate as simulate_full
from dynalyze.training import DiagonalHead, FullHead, TrainingRun, train, train_many
from dynalyze.training.graded import grade

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
    np.testing.assert_allclose(trajectory.values[-1], np.concatenate(expected), atol=1e-12)


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
    assert every(np.diff(losses) < 0)


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
    for name in ("t", "values", "losses", "t_rescaled"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trajectory, name))
    np.testing.assert_array_equal(again.weights["w_o"], trajectory.weights["w_o"])
    assert again.configuration == trajectory.configuration
    np.testing.assert_array_equal(rank_steps(again).t, rank_steps(trajectory).t)
    with pytest.raises(SavedFileError, match="holds a saved flow of full weights"):
        TrainingRun.load(tmp_path / "flow.npz")


def test_a_plot_shows_singular_values(trajectory):
    import matplotlib as mpl

    mpl.use("Agg")
    loss_ax = trajectory.plot()
    value_ax = loss_ax.figure.axes[1]
    np.testing.assert_array_equal(loss_ax.lines[0].get_xdata(), trajectory.t_rescaled)
    assert len(value_ax.lines) == 2 * M + 1  # and the line at 0
    assert value_ax.get_ylabel() == "singular values"


def test_between_steps_singular_values_are_interpolated(trajectory):
    t = trajectory.t
    np.testing.assert_array_equal(trajectory.values_at(t), trajectory.values)
    k = len(t) // 2
    middle = trajectory.values_at((t[k] + t[k + 1]) / 2)
    np.testing.assert_allclose(middle, np.sqrt(trajectory.values[k] * trajectory.values[k + 1]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"head": DiagonalHead(D)}, "head is of type DiagonalHead: for products of diagonal"),
        ({"until": 0.0}, "until=0.0 must be a positive flow time"),
        ({"method": "Euler"}, "method='Euler' is not known: choose 'auto' or one of 'RK23'"),
        ({"init": start(-160.0)}, "log10_alpha=-160 is below -150"),
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


@pytest.fixture(scope="module")
def prediction():
    return predict_rank_steps(HEAD, random_teacher())


def test_rank_steps_are_predicted_from_the_data(prediction):
    """Order, times to leading order, and the losses of separated plateaus, against the flow."""
    init = start(-12.0)
    flow = simulate_full(HEAD, random_teacher(), init, until=2.2 * init.log_inverse_alpha)
    steps = rank_steps(flow)
    assert prediction.products == steps.products
    np.testing.assert_array_equal(prediction.ranks, steps.ranks)
    np.testing.assert_allclose(prediction.times, steps.t / init.log_inverse_alpha, rtol=0.06)
    assert prediction.losses[0] == pytest.approx(flow.losses[0], rel=1e-6)
    before_second = flow.loss_at(0.97 * steps.t[1])
    assert prediction.losses[1] == pytest.approx(float(before_second), rel=1e-3)
    assert prediction.losses[-1] == pytest.approx(flow.losses[-1], rel=1e-4)


def test_smaller_scales_come_closer_to_the_predicted_times(prediction):
    def error(log10_alpha):
        init = start(log10_alpha)
        flow = simulate_full(HEAD, random_teacher(), init, until=1.05 * init.log_inverse_alpha)
        times = rank_steps(flow).t[:2] / init.log_inverse_alpha
        return np.abs(times / prediction.times[:2] - 1).max()

    assert error(-12.0) < 0.7 * error(-6.0)


def test_predicted_plateaus_are_stationary_with_one_rank_more_each(prediction):
    from dynalyze.models import TorchModel

    def of_matrices(x, theta):
        import torch

        key_query, value_output = theta.view(2, D, D)
        return torch.softmax(x @ key_query @ x.mT, -1) @ x @ value_output

    objective = TorchModel.from_function(of_matrices, 2 * D * D).bind(random_teacher())
    first = np.abs(objective.field(np.zeros(2 * D * D))).max()
    for k, matrices in enumerate(prediction.matrices):
        assert sum(np.linalg.matrix_rank(M, tol=1e-6) for M in matrices) == k
        gradients = objective.field(matrices.ravel()).reshape(2, D, D)
        for G, M in zip(gradients, matrices, strict=True):
            assert np.abs(G @ M.T).max() < 1e-7 * first
            assert np.abs(G.T @ M).max() < 1e-7 * first
    assert every(np.diff(prediction.losses) < 0)
    assert prediction.status == "full_rank"
    assert "W_V W_O to rank 1" in prediction.summary()


def test_a_linear_head_learns_the_singular_values_of_its_correlation():
    """One token: attention is trivial, and each step ends at a singular value, at T = 1/σ."""
    rng = np.random.default_rng(3)
    X = np.linalg.qr(rng.standard_normal((30, D)))[0][:, None, :] * np.sqrt(30)
    M_true = rng.standard_normal((D, D))
    prediction = predict_rank_steps(FullHead(D), (X, X @ M_true))
    values = np.linalg.svd(M_true, compute_uv=False)
    assert prediction.products == ("W_V W_O",) * D
    np.testing.assert_allclose(prediction.times, 1 / values, rtol=1e-6)
    tail = [0.5 * (values[k:] ** 2).sum() for k in range(D + 1)]
    np.testing.assert_allclose(prediction.losses, tail, atol=1e-9 * tail[0])
    assert prediction.status == "converged"


def test_a_prediction_can_be_cut_short():
    prediction = predict_rank_steps(HEAD, random_teacher(), max_steps=1)
    assert (len(prediction.times), prediction.status) == (1, "max_steps")
    with pytest.raises(InvalidInputError, match="head is of type DiagonalHead"):
        predict_rank_steps(DiagonalHead(D), random_teacher())


def test_times_at_the_smallest_scales_are_the_predicted_ones(prediction):
    """Where the start is far below the rounding of what is learned: errors go as 1/log(1/α)."""

    def errors(log10_alpha):
        init = start(log10_alpha)
        flow = simulate_full(HEAD, random_teacher(), init, until=1.6 * init.log_inverse_alpha)
        steps = rank_steps(flow)
        assert steps.products == prediction.products
        return steps.t / init.log_inverse_alpha / prediction.times - 1

    np.testing.assert_allclose(errors(-20.0) / errors(-40.0), 2, rtol=0.15)


def test_descent_at_the_smallest_scales_follows_the_flow():
    init = start(-40.0)
    until = 1.25 * init.log_inverse_alpha
    flow = simulate_full(HEAD, random_teacher(), init, until=until)
    expected = rank_steps(flow)
    assert len(expected.t) == 3

    def run_with(lr):
        run = train(HEAD, random_teacher(), init=init, lr=lr, until=until)
        assert rank_steps(run).products == expected.products
        return run

    coarse, fine = run_with(0.08), run_with(0.04)
    late = [rank_steps(run).t - expected.t for run in (coarse, fine)]
    np.testing.assert_allclose(late[0] / late[1], 2, rtol=0.1)
    for name, weight in flow.weights.items():  # in their own columns, not in the rotated ones
        np.testing.assert_allclose(fine.weights[name], weight, atol=0.02)


def test_runs_at_the_smallest_scales_are_batched_and_resumed(tmp_path):
    inits = [start(-40.0), Initialization.gaussian(HEAD.n_weights, log10_alpha=-20, rng=2)]
    arguments = {"lr": 0.1, "checkpoint_every": 111}
    many = train_many(HEAD, random_teacher(), inits, steps=600, **arguments)
    for run, init in zip(many, inits, strict=True):
        alone = train(HEAD, random_teacher(), init=init, steps=600, **arguments)
        np.testing.assert_allclose(run.values[-1], alone.values[-1], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(run.weights["w_v"], alone.weights["w_v"], atol=1e-6)
    train(HEAD, random_teacher(), init=inits[0], steps=333, checkpoint=tmp_path, **arguments)
    again = train(
        HEAD, random_teacher(), init=inits[0], steps=600, checkpoint=tmp_path, **arguments
    )
    whole = train(HEAD, random_teacher(), init=inits[0], steps=600, **arguments)
    np.testing.assert_array_equal(again.weights["w_o"], whole.weights["w_o"])


def test_graded_columns_keep_every_digit():
    """Singular values over 70 decades, with columns nearly parallel, against 90 digits."""
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(5)
    scales = 10.0 ** np.array([-20.0, 0.0, -70.0, -9.0])
    stacked = (rng.standard_normal((8, 1)) + 1e-3 * rng.standard_normal((8, 4))) * scales
    graded, rotation = grade(stacked)

    def singular_values(matrix):
        with mpmath.workdps(180):
            values = mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False)
            return sorted(float(value) for value in values)

    np.testing.assert_allclose(singular_values(graded), singular_values(stacked), rtol=1e-11)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(4), atol=1e-14)
    np.testing.assert_allclose(stacked @ rotation, graded, atol=1e-14)
    assert every(np.diff(np.linalg.norm(graded, axis=0)) < 0)


def test_full_weights_have_singular_values_and_no_theta(trajectory):
    run = train(HEAD, random_teacher(), init=start(), lr=0.04, steps=20)
    for one in (run, trajectory):
        np.testing.assert_array_equal(one.values_at(one.t), one.values)
        assert not hasattr(one, "theta")
        with pytest.raises(AttributeError, match=r"theta is of products .*: use values$"):
            one.theta  # noqa: B018
        with pytest.raises(AttributeError, match=r"theta_at is of products .*: use values_at$"):
            one.theta_at(0.0)
