"""Plots. Every function returns the Axes that it drew on, and none of them shows a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynalyze.checks.comparison import Comparison
    from dynalyze.flow.trajectory import Trajectory
    from dynalyze.stages.prediction import StagePrediction

_LABELLED = 20  # products that get a label of their own


def plot_stages(prediction: StagePrediction, ax: Axes | None = None) -> Axes:
    """Loss staircase over rescaled time, and under it the products on each plateau.

    Parameters
    ----------
    prediction : StagePrediction
        What is drawn.
    ax : matplotlib Axes, optional
        Where the loss goes; the products get a panel of the same width under it. A new figure
        by default.

    Returns
    -------
    Axes
        The Axes of the loss.
    """
    ax, products = _panels(ax)
    times = prediction.times
    # Late stages come at many times the first ones' time: a logarithmic axis shows them all.
    logarithmic = times.size > 1 and times[-1] > 8 * times[0]
    end = (times[-1] * (1.6 if logarithmic else 1.12)) if times.size else 1.0
    start = times[0] / 1.6 if logarithmic else 0.0
    edges = np.concatenate([[start], times, [end]])
    ax.stairs(prediction.losses, edges, baseline=None, color="black", linewidth=1.5)
    active = np.flatnonzero(np.any(prediction.theta != 0, axis=0))
    order = sorted(active, key=lambda i: int(np.argmax(prediction.theta[:, i] != 0)))
    for rank, i in enumerate(order):
        style = _style(rank, len(order), prediction.name(int(i)))
        products.stairs(prediction.theta[:, i], edges, baseline=None, **style)
    for panel in (ax, products):
        for t in times:
            panel.axvline(t, color="0.85", linewidth=0.8, zorder=0)
        panel.set_xlim(start, end)
        if logarithmic:
            panel.set_xscale("log")
    _finish(ax, products, len(order))
    return ax


def plot_trajectory(trajectory: Trajectory, ax: Axes | None = None) -> Axes:
    """Loss and products over rescaled time, as in Figure 2 of arXiv 2306.07042.

    Parameters
    ----------
    trajectory : Trajectory
        What is drawn.
    ax : matplotlib Axes, optional
        Where the loss goes; the products get a panel of the same width under it. A new figure
        by default.

    Returns
    -------
    Axes
        The Axes of the loss.
    """
    ax, products = _panels(ax)
    unit = trajectory.init.log_inverse_alpha
    ax.plot(trajectory.t_rescaled, trajectory.losses, color="black", linewidth=1.5)
    # Steps are long where little moves; between them the dense output is drawn.
    t = np.union1d(trajectory.t, np.linspace(trajectory.t[0], trajectory.t[-1], 400))
    theta = trajectory.theta_at(t)
    size = np.max(np.abs(theta), axis=0)
    visible = np.argsort(-size, kind="stable")[: np.count_nonzero(size > 0.01 * np.max(size))]
    # In order of activation, as in `plot_stages`.
    first = [int(np.argmax(np.abs(theta[:, i]) > 0.5 * size[i])) for i in visible]
    order = [int(i) for _, i in sorted(zip(first, visible, strict=True))]
    for rank, i in enumerate(order):
        style = _style(rank, len(order), trajectory.product_names[i])
        products.plot(t / unit, theta[:, i], **style)
    _finish(ax, products, len(order))
    return ax


def plot_comparison(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Loss of a run over the predicted staircase, and under it the error of each jump time.

    Parameters
    ----------
    comparison : Comparison
        What is drawn.
    ax : matplotlib Axes, optional
        Where the loss goes; the errors get a panel of the same width under it. A new figure by
        default.

    Returns
    -------
    Axes
        The Axes of the loss.
    """
    ax, errors = _panels(ax)
    run, prediction = comparison.run, comparison.prediction
    unit = run.init.log_inverse_alpha
    start, end = run.t[0] / unit, run.t[-1] / unit
    ax.plot(run.t / unit, run.losses, color="C0", linewidth=1.5, label="measured")
    # The stages in the order that is predicted at this α, as far as the run goes.
    order = np.argsort(comparison.best, kind="stable")
    edges = np.concatenate([[start], comparison.best[order] / unit])
    levels = np.concatenate([prediction.losses[:1], prediction.losses[1:][order]])
    ax.step(
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
                label=label if filled else None,
            )
    if not comparison.separated.all():
        errors.plot(
            [], [], linestyle="", marker="o", color="0.3", fillstyle="none", label="overlap"
        )
    errors.set_yscale("log")
    errors.set_ylabel("relative error of the jump time")
    errors.set_xlabel("rescaled time  t / log(1/α)")
    visible = at[~np.isnan(at)]
    if visible.size > 1 and visible.max() > 20 * visible.min() > 0:
        ax.set_xscale("log")
        ax.set_xlim(visible.min() / 1.6, end)
    else:
        ax.set_xlim(start, end)
    ax.tick_params(labelbottom=False)
    ax.set_ylabel("loss")
    for panel in (ax, errors):
        panel.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False)
    return ax


def _panels(ax: Axes | None) -> tuple[Axes, Axes]:
    """Axes of the loss, and of the products under it."""
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(figsize=(8.5, 6))
        ax.figure.subplots_adjust(left=0.09, right=0.79, top=0.94, bottom=0.09)
    return ax, make_axes_locatable(ax).append_axes("bottom", size="120%", pad=0.12, sharex=ax)


def _style(rank: int, n_lines: int, label: str) -> dict[str, Any]:
    """Look of the product that is activated as number `rank`."""
    return {
        "color": f"C{rank % 10}",
        "linewidth": 1.5,
        "linestyle": ("-", "--", ":")[rank // 10 % 3],
        "label": label if n_lines <= _LABELLED else None,
    }


def _finish(ax: Axes, products: Axes, n_lines: int) -> None:
    """Label both panels."""
    ax.tick_params(labelbottom=False)
    ax.set_ylabel("loss")
    products.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    products.set_ylabel("products θ")
    products.set_xlabel("rescaled time  t / log(1/α)")
    if 0 < n_lines <= _LABELLED:
        ax.legend(
            *products.get_legend_handles_labels(),
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0,
            frameon=False,
            title="in order of activation",
            alignment="left",
        )
