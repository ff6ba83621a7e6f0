"""Results without a file format of their own are dictionaries that JSON holds."""

import json

import numpy as np
import pytest
from objectives import Exponential, Quadratic

from dynalyze import Initialization, check_assumptions, compare, predict_stages, simulate

INIT = Initialization([1.0, 0.8, 1.2], [0.5, -0.3, 0.1], log10_alpha=-1000)


def through_json(result):
    return json.loads(json.dumps(result.to_dict(), allow_nan=False))


def test_an_initialization_is_made_again_from_its_dictionary():
    init = Initialization.gaussian(7, log10_alpha=-123.4, rng=0)
    again = Initialization(**through_json(init))
    np.testing.assert_array_equal(again.u0, init.u0)
    np.testing.assert_array_equal(again.v0, init.v0)
    assert again.log10_alpha == init.log10_alpha


def test_a_comparison_keeps_every_number_of_its_table():
    prediction = predict_stages(Quadratic([2.0, -1.0, 0.5]), init=INIT)
    run = simulate(Quadratic([2.0, -1.0, 0.5]), init=INIT, until_rescaled=1.5)
    comparison = compare(prediction, run)
    found = through_json(comparison)
    assert found["outcomes"] == ["matched", "matched", "after the end"]
    assert found["products"] == ["w[0]", "w[1]", "w[2]"]
    assert found["measured"][2] is None
    np.testing.assert_array_equal(found["measured"][:2], comparison.measured[:2])
    np.testing.assert_array_equal(found["predicted"], comparison.predicted)
    assert found["clock"] == "flow times"
    assert found["inversions"] == []
    assert "prediction" not in found


def test_a_report_keeps_every_verdict():
    report = check_assumptions(predict_stages(Quadratic([2.0, -1.0])), trials=2)
    found = through_json(report)
    assert found["passed"] is True
    assert found["n_stages_tested"] == 2
    assert found["nondegenerate"][0]["message"] == report.nondegenerate[0].message
    assert found["nondegenerate"][1]["margin"] is None  # infinite: no runner-up
    assert found["strict_minimum"][0]["values"]["c"] == report.strict_minimum[0].margin
    assert len(found["noise_robust"]) == 2
    failed = through_json(check_assumptions(predict_stages(Exponential(1)), trials=0))
    assert failed["passed"] is False
    assert failed["finite_limit"]["passed"] is False


def test_ranks_and_detected_stages_are_dictionaries():
    torch = pytest.importorskip("torch")
    from dynalyze import spectra
    from dynalyze.ranks import RankPrediction, RankSteps

    steps = RankSteps(
        t=np.array([1.5, np.inf]),
        products=("W_V W_O", "W_K W_Q"),
        ranks=np.array([1, 1]),
        changes=np.array([1, 1]),
    )
    assert through_json(steps)["t"] == [1.5, None]
    prediction = RankPrediction(
        times=np.array([0.3]),
        products=("W_V W_O",),
        ranks=np.array([1]),
        gaps=np.array([np.inf]),
        losses=np.array([1.0, 0.5]),
        matrices=np.zeros((2, 2, 2, 2)),
        status="max_steps",
        message="",
    )
    found = through_json(prediction)
    assert found["matrices"] == np.zeros((2, 2, 2, 2)).tolist()
    assert (found["times"], found["gaps"]) == ([0.3], [None])

    torch.manual_seed(0)
    model = torch.nn.ModuleList([torch.nn.MultiheadAttention(16, 2)])
    tracker = spectra.track(model, every=1)
    for _ in range(5):
        with torch.no_grad():
            model[0].in_proj_weight[:8] += torch.randn(1, 16)
        tracker.step()
    stages = spectra.detect_stages(tracker.history)
    assert len(stages) > 0
    found = through_json(stages)
    assert found["steps"] == stages.steps.tolist()
    assert np.shape(found["ranks"]) == stages.ranks.shape
