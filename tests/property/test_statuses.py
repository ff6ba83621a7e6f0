"""One vocabulary says how every result ended, and `success` whether it is complete."""

import numpy as np
import pytest
from objectives import Quadratic

import dynalyze
from dynalyze import Initialization, SavedFileError, Status, predict_stages, simulate, symbolic
from dynalyze.flow.trajectory import Trajectory
from dynalyze.models import DiagonalLinear
from dynalyze.stages.prediction import StagePrediction

X, Y = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([3.0, 1.0])
INIT = Initialization.gaussian(2, log10_alpha=-8, rng=0)


def test_only_a_result_that_lacks_nothing_is_a_success():
    complete = {status for status in Status if status.success}
    assert complete == {Status.FINISHED, Status.STATIONARY, Status.CONVERGED}


def test_results_of_every_kind_speak_of_a_spent_budget_alike():
    ended = [
        predict_stages(DiagonalLinear(2), (X, Y), max_stages=1),
        symbolic.stages(symbolic.diagonal_linear([[2, 1], [1, 2]], [3, 1]), max_stages=1),
    ]
    assert [result.status for result in ended] == [Status.MAX_STAGES] * 2
    assert not any(result.success for result in ended)
    ended = [
        predict_stages(DiagonalLinear(2), (X, Y), max_seconds=1e-9),
        simulate(DiagonalLinear(2), (X, Y), INIT, max_seconds=1e-9),
    ]
    assert [result.status for result in ended] == [Status.MAX_SECONDS] * 2


def test_results_of_every_kind_speak_of_a_callback_alike():
    ended = [
        predict_stages(DiagonalLinear(2), (X, Y), callback=lambda state: True),
        simulate(DiagonalLinear(2), (X, Y), INIT, callback=lambda state: True),
    ]
    assert [result.status for result in ended] == [Status.CALLBACK] * 2


def test_results_that_lack_nothing_are_successes():
    assert predict_stages(DiagonalLinear(2), (X, Y)).success
    assert simulate(DiagonalLinear(2), (X, Y), INIT).success
    assert symbolic.stages(symbolic.diagonal_linear([[2, 1], [1, 2]], [3, 1])).success


@pytest.mark.parametrize("kind", [StagePrediction, Trajectory])
def test_a_status_is_a_status_again_when_loaded(kind, tmp_path):
    objective = Quadratic([1.0, -0.5])
    result = (
        predict_stages(objective) if kind is StagePrediction else simulate(objective, init=INIT)
    )
    result.save(tmp_path / "saved.npz")
    loaded = kind.load(tmp_path / "saved.npz")
    assert isinstance(loaded.status, dynalyze.Status)
    assert loaded.status is result.status


@pytest.mark.parametrize("kind", [StagePrediction, Trajectory])
def test_a_file_with_a_status_of_another_vocabulary_is_refused(kind, tmp_path):
    objective = Quadratic([1.0, -0.5])
    result = (
        predict_stages(objective) if kind is StagePrediction else simulate(objective, init=INIT)
    )
    object.__setattr__(result, "status", "no limit point")
    result.save(tmp_path / "saved.npz")
    with pytest.raises(SavedFileError, match="no limit point"):
        kind.load(tmp_path / "saved.npz")
