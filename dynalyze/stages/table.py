"""The stage table as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dynalyze.stages.prediction import StagePrediction

_MOST_NOTES = 5


def summary(prediction: StagePrediction, threshold: float | None = None) -> str:
    """Table of the plateaus and of the activations that end them, with the status below."""
    header = ["stage", "T", "product", "value", "loss", "active", "leaves"]
    rows = [["0", "0", "", "", f"{prediction.losses[0]:.6g}", "0", ""]]
    for k in range(prediction.n_stages):
        i = int(prediction.coordinates[k])
        rows.append(
            [
                str(k + 1),
                f"{prediction.times[k]:.6g}",
                f"{'+' if prediction.signs[k] > 0 else '−'} {prediction.name(i)}",
                f"{prediction.theta[k + 1, i]:.5g}",
                f"{prediction.losses[k + 1]:.6g}",
                str(prediction.support_sizes[k + 1]),
                ", ".join(prediction.name(j) for j in prediction.left[k]),
            ]
        )
    if prediction.follows_transitions and not np.isnan(prediction.durations).all():
        separated = prediction.log10_alpha_separated
        header.append("separated below α")
        rows[0].append("")
        for row, below in zip(rows[1:], separated, strict=True):
            row.append(_power_of_ten(float(below)))
    if prediction.finite is not None:
        exponent = prediction.finite.log10_alpha
        header.append(f"jump at t (α = {_power_of_ten(exponent)})")
        rows[0].append("")
        for row, jump in zip(rows[1:], prediction.jump_times(threshold), strict=True):
            row.append("—" if np.isnan(jump) else f"{jump:.6g}")
    stats = prediction.stats
    legend = (
        "T is rescaled time, flow time / log(1/α); value and loss are those of the plateau after "
        "the activation."
    )
    notes = []
    if prediction.finite is not None:
        size = "5% of the value that it jumps to" if threshold is None else f"{threshold:g}"
        legend += f"\nt is the flow time at which |θ| of the product passes {size}."
        notes = [
            f"no jump at stage {k + 1}: {note}"
            for k, note in enumerate(prediction.jump_notes(threshold))
            if note
        ]
        if len(notes) > _MOST_NOTES:
            notes[_MOST_NOTES:] = [f"and at {len(notes) - _MOST_NOTES} more stages"]
    return "\n".join(
        [
            legend,
            "",
            *aligned(header, rows, left={2, 6}),
            "",
            *(f"stage {k}: {text}" for k, text in enumerate(prediction.caveats, 1) if text),
            *notes,
            f"status: {prediction.status} ({prediction.message})",
            f"work: {stats.nfev} gradients, {stats.nhcol} Hessian columns in {stats.nhev} calls, "
            f"{stats.seconds:.2f} s",
        ]
    )


def _power_of_ten(exponent: float) -> str:
    if np.isnan(exponent):
        return "—"
    if np.isneginf(exponent):
        return "none"
    return f"1e{exponent:.0f}" if abs(exponent) >= 2 else f"{10**exponent:.2g}"


def aligned(header: list[str], rows: list[list[str]], left: set[int]) -> list[str]:
    """Lines of a table with aligned columns; those in `left` are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines
