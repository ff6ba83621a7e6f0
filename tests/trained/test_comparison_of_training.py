"""PyTorch gradient descent held against the prediction from the data."""

import numpy as np
import pytest

from dynalyze import Initialization, compare, predict_stages
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
