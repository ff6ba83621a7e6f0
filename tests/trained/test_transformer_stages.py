"""A two-layer, two-head diagonal transformer on digits: stages, flow and gradient descent."""

import numpy as np
import pytest
from claims import every

from dynalyze import Initialization, compare, predict_stages, simulate
from dynalyze.models import DiagonalTransformer
from dynalyze.training import train

pytestmark = pytest.mark.filterwarnings("ignore::dynalyze.errors.StagesOverlapWarning")

N_STAGES = 10


@pytest.fixture(scope="module")
def digits():
    """16 digits as 16 patches of 2 × 2 pixels; every patch is to predict the next."""
    images = pytest.importorskip("sklearn.datasets").load_digits().images[:16]
    patches = images.reshape(16, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(16, 16, 4)
    X = (patches - patches.mean()) / (2 * patches.std())
    return X, np.roll(X, -1, axis=1)


@pytest.fixture(scope="module")
def model():
    return DiagonalTransformer(4, n_layers=2, n_heads=2, d_mlp=4, bases="random", rng=0)


def start(model, log10_alpha):
    return Initialization.gaussian(model.n_products, log10_alpha=log10_alpha, rng=0)


@pytest.fixture(scope="module")
def prediction(model, digits):
    return predict_stages(model, digits, init=start(model, -20.0), max_stages=N_STAGES)


def test_every_stage_raises_the_rank_of_one_product_by_one(model, prediction):
    assert prediction.n_stages == N_STAGES
    ranks = np.array([model.product_ranks(theta) for theta in prediction.theta])
    assert ranks[0].sum() == 0
    rises = np.maximum(np.diff(ranks, axis=0), 0).reshape(N_STAGES, -1)
    np.testing.assert_array_equal(rises.sum(axis=1), np.ones(N_STAGES))
    np.testing.assert_array_equal(prediction.support_sizes, ranks.sum(axis=(1, 2, 3)))
    assert ranks[-1].min(axis=(0, 1)).sum() == 0  # some products are still untouched
    assert every(np.diff(prediction.losses) < 0)


def test_the_flow_goes_through_the_predicted_stages(model, digits, prediction):
    end = float(np.nanmax(prediction.jump_times())) + 5
    trajectory = simulate(model, digits, start(model, -20.0), until=end)
    comparison = compare(prediction, trajectory)
    # Few of them are separated at this α, and all of them are met.
    assert comparison.relative_errors.max() < 1e-2
    assert every(np.diff(comparison.measured) > 0)  # all ten, in the predicted order
    assert comparison.inversions == ()


@pytest.mark.slow
@pytest.mark.parametrize(("log10_alpha", "rescaled_end"), [(-4.0, 13.0), (-8.0, 12.8)])
def test_gradient_descent_learns_in_the_predicted_order(
    model, digits, prediction, log10_alpha, rescaled_end
):
    init = start(model, log10_alpha)
    until = rescaled_end * init.log_inverse_alpha
    run = train(model, digits, init=init, lr=0.03, until=until)
    assert run.status == "finished"
    assert run.loss_rises == 0
    leading = predict_stages(model, digits, max_stages=N_STAGES)
    comparison = compare(leading, run)
    assert np.count_nonzero(~np.isnan(comparison.measured)) >= N_STAGES - 1
    assert [i for i in comparison.inversions if not i.explained] == []
    flow = simulate(model, digits, init, until=until)
    (t_run, *which), (t_flow, *expected) = run.crossings(0.05), flow.crossings(0.05)
    np.testing.assert_array_equal(which, expected)
    np.testing.assert_allclose(t_run, t_flow, rtol=0.03)
