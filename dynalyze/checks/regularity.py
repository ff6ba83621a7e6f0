"""Assumption 2.1 and Definition 3.1 of arXiv 2306.07042: bounded and smooth."""

import numpy as np

from dynalyze.checks.report import Verdict
from dynalyze.models.protocol import Objective
from dynalyze.stages.prediction import StagePrediction

_PROBE = 1e-3  # length of the step along which the Hessian is checked, relative
_PROBED_PRODUCTS = 8
_ROUGH = 0.01  # relative mismatch of field and Hessian over that step


def bounded(prediction: StagePrediction) -> Verdict:
    """2.1: finite data give finite losses and fields, which the plateaus show."""
    values = [prediction.losses, prediction.fields, prediction.theta]
    passed = all(bool(np.isfinite(value).all()) for value in values)
    largest = max(float(np.abs(value).max(initial=0.0)) for value in values)
    message = (
        f"loss, field and products are finite on every plateau (largest {largest:.3g})"
        if passed
        else "loss, field or products are not finite on some plateau: check the data and the model"
    )
    return Verdict(None, passed, 1 / largest if largest else np.inf, message)


def smooth(objective: Objective) -> Verdict:
    """Definition 3.1, by what the model consists of, where the objective knows."""
    parts: tuple[str, ...] = getattr(objective, "non_smooth", ())
    if parts:
        return Verdict(
            None,
            False,
            0.0,
            f"{', '.join(parts)}: not twice differentiable; use GELU, SiLU or Softplus",
        )
    return Verdict(None, True, 1.0, "no part of the model is known not to be smooth")


def consistent(
    objective: Objective, prediction: StagePrediction, rng: np.random.Generator
) -> Verdict:
    """Definition 3.1, by numbers: over a short step the field changes as the Hessian says."""
    worst = 0.0
    theta = prediction.theta[-1]
    size = float(np.abs(theta).max(initial=0.0)) or 1.0
    for _ in range(3):
        indices = rng.choice(theta.size, min(theta.size, _PROBED_PRODUCTS), replace=False)
        step = rng.standard_normal(indices.size)
        # Away from the plateau itself, where a kink may be straddled by chance alone.
        middle = theta + 0.1 * size * rng.standard_normal(theta.size)
        there, back = middle.copy(), middle.copy()
        there[indices] += _PROBE * size * step
        back[indices] -= _PROBE * size * step
        measured = (objective.field(back) - objective.field(there)) / (2 * _PROBE * size)
        expected = objective.hessian_columns(middle, indices) @ step
        length = max(float(np.linalg.norm(measured)), float(np.linalg.norm(expected)))
        if length > 0:
            worst = max(worst, float(np.linalg.norm(measured - expected)) / length)
    passed = worst <= _ROUGH
    message = (
        f"over steps of {_PROBE:g} the field changes as the Hessian says, to {worst:.1e}"
        if passed
        else f"over steps of {_PROBE:g} the field changes otherwise than the Hessian says "
        f"({worst:.1e}): the loss has kinks, as with ReLU or |x|, or its Hessian is wrong"
    )
    return Verdict(None, bool(passed), _ROUGH - worst, message, {"mismatch": worst})
