"""Training runs against hand-written loops and against the gradient flow."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from claims import every

from dynalyze import Initialization, SavedFileError, Status, simulate
from dynalyze.models import AttentionHead, DiagonalTransformer, TorchModel
from dynalyze.training import DiagonalHead, FullHead, Recording, TrainingRun, train, train_many

D = 3
TEACHER = np.array([1.0, -0.8, 0.0, 0.9, 0.0, -1.1])


def toy(n=24, tokens=4):
    X = np.random.default_rng(0).standard_normal((n, tokens, D))
    return X, AttentionHead(D).predict(TEACHER, X)


def start(log10_alpha=-2.0, seed=1, n=2 * D):
    return Initialization.gaussian(n, log10_alpha=log10_alpha, rng=seed)


def plain_descent(objective, init, lr, steps):
    """eq. (4), discretized by hand; products before every step, and after the last."""
    alpha = 10.0**init.log10_alpha
    u, v = alpha * init.u0, alpha * init.v0
    products = [u * v]
    for _ in range(steps):
        g = objective.field(u * v)
        u, v = u + lr * v * g, v + lr * u * g
        products.append(u * v)
    return np.array(products), u, v


@pytest.mark.parametrize("loss", ["squared", "mse"])
def test_gradient_descent_equals_a_plain_loop(loss):
    data, init, lr = toy(), start(), 0.02
    run = train(
        DiagonalHead(D), data, init=init, lr=lr, steps=400, loss=loss, recording=Recording(every=1)
    )
    objective = AttentionHead(D).bind(data, loss=loss)
    products, u, v = plain_descent(objective, init, lr, 400)
    np.testing.assert_array_equal(run.steps, np.arange(401))
    np.testing.assert_allclose(run.theta, products, atol=1e-11)
    np.testing.assert_allclose(run.losses, [objective.value(row) for row in products], atol=1e-12)
    np.testing.assert_allclose(run.weights["w_k"], u[:D], atol=1e-11)
    np.testing.assert_allclose(run.weights["w_o"], v[D:], atol=1e-11)
    assert run.status == "finished"
    assert run.product_names == AttentionHead(D).product_names


def test_an_attention_head_and_a_torch_model_train_alike():
    data, init = toy(), start()
    options = {"init": init, "lr": 0.02, "steps": 50}
    head = DiagonalHead(D)
    expected = train(head, data, **options).theta[-1]
    model = TorchModel(head, head.products)
    for other in (AttentionHead(D), model):
        np.testing.assert_array_equal(train(other, data, **options).theta[-1], expected)


def test_by_default_training_starts_at_the_models_own_weights():
    data = toy()
    head = DiagonalHead(D, rng=2)
    with torch.no_grad():
        for weight in head.parameters():
            weight.mul_(0.1)
    run = train(head, data, lr=0.01, steps=1, recording=Recording(every=1))
    own = torch.cat([head.w_k * head.w_q, head.w_v * head.w_o]).detach().numpy()
    np.testing.assert_allclose(run.theta[0], own, rtol=1e-14)
    assert head.w_k.grad is None


def test_small_learning_rates_follow_the_flow_to_first_order():
    data, init = toy(), start(-4.0)
    flow = simulate(AttentionHead(D), data, init, until=25.0)
    when = np.linspace(1.0, 25.0, 60)
    crossing = flow.crossings(0.1)

    def errors(lr):
        run = train(DiagonalHead(D), data, init=init, lr=lr, until=25.0)
        ours = run.crossings(0.1)
        np.testing.assert_array_equal(ours[1], crossing[1])
        np.testing.assert_array_equal(ours[2], crossing[2])
        late = ours[0] - crossing[0]
        return np.abs(late).max(), np.abs(run.theta_at(when) - flow.theta_at(when)).max()

    (time_coarse, theta_coarse), (time_fine, theta_fine) = errors(0.02), errors(0.01)
    assert time_coarse / time_fine == pytest.approx(2, abs=0.25)
    assert theta_coarse / theta_fine == pytest.approx(2, abs=0.4)
    assert time_fine < 0.05 * crossing[0][0]


def torch_loop(data, init, optimizer, batches):
    """SGD or Adam by autograd and torch.optim, without anything of ours."""
    X, y = (torch.from_numpy(a) for a in data)
    alpha = 10.0**init.log10_alpha
    weights = [
        torch.from_numpy(alpha * part).requires_grad_()
        for part in (init.u0[:D], init.v0[:D], init.u0[D:], init.v0[D:])
    ]
    made = optimizer(weights)
    for batch in batches:
        k, q, v, o = weights
        x = X[batch]
        out = torch.softmax(x @ torch.diag(k) @ torch.diag(q) @ x.mT, -1) @ x @ torch.diag(v * o)
        loss = 0.5 * ((out - y[batch]) ** 2).sum() / len(batch)
        made.zero_grad()
        loss.backward()
        made.step()
    k, q, v, o = (w.detach().numpy() for w in weights)
    return np.concatenate([k * q, v * o])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_stochastic_optimizers_equal_a_plain_torch_loop(name):
    data, init = toy(), start(-1.0)
    rng = np.random.default_rng(5)
    batches = []
    for _ in range(6):
        order = rng.permutation(24)
        batches += [order[i : i + 10] for i in (0, 10, 20)]
    options = {"momentum": 0.9} if name == "sgd" else {"betas": (0.8, 0.95)}
    kind = torch.optim.SGD if name == "sgd" else torch.optim.Adam
    expected = torch_loop(data, init, lambda w: kind(w, lr=0.01, **options), batches)
    run = train(
        DiagonalHead(D),
        data,
        init=init,
        lr=0.01,
        steps=18,
        optimizer=name,
        optimizer_options=options,
        batch_size=10,
        rng=5,
    )
    np.testing.assert_allclose(run.theta[-1], expected, rtol=1e-10)
    assert run.losses[-1] == pytest.approx(AttentionHead(D).bind(data).value(run.theta[-1]))


@pytest.mark.parametrize("optimizer", ["gd", "sgd"])
@pytest.mark.parametrize("full", [False, True])
def test_many_runs_at_once_equal_a_loop(optimizer, full):
    data = toy()
    model = FullHead(D, 2) if full else DiagonalHead(D)
    n = model.n_weights if full else 2 * D
    inits = [start(-1.0 - 0.5 * i, seed=i, n=n) for i in range(4)]
    options = {"lr": 0.02, "steps": 150, "optimizer": optimizer}
    if optimizer == "sgd":
        options["batch_size"] = 7
    many = train_many(model, data, inits, rngs=range(4), **options)
    for seed, (init, run) in enumerate(zip(inits, many, strict=True)):
        alone = train(model, data, init=init, rng=seed, **options)
        np.testing.assert_array_equal(run.steps, alone.steps)
        np.testing.assert_allclose(run.values, alone.values, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(run.losses, alone.losses, rtol=1e-10)
        for name, value in alone.weights.items():
            np.testing.assert_allclose(run.weights[name], value, rtol=1e-9, atol=1e-12)


def test_records_are_dense_at_jumps_and_sparse_on_plateaus():
    data, init = toy(), start(-4.0)
    options = {"init": init, "lr": 0.02, "until": 30.0}
    sparse = train(DiagonalHead(D), data, recording=Recording(change=0.05, every=500), **options)
    dense = train(DiagonalHead(D), data, recording=Recording(every=1), **options)
    fastest = np.abs(np.diff(dense.theta, axis=0)).max()
    assert len(sparse.t) < len(dense.t) / 10
    assert np.abs(np.diff(sparse.theta, axis=0)).max() < 0.05 + fastest
    assert np.diff(sparse.steps).max() <= 500
    for threshold in (1e-5, 0.1, 0.5):
        ours, exact = sparse.crossings(threshold), dense.crossings(threshold)
        np.testing.assert_array_equal(ours[1], exact[1])
        np.testing.assert_allclose(ours[0], exact[0], rtol=5e-3)
    np.testing.assert_allclose(sparse.theta_at(dense.t), dense.theta, atol=0.02)
    np.testing.assert_allclose(sparse.loss_at(dense.t), dense.losses, atol=0.05 * dense.losses[0])


def test_transformers_train_as_their_objective_says():
    rng = np.random.default_rng(3)
    model = DiagonalTransformer(D, n_layers=2, n_heads=2, bases="random", rng=4)
    X, y = rng.standard_normal((2, 10, 4, D))
    init = start(-1.0, n=model.n_products)
    run = train(model, (X, y), init=init, lr=0.01, steps=40)
    products, _, _ = plain_descent(model.bind((X, y)), init, 0.01, 40)
    np.testing.assert_allclose(run.theta[-1], products[-1], atol=1e-12)
    assert run.product_names == model.product_names


def test_full_heads_record_singular_values():
    data = toy()
    head = FullHead(D, 2)
    init = start(-0.5, n=head.n_weights)
    run = train(head, data, init=init, lr=0.01, steps=30)
    w = run.weights
    expected = [np.linalg.svd(w[a] @ w[b].T, compute_uv=False)[:2] for a, b in head.matrix_products]
    np.testing.assert_allclose(run.values[-1], np.concatenate(expected), atol=1e-13)
    assert run.singular_values
    assert run.product_names[2] == "W_V W_O σ[0]"


def test_a_run_survives_its_file(tmp_path):
    run = train(DiagonalHead(D), toy(), init=start(), lr=0.02, steps=100)
    run.save(tmp_path / "run.npz")
    again = TrainingRun.load(tmp_path / "run.npz")
    for name in ("steps", "theta", "losses", "t", "t_rescaled"):
        np.testing.assert_array_equal(getattr(again, name), getattr(run, name))
    for name, value in run.weights.items():
        np.testing.assert_array_equal(again.weights[name], value)
    assert again.product_names == run.product_names
    assert again.configuration == run.configuration
    assert again.message == run.message == "all 100 steps made"


def test_the_status_of_a_run_is_a_status_again_when_loaded_and_no_other_word(tmp_path):
    run = train(DiagonalHead(D), toy(), init=start(), lr=0.02, steps=3)
    run.save(tmp_path / "run.npz")
    assert TrainingRun.load(tmp_path / "run.npz").status is run.status is Status.FINISHED
    replace(run, status="ended").save(tmp_path / "run.npz")
    with pytest.raises(SavedFileError, match="ended"):
        TrainingRun.load(tmp_path / "run.npz")


def test_crossings_lie_on_the_lines_between_the_records():
    for head, n in ((DiagonalHead(D), 2 * D), (FullHead(D, 2), 4 * D)):
        run = train(head, toy(), init=start(n=n), lr=0.02, until=20.0)
        times, which, directions = run.crossings(0.05)
        assert len(times) > 1
        sizes = np.abs(run.values_at(times))[np.arange(len(times)), which]
        np.testing.assert_allclose(sizes, 0.05, rtol=1e-9)
        after = np.abs(run.values_at(times + 1e-6))[np.arange(len(times)), which]
        np.testing.assert_array_equal(np.sign(after - 0.05), directions)


def test_reading_between_the_records():
    run = train(DiagonalHead(D), toy(), init=start(), lr=0.02, until=10.0)
    assert run.t[-1] == pytest.approx(10.0)
    np.testing.assert_array_equal(run.theta_at(run.t), run.theta)
    assert run.theta_at(3.3).shape == (2 * D,)
    assert run.theta_at([[1.0, 2.0]]).shape == (1, 2, 2 * D)
    assert run.loss_at(3.3).shape == ()
    between = run.theta_at(0.5 * (run.t[3] + run.t[4]))
    low, high = np.minimum(run.theta[3], run.theta[4]), np.maximum(run.theta[3], run.theta[4])
    assert every((between >= low) & (between <= high))
    np.testing.assert_allclose(run.t_rescaled, run.t / (2 * np.log(10)))


def test_a_plot_shows_loss_and_products():
    import matplotlib as mpl

    mpl.use("Agg")
    run = train(DiagonalHead(D), toy(), init=start(), lr=0.02, steps=100)
    loss_ax = run.plot()
    theta_ax = loss_ax.figure.axes[1]
    np.testing.assert_array_equal(loss_ax.lines[0].get_ydata(), run.losses)
    size = np.abs(run.theta).max(axis=0)
    # Products that can be seen, and the line at 0.
    assert len(theta_ax.lines) == np.count_nonzero(size > 0.01 * size.max()) + 1
    assert "rescaled" in theta_ax.get_xlabel()
