"""Plots of tracked spectra: the analogues of Figures 1, 3, 4 and 5 of arXiv 2306.07042."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze._core.products import PRODUCTS, product_index
from dynalyze.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DISTINCT = 6  # layers that get the colours of Matplotlib's cycle
_LABELLED = 12  # layers in a legend at most
_LABELS = (r"$\Delta(W_K W_Q^T)$", r"$\Delta(W_V W_O^T)$")


class TrackedSpectra(Protocol):
    """Spectra of changes: R records, two products, N heads of all layers; see `SpectraHistory`."""

    @property
    def steps(self) -> IntArray:
        """Optimizer steps of the records, (R,)."""

    @property
    def layer_names(self) -> tuple[str, ...]:
        """One per layer."""

    @property
    def head_names(self) -> tuple[str, ...]:
        """Length N."""

    @property
    def layer(self) -> IntArray:
        """Layer of each head, (N,)."""

    @property
    def singular_values(self) -> FloatArray:
        """Shape (R, 2, N, K), descending."""

    @property
    def frobenius_norm(self) -> FloatArray:
        """Shape (R, 2, N)."""

    @property
    def stable_rank(self) -> FloatArray:
        """Shape (R, 2, N); 0 where the change is 0."""

    @property
    def initial_singular_values(self) -> FloatArray:
        """Of the products at the start, (2, N, m)."""

    def unit(self, layer: int, head: int) -> int:
        """Index of a head among all."""


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _shortened(names: Sequence[str]) -> tuple[list[str], str | None]:
    """What differs between the names of layers, and what they share, with a * in its place."""
    if len(names) < 2:
        return list(names), None
    # A number is left whole: layers.1 and layers.10 share "layers."
    start = _common_start(names).rstrip("0123456789")
    rests = [name.removeprefix(start) for name in names]
    end = _common_start([rest[::-1] for rest in rests])[::-1].lstrip("0123456789")
    if not start + end or not all(len(rest) > len(end) for rest in rests):
        return list(names), None
    return [rest.removesuffix(end) for rest in rests], f"{start}*{end}"


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    same = [a == b for a, b in zip(first, last, strict=False)]
    return first[: [*same, False].index(False)]


def _layer(history: TrackedSpectra, layer: int) -> int:
    if not 0 <= layer < len(history.layer_names):
        raise InvalidInputError(f"layer={layer!r} must lie in 0 … {len(history.layer_names) - 1}")
    return layer


def plot_spectra(
    history: TrackedSpectra,
    layer: int = 0,
    head: int = 0,
    product: int | str = 0,
    *,
    n_values: int | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw one head's singular values against training (Figures 1 and 3).

    Parameters
    ----------
    history : SpectraHistory
        Records to draw.
    layer, head : int
        Which head.
    product : {0, 1} or name
        ``"W_K W_Q"`` or ``"W_V W_O"``.
    n_values : int, optional
        Draw no more than so many of the values kept.
    ax : Axes, optional
        Where to draw; new axes by default.
    """
    p, unit = product_index(product), history.unit(layer, head)
    ax = _axes(ax)
    values = history.singular_values[:, p, unit, :n_values]
    import matplotlib as mpl

    colors = mpl.colormaps["viridis_r"](np.linspace(0.1, 1.0, values.shape[1]))
    for k in range(values.shape[1] - 1, -1, -1):
        label = f"$\\sigma_{{{k + 1}}}$" if k < 5 else None
        ax.plot(history.steps, values[:, k], color=colors[k], lw=1.4, label=label)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(f"singular values of {_LABELS[p]}")
    ax.set_title(history.head_names[unit], fontsize="medium")
    ax.legend(frameon=False, fontsize="small", reverse=True)
    ax.margins(x=0)
    ax.set_ylim(bottom=0)
    return ax


