"""Whether a prediction and a run can be compared: refused with what differs and the remedy."""

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.checks.matching import MeasuredRun
from dynalyze.errors import InvalidInputError
from dynalyze.stages.prediction import StagePrediction

# Difference of initial log coordinates that may be rounding, of single precision too; over |g| it
# is that of jump times.
_SAME_START = 1e-3
_SAME_LOSS = 1e-6  # relative difference at θ = 0 that another device or order of sums may make
_SAME_RECORD = 1e-3  # and of the loss that a training run of lower precision recorded


def check_comparable(prediction: StagePrediction, run: MeasuredRun) -> None:
    """Refuse a run of another model, scale, initialization, loss or data set.

    Raises
    ------
    InvalidInputError
        With what differs, and the remedy.
    """
    if not isinstance(prediction, StagePrediction):
        raise InvalidInputError(
            f"prediction is a {type(prediction).__name__}: give a StagePrediction first, then the "
            "trajectory or training run"
        )
    if getattr(run, "singular_values", False):
        raise InvalidInputError(
            "the training run records singular values of full weights, and the prediction is for "
            "products of diagonal weights: train with diagonal weights to compare"
        )
    p, q = prediction.theta.shape[1], run.theta.shape[1]
    if p != q:
        raise InvalidInputError(
            f"the prediction has {p} products and the trajectory {q}: compare a prediction with a "
            "run of the same model"
        )
    if prediction.at_alpha is not None:
        made_for, alpha = prediction.at_alpha.log10_alpha, run.init.log10_alpha
        if not np.isclose(made_for, alpha, rtol=1e-9, atol=0):
            raise InvalidInputError(
                f"the prediction was made for α = 1e{made_for:g} and the trajectory has α = "
                f"1e{alpha:g}: give predict_stages the trajectory's own init, or no init to "
                "compare with the leading order alone"
            )
        _check_same_start(prediction, run)
    mine = prediction.configuration.get("loss")
    theirs = getattr(run, "configuration", {}).get("loss", mine)
    if mine is not None and mine != theirs:
        raise InvalidInputError(
            f"the prediction was made with loss={mine!r} and the trajectory with loss={theirs!r}, "
            "in other units of time: use the same loss for both"
        )
    _check_same_data(prediction, run)


def _check_same_data(prediction: StagePrediction, run: MeasuredRun) -> None:
    """Refuse a run on other data: by loss and field at θ = 0, or by the losses that it recorded."""
    field: FloatArray | None = getattr(run, "origin_field", None)
    if field is not None:
        mine = np.append(prediction.losses[0], prediction.fields[0])
        theirs = np.append(getattr(run, "origin_loss", np.nan), field)
        rounding = np.append(0.0, prediction.zero_fields)
        same = np.abs(mine - theirs) <= _SAME_LOSS * np.abs(mine) + rounding
        where, i = "at θ = 0", int(np.argmin(same))
        what = "the loss" if i == 0 else f"the field of {prediction.product_names[i - 1]}"
    else:
        start = run.theta[0]
        expected = prediction.losses[0] - prediction.fields[0] @ start
        if prediction.objective is not None:
            expected = prediction.objective.value(start)
        mine, theirs = np.array([expected]), np.array([run.losses[0]])
        same = np.abs(mine - theirs) <= _SAME_RECORD * np.abs(mine)
        where, what, i = "at the start", "the loss", 0
    if not same.all():
        raise InvalidInputError(
            f"the run is on other data than the prediction: {what} {where} is {theirs[i]:.8g}, and "
            f"the prediction has {mine[i]:.8g}; give both the same model, data, loss and "
            "sample_weight"
        )


def _check_same_start(prediction: StagePrediction, run: MeasuredRun) -> None:
    """Refuse a prediction for other initial weights, by what the flow of products sees of them."""
    assert prediction.at_alpha is not None
    mine, theirs = prediction.at_alpha.init, run.init
    apart = np.maximum(np.abs(mine.z0 - theirs.z0), np.abs(mine.log_abs_c - theirs.log_abs_c) / 2)
    if not (apart > _SAME_START).any():
        return
    i = int(np.argmax(apart))
    raise InvalidInputError(
        f"the prediction was made for other initial weights than the trajectory has, of "
        f"{prediction.product_names[i]} (u0, v0) = ({mine.u0[i]:.6g}, {mine.v0[i]:.6g}) where the "
        f"trajectory has ({theirs.u0[i]:.6g}, {theirs.v0[i]:.6g}): give predict_stages the "
        "trajectory's own init, or no init to compare with the leading order alone"
    )
