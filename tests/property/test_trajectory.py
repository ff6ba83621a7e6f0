import inspect

import matplotlib as mpl
import numpy as np
import pytest
from claims import every
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objectives import Quadratic, Transformed, small_head

from dynalyze import Initialization, Trajectory, simulate
from dynalyze.flow.steppers.methods import METHODS
from dynalyze.models.counted import CountedObjective

mpl.use("Agg")


def random_quadratic(seed):
    """A positive definite quadratic, whose products interact, and an initialization."""
    rng = np.random.default_rng(seed)
    p = int(rng.integers(1, 7))
    factor = rng.standard_normal((p + 2, p))
    init = Initialization.gaussian(p, log10_alpha=rng.uniform(-60, -1), rng=rng)
    return Quadratic(rng.standard_normal(p), factor.T @ factor / (p + 2)), init


_problems = st.builds(random_quadratic, st.integers(0, 10**6))
_few = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@_few
@given(problem=_problems, method=st.sampled_from(METHODS))
def test_loss_never_rises_and_steps_agree_with_the_dense_output(problem, method):
    objective, init = problem
    trajectory = simulate(objective, init=init, until_rescaled=4.0, method=method)
    assert trajectory.status == "finished"
    losses = trajectory.losses
    assert every(np.diff(losses) <= 1e-5 * losses[0])
    np.testing.assert_array_equal(trajectory.z_at(trajectory.t), trajectory.z)
    np.testing.assert_array_equal(trajectory.theta_at(trajectory.t), trajectory.theta)
    np.testing.assert_array_equal(trajectory.loss_at(trajectory.t), losses)
    between = np.linspace(0, trajectory.t[-1], 400)
    assert every(np.diff(trajectory.loss_at(between)) <= 1e-5 * losses[0])
    assert every(np.diff(trajectory.t) > 0)
    assert trajectory.t[-1] == pytest.approx(4.0 * init.log_inverse_alpha, rel=1e-15)


@_few
@given(problem=_problems, seed=st.integers(0, 1000), method=st.sampled_from(METHODS))
def test_permutations_and_sign_flips_of_products_change_nothing_else(problem, seed, method):
    objective, init = problem
    p = objective.n_products
    rng = np.random.default_rng(seed)
    order, signs = rng.permutation(p), rng.choice([-1.0, 1.0], p)
    there = Initialization(init.u0[order], signs * init.v0[order], log10_alpha=init.log10_alpha)
    until = 3.0 * init.log_inverse_alpha
    here = simulate(objective, init=init, until=until, method=method, tol=1e-8)
    flipped = simulate(
        Transformed(objective, order, signs), init=there, until=until, method=method, tol=1e-8
    )
    t = np.linspace(0, until, 50)
    np.testing.assert_allclose(
        flipped.z_at(t), signs * here.z_at(t)[:, order], atol=1e-3 + 1e-6 * until
    )
    # Flipping both weights of a product is the same flow with the same products.
    both = Initialization(-init.u0, -init.v0, log10_alpha=init.log10_alpha)
    same = simulate(objective, init=both, until=until, method=method, tol=1e-8)
    np.testing.assert_array_equal(same.z, here.z)
    np.testing.assert_array_equal(same.weights_at(t), np.negative(here.weights_at(t)))


@_few
@given(problem=_problems, factor=st.floats(0.01, 100))
def test_a_factor_of_the_loss_is_a_factor_of_time(problem, factor):
    objective, init = problem
    scaled = Quadratic(objective.a, objective.hessian, factor=factor)
    until = 3.0 * init.log_inverse_alpha
    one = simulate(objective, init=init, until=until, tol=1e-8)
    other = simulate(scaled, init=init, until=until / factor, tol=1e-8)
    t = np.linspace(0, until * (1 - 1e-12), 60)
    np.testing.assert_allclose(other.z_at(t / factor), one.z_at(t), atol=1e-3 + 1e-6 * until)


