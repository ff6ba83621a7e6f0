"""What an interpreter shows of a result: one line, not its arrays."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dynalyze import Initialization, compare, predict_stages, spectra  # noqa: E402
from dynalyze.models import AttentionHead  # noqa: E402
from dynalyze.ranks import simulate as simulate_full  # noqa: E402
from dynalyze.training import DiagonalHead, FullHead, train  # noqa: E402


@pytest.fixture(scope="module")
def data():
    X = np.random.default_rng(2).standard_normal((30, 4, 3))
    return X, AttentionHead(3).predict([1.0, -0.8, 0.0, 0.9, 0.0, -1.1], X)


def test_runs_and_their_comparison_in_one_line(data):
    init = Initialization.gaussian(6, log10_alpha=-4, rng=1)
    run = train(DiagonalHead(3), data, init=init, lr=0.01, steps=100)
    start = f"<TrainingRun: 100 steps of gd at lr=0.01 to loss {run.losses[-1]:.6g}, finished>"
    assert repr(run) == start
    prediction = predict_stages(AttentionHead(3), data, max_stages=1)
    assert repr(compare(prediction, run)) == "<Comparison: 0 of 1 stages matched>"
    head = FullHead(3, 2)
    init = Initialization.gaussian(head.n_weights, log10_alpha=-6, rng=1)
    flow = simulate_full(head, data, init, until=0.5)
    steps = f"<FullTrajectory: {len(flow.t) - 1} steps to flow time 0.5 and loss "
    assert repr(flow).startswith(steps)
    assert "\n" not in repr(flow)


def test_spectra_in_one_line_and_their_table_when_printed():
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(8, 2)
    with spectra.track(layer, every=1) as tracker:
        for _ in range(3):
            with torch.no_grad():
                layer.in_proj_weight += 0.1
            tracker.step()
    history = tracker.history
    assert repr(history) == "<SpectraHistory: 4 records to step 3, 2 heads of 1 layers>"
    assert str(history) == history.summary()
    found = spectra.detect_stages(history)
    assert repr(found) == f"<DetectedStages: {len(found)} components in 4 records>"
    assert str(found) == found.summary()
