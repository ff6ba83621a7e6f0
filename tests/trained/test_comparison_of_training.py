"""PyTorch gradient descent held against the prediction from the data."""

import numpy as np
import pytest

from dynalyze import Initialization, compare, predict_stages, simulate
from dynalyze.models import AttentionHead
from dynalyze.training import DiagonalHead, Recording, train


@pytest.mark.filterwarnings("ignore::dynalyze.errors.StagesOverlapWarning")
def test_trained_head_jumps_when_predicted():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((24, 4, 3))
    y = AttentionHead(3).predict(np.array([1.0, -0.8, 0.0, 0.9, 0.0, -1.1]), X)
    init = Initialization.gaussian(6, log10_alpha=-6, rng=1)
    prediction = predict_stages(AttentionHead(3, threads=1), (X, y), init=init)
    last = float(prediction.jump_times()[:3].max()) + 3
    run = train(
        DiagonalHead(3),
        (X, y),
        init=init,
        lr=0.01,
        steps=int(last / 0.01),
        recording=Recording(every=5),
    )
    comparison = compare(prediction, run)
    assert not np.isnan(comparison.measured[:3]).any()
    # One step of the optimizer is 0.01, and its discretization advances growth by (lr g)/2.
    assert comparison.relative_errors[:3].max() < 0.02
    assert comparison.relative_errors[:3].max() < comparison.relative_leading_errors[:3].max()


CLOCKS = {
    "momentum": (
        {"optimizer_options": {"momentum": 0.9}, "lr": 1e-4},
        "flow times, lr/(1 − β) × steps with momentum β = 0.9",
    ),
    "damped": (
        {"optimizer_options": {"momentum": 0.9, "dampening": 0.9}, "lr": 1e-3},
        "flow times, lr × steps",
    ),
    "Adam": ({"optimizer": "adam", "lr": 0.01}, "lr × steps, which with Adam is no flow time"),
    "decay": (
        {"optimizer_options": {"weight_decay": 0.01}, "lr": 0.01},
        "lr × steps, which with weight decay is no flow time",
    ),
}


@pytest.mark.parametrize("kind", CLOCKS)
@pytest.mark.filterwarnings("ignore::dynalyze.errors.StagesOverlapWarning")
def test_the_clock_of_the_optimizer_is_named(kind):
    options, named = CLOCKS[kind]
    X = np.random.default_rng(0).standard_normal((16, 3, 2))
    y = AttentionHead(2).predict(np.array([1.0, -0.8, 1.5, -1.1]), X)
    init = Initialization.gaussian(4, log10_alpha=-6, rng=1)
    prediction = predict_stages(AttentionHead(2, threads=1), (X, y), init=init, max_stages=2)
    until = float(prediction.jump_times()[0]) + 2
    run = train(DiagonalHead(2), (X, y), init=init, until=until, **options)
    np.testing.assert_allclose(run.t[-1], until, rtol=0.01)
    comparison = compare(prediction, run)
    assert named in str(comparison)
    assert named in comparison.clock
    if kind in ("momentum", "damped"):
        flow = simulate(AttentionHead(2, threads=1), (X, y), init, until=until)
        exact = compare(prediction, flow).measured[0]
        # Momentum lags by a share of lr g / (1 − β)², here 3%; the clock is off by a factor of 10.
        assert comparison.measured[0] == pytest.approx(exact, rel=0.03)
    else:
        assert not comparison.clock.startswith("flow")
