"""Arguments of `check_assumptions` that cannot be used."""

import pytest
from objectives import Quadratic

from dynalyze import check_assumptions, predict_stages
from dynalyze.errors import InvalidInputError


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
        check_assumptions(objective, None, predict_stages(objective), **options)


def test_prediction_of_another_problem():
    with pytest.raises(InvalidInputError, match="prediction=None: give what predict_stages"):
        check_assumptions(Quadratic([2.0, -1.0]))
    with pytest.raises(InvalidInputError, match="has 1 products and the model 2"):
        check_assumptions(Quadratic([2.0, -1.0]), None, predict_stages(Quadratic([2.0])))
    with pytest.raises(InvalidInputError, match="field at θ = 0 is not the prediction's"):
        check_assumptions(Quadratic([2.0]), None, predict_stages(Quadratic([1.0])))