def plot_stable_rank(
    history: TrackedSpectra,
    layers: Sequence[int] | None = None,
    product: int | str = 0,
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the stable rank of the change: median over heads, in a band from quartile to quartile.

    Figure 4 of the paper has mean and standard deviation, whose band reaches below 1, which no
    stable rank does. Heads that have not changed have none, and are left out.

    Parameters
    ----------
    history : SpectraHistory
        Records to draw.
    layers : sequence of int, optional
        Which layers; all by default.
    product : {0, 1} or name
        ``"W_K W_Q"`` or ``"W_V W_O"``.
    ax : Axes, optional
        Where to draw; new axes by default.
    """
    p = product_index(product)
    chosen = list(range(len(history.layer_names)) if layers is None else layers)
    if not chosen:
        raise InvalidInputError("layers is empty: name at least one, or leave it out for all.")
    ax = _axes(ax)
    import matplotlib as mpl

    names = [history.layer_names[_layer(history, layer)] for layer in chosen]
    short, title = _shortened(names)
    many = len(chosen) > _DISTINCT
    # Colours in the order of depth where there are too many layers to tell apart by others.
    colors = mpl.colormaps["viridis_r"](np.linspace(0.05, 1.0, len(chosen)))
    labelled = range(0, len(chosen), -(-len(chosen) // _LABELLED))
    # Before anything has moved there is no rank to draw.
    moved = history.frobenius_norm[:, p].any(-1)
    for i, layer in enumerate(chosen):
        heads = history.layer == layer
        ranks = history.stable_rank[moved][:, p, heads]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # records at which no head has moved
            low, median, high = np.nanquantile(
                np.where(ranks > 0, ranks, np.nan), [0.25, 0.5, 0.75], axis=-1
            )
        label = short[i] if i in labelled else None
        (line,) = ax.plot(
            history.steps[moved], median, label=label, color=colors[i] if many else f"C{i}"
        )
        ax.fill_between(
            history.steps[moved], low, high, color=line.get_color(),
            alpha=0.08 if many else 0.2, lw=0,
        )  # fmt: skip
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(f"stable rank of {_LABELS[p]}\n(median and quartiles of heads)")
    ax.legend(
        frameon=many,
        fontsize="small",
        title=title,
        title_fontsize="small",
        ncols=-(-len(labelled) // 6),
    )
    ax.margins(x=0)
    return ax


def plot_final_spectrum(
    history: TrackedSpectra,
    layer: int = 0,
    product: int | str = 0,
    *,
    n_values: int | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the last change's spectrum beside the initial product's, each over its largest value.

    The line is the mean over the layer's heads, the band their range (Figures 5, 11, 13, 15).

    Parameters
    ----------
    history : SpectraHistory
        Records to draw, best with all singular values kept (``n_values=None``).
    layer : int
        Which layer.
    product : {0, 1} or name
        ``"W_K W_Q"`` or ``"W_V W_O"``.
    n_values : int, optional
        Draw no more than so many values.
    ax : Axes, optional
        Where to draw; new axes by default.

    Raises
    ------
    InvalidInputError
        If there is no such layer, or a head of it did not change.
    """
    p, heads = product_index(product), history.layer == _layer(history, layer)
    final = history.singular_values[-1, p, heads, :n_values]
    if not final[:, 0].all():
        raise InvalidInputError(
            f"{PRODUCTS[p]} of layer {layer} has a head that did not change: there is no spectrum "
            "to normalize. Record after training."
        )
    initial = history.initial_singular_values[p, heads, :n_values]
    ax = _axes(ax)
    for values, label in ((initial, "initial product"), (final, f"change, {_LABELS[p]}")):
        shares = values / values[:, :1]
        rank = np.arange(1, shares.shape[1] + 1)
        (line,) = ax.plot(rank, shares.mean(0), label=label)
        ax.fill_between(rank, shares.min(0), shares.max(0), color=line.get_color(), alpha=0.2, lw=0)
    ax.set_xlabel("index $k$")
    ax.set_ylabel(r"$\sigma_k / \sigma_1$")
    ax.set_title(history.layer_names[layer], fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    ax.set_ylim(0, 1.02)
    return ax
