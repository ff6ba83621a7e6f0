"""The stage table: its columns, and as text."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze._core.text import aligned

_MOST_NOTES = 5


class Jumps(NamedTuple):
    """Jump times from a given initialization."""

    log10_alpha: float
    times: FloatArray  # (K,), flow time; NaN where there is none
    notes: tuple[str, ...]  # K sentences, why there is none
    threshold: float | None  # |θ| at which a jump is called, None for 5% of its value


def stage_columns(prediction: Any) -> dict[str, Any]:
    """Columns of the table of a `StagePrediction`, K entries each."""
    names = prediction.product_names
    return {
        "time": prediction.times,
        "coordinate": prediction.coordinates,
        "product": [names[i] for i in prediction.coordinates],
        "sign": prediction.signs,
        "value": prediction.theta[1:][np.arange(prediction.n_stages), prediction.coordinates],
        "loss": prediction.losses[1:],
        "support_size": prediction.support_sizes[1:],
        "departed": [tuple(names[i] for i in products) for products in prediction.departed],
        "runner_up": [names[i] if i >= 0 else None for i in prediction.runner_ups],
        "gap": prediction.gaps,
    }


def stage_table(
    columns: Mapping[str, Sequence[Any]],
    first_loss: float,
    *,
    separated: FloatArray | None,
    jumps: Jumps | None,
    caveats: Sequence[str],
    ending: Sequence[str],
) -> str:
    """Table of the plateaus and of the activations that end them.

    Parameters
    ----------
    columns : mapping
        Those of `StagePrediction.to_dataframe`, of length K.
    first_loss : float
        Loss before the first stage.
    separated : ndarray, shape (K,), optional
        log10 of the α below which each stage is separated.
    jumps : Jumps, optional
        Those from a given initialization.
    caveats : sequence of str
        What is degenerate at each limit point, K sentences.
    ending : sequence of str
        Lines below the table.
    """
    header = ["stage", "T", "product", "value", "loss", "active", "leaves"]
    rows = [["0", "0", "", "", f"{first_loss:.6g}", "0", ""]]
    names = ("time", "sign", "product", "value", "loss", "support_size", "departed")
    for k, (time, sign, product, value, loss, active, departed) in enumerate(
        zip(*(columns[name] for name in names), strict=True), 1
    ):
        row = [f"{k}", f"{time:.6g}", f"{'+' if sign > 0 else '−'} {product}", f"{value:.5g}"]
        rows.append([*row, f"{loss:.6g}", f"{active}", ", ".join(departed)])
    legend = (
        "T is rescaled time, flow time / log(1/α); value and loss are those of the plateau after "
        "the activation."
    )
    notes: list[str] = []
    if separated is not None:
        header.append("separated below α")
        rows[0].append("")
        for row, below in zip(rows[1:], separated, strict=True):
            row.append(_power_of_ten(float(below)))
    if jumps is not None:
        header.append(f"jump at t (α = {_power_of_ten(jumps.log10_alpha)})")
        rows[0].append("")
        for row, jump in zip(rows[1:], jumps.times, strict=True):
            row.append("—" if np.isnan(jump) else f"{jump:.6g}")
        size = "5% of the value that it jumps to"
        size = size if jumps.threshold is None else f"{jumps.threshold:g}"
        legend += f"\nt is the flow time at which |θ| of the product passes {size}."
        notes = [f"no jump at stage {k}: {note}" for k, note in enumerate(jumps.notes, 1) if note]
        if len(notes) > _MOST_NOTES:
            notes[_MOST_NOTES:] = [f"and at {len(notes) - _MOST_NOTES} more stages"]
    degenerate = [f"stage {k}: {text}" for k, text in enumerate(caveats, 1) if text]
    table = aligned(header, rows, left={2, 6})
    return "\n".join([legend, "", *table, "", *degenerate, *notes, *ending])


def _power_of_ten(exponent: float) -> str:
    if np.isnan(exponent):
        return "—"
    if np.isneginf(exponent):
        return "none"
    return f"1e{exponent:.0f}" if abs(exponent) >= 2 else f"{10**exponent:.2g}"
