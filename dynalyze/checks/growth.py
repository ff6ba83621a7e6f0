"""Whether anything grows from θ = 0 on the theory's clock, log(1/α)."""

import numpy as np

from dynalyze.checks.report import Verdict
from dynalyze.models.protocol import Objective
from dynalyze.stages.prediction import StagePrediction

_FALLS = 1e-9  # change of the loss, relative, that is no rounding
_DISTANCES = 10.0 ** np.arange(-20, 21, 2)  # of the points at which the loss is looked at
_DIRECTIONS = 8
_MOST_PRODUCTS = 50  # products along which it is looked at


def grows(objective: Objective, prediction: StagePrediction, rng: np.random.Generator) -> Verdict:
    """Verdict on a field at θ = 0: |θ_i| ~ α² e^{2|g_i| t} needs one that is not 0.

    Where every field vanishes there, as with products that enter squared, the loss may still fall
    further out. Growth then starts after a power of 1/α, and no stage is predicted.

    Parameters
    ----------
    objective : Objective
        The loss.
    prediction : StagePrediction
        Its stages.
    rng : numpy.random.Generator
        Of the directions in which the loss is looked at.
    """
    sizes = np.abs(prediction.fields[0])
    first = int(np.argmax(sizes))
    if (sizes > prediction.zero_fields).any():
        return Verdict(
            None,
            True,
            float(sizes[first]),
            f"at θ = 0 products grow at rates up to |g| = {sizes[first]:.3g}, that of "
            f"{prediction.product_names[first]}",
        )
    head = (
        f"every field counts as 0 at θ = 0 (largest |g| {sizes[first]:.1e}), so that no stage was "
        "predicted and nothing was tested"
    )
    start = float(prediction.losses[0])
    lowest = _lowest(objective, prediction.theta.shape[1], rng)
    if lowest < start - _FALLS * abs(start):
        tail = (
            f"; yet the loss falls from {start:.3g} to {lowest:.3g} and less further out: the "
            "model does learn, but growth is slower than the theory's clock and starts after a "
            "power of 1/α instead of log(1/α). Do products enter squared, or multiplied by others?"
        )
    else:
        tail = (
            ", and the loss does not fall further out either: are all targets zero, or "
            "uncorrelated with the inputs?"
        )
    return Verdict(None, False, 0.0, head + tail, {"lowest_loss": lowest})


def _lowest(objective: Objective, p: int, rng: np.random.Generator) -> float:
    """Lowest loss in random directions and along some products, at all distances."""
    axes = np.eye(p)[:_MOST_PRODUCTS]
    directions = np.concatenate([rng.standard_normal((_DIRECTIONS, p)), axes, -axes])
    with np.errstate(all="ignore"):
        values = [objective.value(size * d) for d in directions for size in _DISTANCES]
    return float(np.nanmin(values))
