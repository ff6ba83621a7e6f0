"""Perturbed runs of the toy head at α = 1e-32, as Figures 9 and 10 of the paper show them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynalyze.checks import Perturbation
from validation import _toy

ALPHA = -32
# 1000 epochs at 0.2 of learning rate each: flow time.
WINDOW = 200.0
VISIBLE = 1e-5  # products above it count as active


def draw(found: Sequence[Perturbation], path: Path) -> None:
    """One panel per perturbation: reference and perturbed products over the paper's axis."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(found), figsize=(3.2 * len(found), 3.6), layout="constrained", sharey=True
    )
    for ax, one in zip(axes, found, strict=True):
        axis = one.t / -ALPHA
        active = np.flatnonzero(np.abs(one.reference).max(axis=0) > 1e-3)
        for rank, i in enumerate(active):
            color = f"C{rank % 10}"
            ax.plot(axis, one.reference[:, i], color="0.75", linewidth=2.5)
            ax.plot(axis, one.theta[:, i], color=color, linewidth=1.0)
        ax.axvspan(axis[0], (one.time + WINDOW) / -ALPHA, color="0.93", zorder=0)
        ax.set_title(f"perturbed at {one.time / -ALPHA:.1f}")
        ax.set_xlabel("flow time / log10(1/α)")
    axes[0].set_ylabel("products (grey: unperturbed)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def which(one: Perturbation) -> str:
    """What was perturbed, in words."""
    names = _toy.objective().product_names
    first = ", ".join(_toy.short(names[i]) for i in one.perturbed[:3])
    return first + (f" and {one.perturbed.size - 3} more" if one.perturbed.size > 3 else "")


def arrivals() -> np.ndarray:
    """Times, on the paper's axis, at which a product of our run newly exceeds 1e-5."""
    times, _, directions = _toy.run(ALPHA).crossings(VISIBLE)
    return times[directions > 0] / -ALPHA
