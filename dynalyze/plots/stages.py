"""The staircase of predicted stages.

The time axis is logarithmic where its end comes at more than 12 times the first activation, as
late stages mostly do, and linear otherwise; ``ax.set_xscale`` changes both panels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.plots.panels import two_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Plateaus(Protocol):
    """Plateaus of the loss, and the products on each."""

    @property
    def times(self) -> FloatArray:
        """Rescaled time at which each ends, (K,)."""

    @property
    def losses(self) -> FloatArray:
        """Loss on each and after the last, (K + 1,)."""

    @property
    def theta(self) -> FloatArray:
        """Products on each and after the last, (K + 1, p)."""

    @property
    def product_names(self) -> tuple[str, ...]:
        """Readable name of each product, p of them."""


def plot_stages(prediction: Plateaus, ax: Axes | None = None) -> Axes:
    """Loss staircase over rescaled time, and under it the products on each plateau.

    Parameters
    ----------
    prediction : StagePrediction, or what has its plateaus
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
        style = panels.style(rank, len(order), prediction.product_names[i])
        panels.bottom.stairs(prediction.theta[:, i], edges, baseline=None, **style)
    for panel in (panels.top, panels.bottom):
        for t in times:
            panel.axvline(t, color="0.85", linewidth=0.8, zorder=0)
    panels.name_products("products θ")
    return panels.top
