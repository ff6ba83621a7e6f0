"""Predicted stages against a run.

The time axis is logarithmic where its end comes at more than 12 times the first activation, as
late stages mostly do, and linear otherwise; ``ax.set_xscale`` changes both panels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray
from dynalyze.plots.panels import two_panels
from dynalyze.plots.stages import Plateaus
from dynalyze.plots.trajectory import LossCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Matched(Protocol):
    """Jumps that were predicted, and those of a run; K of them."""

    @property
    def prediction(self) -> Plateaus:
        """What was predicted."""

    @property
    def run(self) -> LossCurve:
        """What happened."""

    @property
    def expected(self) -> FloatArray:
        """Flow times predicted, at this α where they are known, else to leading order; (K,)."""

    @property
    def measured(self) -> FloatArray:
        """Flow times of the run's jumps, (K,); NaN where there is none."""

    @property
    def relative_errors(self) -> FloatArray:
        """Errors of the jump times at this α, (K,)."""

    @property
    def relative_leading_errors(self) -> FloatArray:
        """Errors of the leading order, (K,)."""

    @property
    def separated(self) -> BoolArray:
        """Mask of the stages that do not overlap, (K,)."""


def plot_comparison(comparison: Matched, ax: Axes | None = None) -> Axes:
    """Loss of a run over the predicted staircase, and under it the error of each jump time.

    Parameters
    ----------
    comparison : Comparison, or what has its times
        What is drawn.
    ax : matplotlib Axes, optional
        Its place is divided between the loss, which it shows, a panel with the errors under it,
        and the legends. A new figure by default.

    Returns
    -------
    Axes
        The Axes of the loss; time is logarithmic if the run goes on for many times the first
        jump's.
    """
    panels = two_panels(ax)
    errors = panels.bottom
    run, prediction = comparison.run, comparison.prediction
    unit = run.init.log_inverse_alpha
    start, end = run.t[0] / unit, run.t[-1] / unit
    known = ~np.isnan(run.losses)
    panels.top.plot(
        run.t[known] / unit, run.losses[known], color="C0", linewidth=1.5, label="measured"
    )
    # The stages in the order that is predicted at this α, as far as the run goes.
    order = np.argsort(comparison.expected, kind="stable")
    edges = np.concatenate([[start], comparison.expected[order] / unit])
    levels = np.concatenate([prediction.losses[:1], prediction.losses[1:][order]])
    panels.top.step(
        np.append(edges, max(end, edges[-1])),
        np.append(levels, levels[-1]),
        where="post",
        color="black",
        linewidth=1.0,
        linestyle="--",
        label="predicted",
    )
    at = comparison.measured / unit
    series = (
        (comparison.relative_leading_errors, "0.55", "s", "leading order"),
        (comparison.relative_errors, "C3", "o", "at this α"),
    )
    for values, color, marker, label in series:
        if np.isnan(values).all():
            continue
        for mask, filled in ((comparison.separated, True), (~comparison.separated, False)):
            errors.plot(
                at[mask],
                values[mask],
                linestyle="",
                marker=marker,
                color=color,
                fillstyle="full" if filled else "none",
                clip_on=not mask.any(),  # without points the artist has no place
                label=label if filled else None,
            )
    if not comparison.separated.all():
        errors.plot([], [], "o", color="0.3", fillstyle="none", label="overlap (open)")
    errors.set_yscale("log")
    errors.set_ylabel("relative error of jump time")
    panels.time_axis(at[~np.isnan(at)], end)
    panels.top.set_ylabel("loss")
    panels.legend(panels.top, panels.bottom)
    return panels.top
