"""Two panels of one width, with a legend, in the place of one Axes.

Nothing stands outside that place but labels of the axes, so that a plain ``savefig`` of any
figure has all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalyze._core.arrays import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELLED = 20  # products that get a label of their own, where there is room for so many
_LATE = 12.0  # end of the time axis over the first activation, from which it is logarithmic
_SMALL_FONT = 6.0  # points, for which the number of labels is chosen
_ROW = 1.62 / 72  # height of a row of a legend, inches per point of its font
_RATIO = 1.2  # height of the lower panel over that of the upper one
_WIDEST_LEGEND = 0.4  # of the width of the Axes given


@dataclass
class Panels:
    """Two panels, and the room that they share with the legend."""

    top: Axes
    bottom: Axes
    figure: Figure
    grid: Any  # AxesDivider or GridSpec, of the place of the Axes that was given
    width: float  # of that place, inches
    height: float  # inches

    def time_axis(self, activations: FloatArray, end: float) -> tuple[float, float]:
        """Set scale and limits of rescaled time; returns the limits."""
        first = float(np.min(activations, initial=np.inf))
        logarithmic = 0 < _LATE * first < end
        start = first / 1.6 if logarithmic else 0.0
        self.top.set_xscale("log" if logarithmic else "linear")
        self.top.set_xlim(start, end)
        self.top.tick_params(labelbottom=False)
        self.top.set_ylabel("loss")
        self.bottom.set_xlabel("rescaled time  t / log(1/α)", labelpad=1)
        return start, end

    def style(self, rank: int, n_lines: int, name: str) -> dict[str, Any]:
        """Look of the product that is activated as number `rank`."""
        room = int(self.height / (_SMALL_FONT * _ROW)) - 2  # the title, and what is left out
        labelled = min(_LABELLED, room)
        label = name if rank < labelled else None
        if rank == labelled and n_lines > labelled:
            label = f"… {n_lines - labelled} more"
        return {
            "color": f"C{rank % 10}",
            "linewidth": 1.5,
            "linestyle": ("-", "--", ":")[rank // 10 % 3],
            "label": label,
        }

    def name_products(self, quantity: str) -> None:
        """Label the panel of the products, and its lines."""
        self.bottom.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        self.bottom.set_ylabel(quantity)
        self.legend(self.bottom, title="in order of activation")

    def legend(self, *panels: Axes, title: str | None = None) -> None:
        """Explain the lines to the right of the panels, in letters as small as the room asks."""
        from matplotlib import rcParams
        from matplotlib.font_manager import FontProperties
        from matplotlib.gridspec import GridSpecBase
        from mpl_toolkits.axes_grid1 import axes_size

        keys = [panel.get_legend_handles_labels() for panel in panels]
        if not any(handles for handles, _ in keys):
            return
        font = FontProperties(size=rcParams["legend.fontsize"]).get_size_in_points()
        # A single legend may go on beside the other panel.
        places = panels if len(panels) > 1 else (self.top,)
        edge = 1.01
        if isinstance(self.grid, GridSpecBase):
            cells = [self.grid[i, 1] for i in range(2)] if len(panels) > 1 else [self.grid[:, 1]]
            places = tuple(self.top.figure.add_subplot(cell) for cell in cells)
            edge = 0.0
            for place in places:
                place.axis("off")

        def draw(size: float) -> tuple[float, float]:
            """Width and height of the legends, inches."""
            legends = [
                place.legend(
                    *key,
                    loc="upper left",
                    bbox_to_anchor=(edge, 1.0),
                    borderaxespad=0,
                    frameon=False,
                    fontsize=size,
                    title=title,
                    title_fontsize=size,
                    alignment="left",
                )
                for place, key in zip(places, keys, strict=True)
            ]
            boxes = [legend.get_window_extent() for legend in legends]
            dpi = self.figure.dpi
            return max(box.width for box in boxes) / dpi, sum(box.height for box in boxes) / dpi

        width, height = draw(font)
        shrink = min(1.0, _WIDEST_LEGEND * self.width / width, self.height / height)
        if shrink < 1:
            width, _ = draw(shrink * font)
        width += 0.02 * self.width
        if isinstance(self.grid, GridSpecBase):
            self.grid.set_width_ratios((self.width - width, width))
        else:
            self.grid.append_size("right", axes_size.Fixed(width))


def two_panels(ax: Axes | None) -> Panels:
    """Divide the place of an Axes among the loss, a panel under it and the legend."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(figsize=(8.5, 6))
        ax.figure.subplots_adjust(left=0.1, right=0.98, top=0.95, bottom=0.09)
    figure = ax.get_figure(root=True)
    assert figure is not None
    place = ax.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    cell = ax.get_subplotspec()
    if cell is not None and isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        # That engine sees the cells of grids alone.
        grid = cell.subgridspec(2, 2, height_ratios=(1.0, _RATIO))
        ax.set_subplotspec(grid[0, 0])
        below = ax.figure.add_subplot(grid[1, 0], sharex=ax)
    else:
        grid = make_axes_locatable(ax)
        below = grid.append_axes("bottom", size=f"{_RATIO:.0%}", pad=0.12, sharex=ax)
    return Panels(ax, below, figure, grid, place.width, place.height)
