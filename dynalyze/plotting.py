"""Plots. Every function returns the Axes that it drew on, and none of them shows a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(figsize=(8.5, 6))
        ax.figure.subplots_adjust(left=0.09, right=0.79, top=0.97, bottom=0.09)
    times = prediction.times
    # Late stages come at many times the first ones' time: a logarithmic axis shows them all.
    logarithmic = times.size > 1 and times[-1] > 20 * times[0]
    end = (times[-1] * (1.6 if logarithmic else 1.12)) if times.size else 1.0
    start = times[0] / 1.6 if logarithmic else 0.0
    edges = np.concatenate([[start], times, [end]])
    products = make_axes_locatable(ax).append_axes("bottom", size="120%", pad=0.12, sharex=ax)
    ax.stairs(prediction.losses, edges, baseline=None, color="black", linewidth=1.5)
    active = np.flatnonzero(np.any(prediction.theta != 0, axis=0))
    order = sorted(active, key=lambda i: int(np.argmax(prediction.theta[:, i] != 0)))
    for rank, i in enumerate(order):
        label = prediction.name(int(i)) if len(order) <= _LABELLED else None
        products.stairs(
            prediction.theta[:, i],
            edges,
            baseline=None,
            color=f"C{rank % 10}",
            linewidth=1.5,
            linestyle=("-", "--", ":")[rank // 10 % 3],
            label=label,
        )
    for panel in (ax, products):
        for t in times:
            panel.axvline(t, color="0.85", linewidth=0.8, zorder=0)
        panel.set_xlim(start, end)
        if logarithmic:
            panel.set_xscale("log")
    ax.tick_params(labelbottom=False)
    ax.set_ylabel("loss")
    products.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    products.set_ylabel("products θ")
    products.set_xlabel("rescaled time  t / log(1/α)")
    if 0 < len(order) <= _LABELLED:
        products.legend(
            loc="upper left",
            bbox_to_anchor=(1.01, 2.0),
            borderaxespad=0,
            frameon=False,
            title="in order of activation",
            alignment="left",
        )
    return ax