@_few
@given(problem=_problems, fraction=st.floats(0.05, 0.95), method=st.sampled_from(METHODS))
def test_restart_equals_the_unbroken_run(tmp_path_factory, problem, fraction, method):
    objective, init = problem
    until = 4.0 * init.log_inverse_alpha
    whole = simulate(objective, init=init, until=until, method=method, tol=1e-8)
    part = simulate(objective, init=init, until=fraction * until, method=method, tol=1e-8)
    path = tmp_path_factory.mktemp("restart") / "part.npz"
    part.save(path)
    joined = simulate(objective, start=Trajectory.load(path), until=until, method=method, tol=1e-8)
    assert joined.t[0] == 0
    assert joined.t[-1] == whole.t[-1]
    assert joined.n_steps > part.n_steps
    np.testing.assert_array_equal(joined.z[: len(part.z)], part.z)
    assert joined.stats.nfev > part.stats.nfev
    t = np.linspace(0, until, 100)
    np.testing.assert_allclose(joined.z_at(t), whole.z_at(t), atol=1e-3 + 1e-6 * until)
    np.testing.assert_array_equal(joined.losses[: len(part.t)], part.losses)


@pytest.mark.parametrize("steps", [1, 40])
def test_save_and_load_are_exact(tmp_path, steps):
    objective = small_head()
    init = Initialization.gaussian(objective.n_products, log10_alpha=-1000, rng=0)
    trajectory = simulate(objective, init=init, max_steps=steps)
    path = tmp_path / "trajectory"
    trajectory.save(path)
    loaded = Trajectory.load(path, objective=objective)
    t = np.linspace(0, trajectory.t[-1], 77)
    for before, after in [
        (trajectory.t, loaded.t),
        (trajectory.t_rescaled, loaded.t_rescaled),
        (trajectory.z, loaded.z),
        (trajectory.theta, loaded.theta),
        (trajectory.losses, loaded.losses),
        (trajectory.z_at(t), loaded.z_at(t)),
        (trajectory.loss_at(t), loaded.loss_at(t)),
        (trajectory.weights_at(t), loaded.weights_at(t)),
        *zip(trajectory.crossings(1e-3), loaded.crossings(1e-3), strict=True),
    ]:
        np.testing.assert_array_equal(after, before)
    for name in ("n_steps", "stats", "status", "message", "product_names", "configuration"):
        assert getattr(loaded, name) == getattr(trajectory, name)
    # What was loaded can be saved again, byte for byte the same numbers.
    loaded.save(path)
    np.testing.assert_array_equal(Trajectory.load(path).z_at(t), trajectory.z_at(t))


def test_work_is_counted():
    objective = CountedObjective(small_head())
    init = Initialization.gaussian(objective.n_products, log10_alpha=-8, rng=0)
    trajectory = simulate(objective, init=init, until_rescaled=3)
    assert trajectory.stats.nfev == objective.nfev
    assert trajectory.stats.nhev == objective.nhev
    assert trajectory.stats.nhcol == objective.nhcol
    # A work budget, generous: about a dozen stages.
    assert 0 < trajectory.stats.nfev < 400
    assert trajectory.stats.nhev < 40


def test_loss_and_products_are_drawn_on_the_axes_given():
    from matplotlib import pyplot as plt

    objective = small_head()
    init = Initialization.gaussian(objective.n_products, log10_alpha=-8, rng=0)
    trajectory = simulate(objective, init=init, until_rescaled=3)
    figure, axes = plt.subplots(1, 2)
    ax = trajectory.plot(axes[1])
    assert ax is axes[1]
    x, y = ax.lines[0].get_data()
    np.testing.assert_array_equal(x, trajectory.t_rescaled)
    np.testing.assert_array_equal(y, trajectory.losses)
    (products,) = set(figure.axes) - set(axes)
    ends = {line.get_label(): line.get_ydata()[-1] for line in products.lines if len(line._x) > 2}
    assert len(ends) >= 4
    for name, end in ends.items():
        assert end == trajectory.theta[-1, trajectory.product_names.index(name)]
    plt.close(figure)


def test_options_are_keyword_only():
    parameters = inspect.signature(simulate).parameters.values()
    assert [p.name for p in parameters if p.kind != p.KEYWORD_ONLY] == ["model", "data", "init"]
