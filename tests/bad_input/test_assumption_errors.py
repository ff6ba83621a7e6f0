"""Arguments of `check_assumptions` that cannot be used."""

import dataclasses
import pickle

import numpy as np
import pytest
from objectives import Quadratic

from dynalyze import StagePrediction, check_assumptions, predict_stages
from dynalyze.errors import InvalidInputError
from dynalyze.models import DiagonalLinear


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": -1}, "trials"),
        ({"max_steps": 0}, "max_steps"),
        ({"epsilon": 2.0}, "epsilon=2.0 must lie between 0 and 1"),
        ({"required_radius": 3.0}, "required_radius=3.0 and largest_radius=2.0"),
        ({"init": ([1.0], [0.5])}, r"shapes \(1,\) and \(1,\) for 2 products"),
    ],
)
def test_options(options, message):
    objective = Quadratic([2.0, -1.0])
    with pytest.raises(InvalidInputError, match=message):
        check_assumptions(predict_stages(objective), **options)


def test_prediction_of_another_problem():
    with pytest.raises(InvalidInputError, match="prediction is a Quadratic: give what predict_st"):
        check_assumptions(Quadratic([2.0, -1.0]))
    prediction = predict_stages(Quadratic([2.0]))
    with pytest.raises(InvalidInputError, match="has 1 products and the model 2"):
        check_assumptions(prediction, model=Quadratic([2.0, -1.0]))
    with pytest.raises(InvalidInputError, match="field at θ = 0 is not the prediction's"):
        check_assumptions(prediction, model=Quadratic([1.0]))
    with pytest.raises(InvalidInputError, match="was given without model=: give the model too"):
        check_assumptions(prediction, data=(np.ones((3, 1)), np.ones(3)))


def test_a_loaded_prediction_needs_its_model_and_data_again(tmp_path):
    X = np.random.default_rng(0).standard_normal((20, 2))
    data = (X, X @ np.array([1.0, -0.3]))
    prediction = predict_stages(DiagonalLinear(2), data, tie_rtol=1e-6)
    prediction.save(tmp_path / "prediction.npz")
    loaded = StagePrediction.load(tmp_path / "prediction.npz")
    assert loaded.tie_rtol == 1e-6
    np.testing.assert_array_equal(loaded.zero_fields, prediction.zero_fields)
    with pytest.raises(InvalidInputError, match=r"loaded from a file, .* model=\.\.\., data="):
        check_assumptions(loaded)
    again = check_assumptions(loaded, model=DiagonalLinear(2), data=data, trials=2)
    assert again.summary() == check_assumptions(prediction, trials=2).summary()


def test_a_prediction_keeps_its_loss_in_memory_but_not_in_pickles_or_its_text():
    objective = Quadratic([2.0, -1.0])
    prediction = predict_stages(objective)
    assert prediction.objective is objective
    assert "Quadratic" not in repr(prediction)
    assert pickle.loads(pickle.dumps(prediction)).objective is None
    assert dataclasses.replace(prediction, message="").objective is objective
