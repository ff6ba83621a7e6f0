"""Loss and products along a run.

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


class Start(Protocol):
    """The initial weights of a run."""

    @property
    def log_inverse_alpha(self) -> float:
        """log(1/α)."""


class LossCurve(Protocol):
    """The loss of a run over flow time."""

    @property
    def t(self) -> FloatArray:
        """Flow times, (n,)."""

    @property
    def losses(self) -> FloatArray:
        """Loss at them, (n,); NaN where it is not known."""

    @property
    def init(self) -> Start:
        """Initial weights."""


class Curves(LossCurve, Protocol):
    """Loss and products of a run over flow time."""

    @property
    def t_rescaled(self) -> FloatArray:
        """Rescaled times, (n,)."""

    @property
    def product_names(self) -> tuple[str, ...]:
        """Length p."""

    def theta_at(self, t: FloatArray) -> FloatArray:
        """Products at flow times, (len(t), p)."""


def plot_trajectory(run: Curves, ax: Axes | None = None) -> Axes:
    """Loss and products over rescaled time, as in Figure 2 of arXiv 2306.07042.

    Parameters
    ----------
    run : Trajectory, TrainingRun or FullTrajectory, or what has their curves
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
    # Full weights have no products θ: their curves go by another name.
    full = getattr(run, "singular_values", False)
    values = getattr(run, "values_at" if full else "theta_at")(t)
    size = np.max(np.abs(values), axis=0)
    visible = np.argsort(-size, kind="stable")[: np.count_nonzero(size > 0.01 * np.max(size))]
    # In order of activation, as in `plot_stages`.
    first = [int(np.argmax(np.abs(values[:, i]) > 0.5 * size[i])) for i in visible]
    order = [int(i) for _, i in sorted(zip(first, visible, strict=True))]
    panels.time_axis(t[first] / unit, stop / unit)
    known = ~np.isnan(run.losses)
    panels.top.plot(run.t_rescaled[known], run.losses[known], color="black", linewidth=1.5)
    for rank, i in enumerate(order):
        style = panels.style(rank, len(order), run.product_names[i])
        panels.bottom.plot(t / unit, values[:, i], **style)
    panels.name_products("singular values" if full else "products θ")
    return panels.top
