"""Plots of stages. Every function returns the Axes that it drew on; none shows a figure.

The time axis is logarithmic where its end comes at more than 12 times the first activation, as
late stages mostly do, and linear otherwise; ``ax.set_xscale`` changes both panels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynalyze._panels import two_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynalyze.checks.comparison import Comparison
    from dynalyze.flow.trajectory import Trajectory
    from dynalyze.stages.prediction import StagePrediction
    from dynalyze.training.recorded import RecordedRun


def plot_stages(prediction: StagePrediction, ax: Axes | None = None) -> Axes:
    """Loss staircase over rescaled time, and under it the products on each plateau.

    Parameters
    ----------
    prediction : StagePrediction
        What is drawn.
    ax : matplotlib Axes, optional
        Its place is divided between the loss, which it shows, a panel with the products under
        it, and the legend. A new figure by default.

    Returns
    -------
    Axes
        The Axes of the loss; time is logarithmic if late stages come at many times the first's.
    """
    panels = two_panels(ax)
    times = prediction.times
    # Some of the last plateau belongs into the picture: as much of either kind of axis.
    last = float(times[-1]) if times.size else 1.0
    start, end = panels.time_axis(times, 1.6 * last)
    if start == 0:
        _, end = panels.time_axis(times, 1.12 * last)
    edges = np.concatenate([[start], times, [end]])
    panels.top.stairs(prediction.losses, edges, baseline=None, color="black", linewidth=1.5)
    active = np.flatnonzero(np.any(prediction.theta != 0, axis=0))
    order = sorted(active, key=lambda i: int(np.argmax(prediction.theta[:, i] != 0)))
    for rank, i in enumerate(order):
        style = panels.style(rank, len(order), prediction.name(int(i)))
        panels.bottom.stairs(prediction.theta[:, i], edges, baseline=None, **style)
    for panel in (panels.top, panels.bottom):
        for t in times:
            panel.axvline(t, color="0.85", linewidth=0.8, zorder=0)
    panels.name_products("products θ")
    return panels.top


def plot_trajectory(run: Trajectory | RecordedRun, ax: Axes | None = None) -> Axes:
    """Loss and products over rescaled time, as in Figure 2 of arXiv 2306.07042.

    Parameters
    ----------
    run : Trajectory, TrainingRun or FullTrajectory
        What is drawn; of full weights the singular values of the products.
    ax : matplotlib Axes, optional
        Its place is divided between the loss, which it shows, a panel with the products under
        it, and the legend. A new figure by default.

    Returns
    -------
    Axes
        The Axes of the loss; time is logarithmic if the run goes on for many times the first
        activation's.
    """
    panels = two_panels(ax)
    unit, stop = run.init.log_inverse_alpha, float(run.t[-1])
    # Steps are long where little moves; between them the dense output is drawn.
    between = [np.linspace(run.t[0], stop, 400)]
    if run.t.size > 1:
        between.append(np.minimum(np.geomspace(run.t[1], stop, 400), stop))
    t = np.unique(np.concatenate([run.t, *between]))
    theta = run.theta_at(t)
    size = np.max(np.abs(theta), axis=0)
    visible = np.argsort(-size, kind="stable")[: np.count_nonzero(size > 0.01 * np.max(size))]
    # In order of activation, as in `plot_stages`.
    first = [int(np.argmax(np.abs(theta[:, i]) > 0.5 * size[i])) for i in visible]
    order = [int(i) for _, i in sorted(zip(first, visible, strict=True))]
    panels.time_axis(t[first] / unit, stop / unit)
    known = ~np.isnan(run.losses)
    panels.top.plot(run.t_rescaled[known], run.losses[known], color="black", linewidth=1.5)
    for rank, i in enumerate(order):
        style = panels.style(rank, len(order), run.product_names[i])
        panels.bottom.plot(t / unit, theta[:, i], **style)
    quantity = "singular values" if getattr(run, "singular_values", False) else "products θ"
    panels.name_products(quantity)
    return panels.top


def plot_comparison(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Loss of a run over the predicted staircase, and under it the error of each jump time.

    Parameters
    ----------
    comparison : Comparison
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
    order = np.argsort(comparison.best, kind="stable")
    edges = np.concatenate([[start], comparison.best[order] / unit])
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
