"""Ranks of the change of W_K W_Qᵀ and W_V W_Oᵀ in vision transformers: Figures 1, 3–5, 11–16.

``python -m validation.vit_ranks`` trains small models on scikit-learn's digits, minutes on two
cores. ``--data PATH`` takes a CIFAR archive or an ImageNet-like folder, at the paper's settings.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze._core.products import PRODUCTS
from dynalyze.plots.spectra import plot_spectra
from dynalyze.spectra import (
    SpectraHistory,
    detect_stages,
    plot_final_spectrum,
)
from dynalyze.training.vit import ViTOptions, ViTRun, cifar, digits, image_folder, train_vit
from validation.report import DOCS, table, write

MODULE = "validation.vit_ranks"
PASSED = 0.1  # share of the final σ₁ that a value passes
RANKS = (
    "scale",
    "product",
    "test accuracy",
    "stable rank",
    "of the initial product",
    "effective rank",
    "values above σ₁/10",
)
GROWTH = (
    *("scale", "product", "σ₁", "σ₂", "σ₃", "σ₄", "at 2%", "at 10%", "at 30%", "at the end"),
    "components",
)
STABLE = ("scale", "product", "first record", "lowest, at step", "at the end", "heads that grew")
READING = """
What reproduces. The change is of low rank: its stable and effective ranks end far below those of
the initial product. Singular values rise one after the other, the later the smaller the
initialization; at the smallest scale a head learns two or three components and stops. Smaller
initialization gives lower rank: the means of stable rank, effective rank and number of values fall
from scale to scale, for both products.

What does not. The stable rank does not grow from the start: but for W_V W_O at scale 1 it falls
during the first few dozen steps, while the first component overtakes the rest, and grows only
after that. It stays near 1 where σ₁ dominates, so the singular values and their number show the
steps more plainly than it does. The rises are smooth and overlap in time.
"""
DELTAS = (r"$\Delta(W_K W_Q^T)$", r"$\Delta(W_V W_O^T)$")


@dataclass(frozen=True)
class Plan:
    """What is trained: every scale with every seed."""

    data: str  # "digits" or a path
    options: ViTOptions
    scales: tuple[float, ...]
    seeds: tuple[int, ...]
    track_every: int
    processes: int
    checkpoints: str | None = None

    def runs(self) -> list[tuple[float, int]]:
        """All pairs of scale and seed."""
        return [(scale, seed) for scale in self.scales for seed in self.seeds]


DIGITS = Plan(
    data="digits",
    options=ViTOptions(lr=3e-3, batch_size=128, n_epochs=100, warmup_epochs=2),
    scales=(1.0, 0.3, 0.1),
    seeds=(0, 1, 2),
    track_every=6,
    processes=2,
)
IMAGENET = ViTOptions(lr=3e-3, batch_size=4096, n_epochs=360, warmup_epochs=15)
CIFAR_SCALES = (1e-4, 1e-2, 0.1, 0.5, 1.0, 1.5, 2.0)


def train_one(plan: Plan, scale: float, seed: int) -> ViTRun:
    """One run of a plan."""
    data = (
        digits()
        if plan.data == "digits"
        else image_folder(plan.data)
        if (Path(plan.data) / "train").is_dir()
        else cifar(plan.data)
    )
    folder = None if plan.checkpoints is None else Path(plan.checkpoints) / f"{scale:g}-{seed}"
    return train_vit(
        data,
        None,
        plan.options,
        scale=scale,
        seed=seed,
        track_every=plan.track_every,
        n_values=None,
        spectrum="full",
        checkpoint=folder,
    )


def _train_quietly(job: tuple[Plan, float, int]) -> ViTRun:
    import torch

    torch.set_num_threads(1)
    return train_one(*job)


def train_all(plan: Plan) -> dict[tuple[float, int], ViTRun]:
    """All runs of a plan, by scale and seed."""
    jobs = [(plan, scale, seed) for scale, seed in plan.runs()]
    if plan.processes == 1:
        return {job[1:]: train_one(*job) for job in jobs}
    with ProcessPoolExecutor(plan.processes) as pool:
        return dict(zip(plan.runs(), pool.map(_train_quietly, jobs), strict=True))


def steps_until_passed(history: SpectraHistory, n_values: int = 4) -> FloatArray:
    """First step at which σ_k passes a tenth of the final σ₁, (2, N, n_values); inf if never."""
    values = history.singular_values[..., :n_values]
    passed = values > PASSED * history.singular_values[-1, :, :, :1]
    first = np.argmax(passed, axis=0)
    return np.where(passed.any(0), history.steps[first], np.inf)


def main(argv: Sequence[str] = ()) -> None:
    """Train what the arguments name, and write the report and its figures."""
    plan = _plan(argv)
    runs = train_all(plan)
    name = "digits" if plan.data == "digits" else Path(plan.data).name.split(".")[0]
    figures = _figures(plan, runs, DOCS / "validation", f"vit_ranks_{name}")
    write(
        f"validation/vit_ranks_{name}.md",
        f"Ranks in vision transformers: {name}",
        f"{_text(plan, runs)}\n\n{figures}",
        module=MODULE if plan.data == "digits" else f"{MODULE} --data PATH",
        packages=("torch", "numpy", "scikit-learn"),
    )


def _plan(argv: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--data", default="digits", metavar="digits|PATH")
    parser.add_argument("--scales", type=float, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--epochs", type=int, help="fewer than the paper's")
    parser.add_argument("--track-every", type=int)
    parser.add_argument("--processes", type=int, help="runs at a time")
    parser.add_argument("--checkpoints", metavar="FOLDER", help="to go on from, one per run")
    given = parser.parse_args(argv)
    if given.data == "digits":
        base = DIGITS
    elif (Path(given.data) / "train").is_dir():
        base = Plan(given.data, IMAGENET, (1.0,), (0,), 500, 1)
    else:
        base = Plan(given.data, ViTOptions(), CIFAR_SCALES, (0,), 500, 1)
    options = base.options
    if given.epochs is not None:
        settings = {name: getattr(options, name) for name in ("lr", "batch_size")}
        warmup = min(options.warmup_epochs, given.epochs / 10)
        options = ViTOptions(n_epochs=given.epochs, warmup_epochs=warmup, **settings)
    return Plan(
        base.data,
        options,
        tuple(given.scales or base.scales),
        tuple(base.seeds if given.seeds is None else given.seeds),
        given.track_every or base.track_every,
        given.processes or base.processes,
        given.checkpoints,
    )


def _text(plan: Plan, runs: dict[tuple[float, int], ViTRun]) -> str:
    any_run = next(iter(runs.values()))
    shape, options = any_run.shape, plan.options
    per_epoch = any_run.n_steps / options.n_epochs
    seeds = ", ".join(map(str, plan.seeds))
    model = (
        f"{shape.n_layers} layers of {shape.n_heads} heads, width {shape.width}, head dimension "
        f"{shape.head_width}, MLP {shape.mlp_width}, patches of {shape.patch_size}"
    )
    training = (
        f"{options.optimizer} at {options.lr:g}, {options.n_epochs} epochs of {per_epoch:.0f} "
        f"steps, {options.warmup_epochs:g} of warm-up, cosine decay"
    )
    rows, rising, stable = [], [], []
    for scale in plan.scales:
        chosen = [runs[scale, seed] for seed in plan.seeds]
        for p, product in enumerate(PRODUCTS):
            rows.append([f"{scale:g}", product, *_ranks(chosen, p)])
            passed = np.median([steps_until_passed(r.history)[p] for r in chosen], axis=(0, 1))
            epochs = ["never" if np.isinf(s) else f"{s / per_epoch:.1f}" for s in passed]
            stable.append([f"{scale:g}", product, *_stable_rank_through(chosen, p)])
            rising.append([f"{scale:g}", product, *epochs, *_growth(chosen, p)])
    ends = [r.history.stable_rank[-1] < r.history.initial_stable_rank for r in runs.values()]
    below = np.mean(ends)
    falls = _falls(plan, runs)
    return f"""
{model}; {training}. The scale
multiplies the initial values of all layers but the token embedding; seeds {seeds}.
A number is the mean over all heads of all layers and all seeds ± the standard deviation of the
seeds' means.

Ranks of the change at the end, beside the initial product's own:

{table(RANKS, rows)}

How the rank grows: the median epoch (over heads and seeds) at which σ_k passes a tenth of the
final σ₁; the mean number of such values after 2%, 10% and 30% of training; and the mean number of
components per head that `detect_stages` finds, with its defaults:

{table(GROWTH, rising)}

The stable rank of a head through training, means over heads and seeds: at the first record
(step {plan.track_every}), at the lowest point of the mean, and at the end; and the share of heads
whose stable rank is higher at the end than at that point:

{table(STABLE, stable)}

The stable rank ends below the initial product's own in {below:.0%} of all heads, products and
seeds. From one scale to the next smaller one, seed by seed, the mean falls in {falls} comparisons.
{READING if plan == DIGITS else ""}""".strip()


def _ranks(runs: Sequence[ViTRun], p: int) -> list[str]:
    def mean(values: list[FloatArray]) -> str:
        means = np.array([v.mean() for v in values])
        return f"{means.mean():.2f} ± {means.std():.2f}"

    histories = [run.history for run in runs]
    values = [h.singular_values[-1, p] for h in histories]
    return [
        f"{np.mean([run.test_accuracies[-1] for run in runs]):.3f}",
        mean([h.stable_rank[-1, p] for h in histories]),
        mean([h.initial_stable_rank[p] for h in histories]),
        mean([h.effective_rank[-1, p] for h in histories]),
        mean([(v > PASSED * v[:, :1]).sum(-1) for v in values]),
    ]


def _growth(runs: Sequence[ViTRun], p: int) -> list[str]:
    counts = []
    for share in (0.02, 0.1, 0.3, 1.0):
        found = []
        for history in (run.history for run in runs):
            record = int(np.searchsorted(history.steps, share * history.steps[-1]))
            final = history.singular_values[-1, p, :, :1]
            found.append((history.singular_values[record, p] > PASSED * final).sum(-1).mean())
        counts.append(f"{np.mean(found):.1f}")
    components = [
        (detect_stages(run.history).product == p).sum() / len(run.history.head) for run in runs
    ]
    return [*counts, f"{np.mean(components):.1f}"]


def _stable_rank_through(runs: Sequence[ViTRun], p: int) -> list[str]:
    ranks = np.concatenate([run.history.stable_rank[1:, p] for run in runs], axis=1)
    mean = ranks.mean(1)
    lowest = int(np.argmin(mean))
    grew = (ranks[-1] > ranks[lowest]).mean()
    step = runs[0].history.steps[1 + lowest]
    return [f"{mean[0]:.2f}", f"{mean[lowest]:.2f}, {step}", f"{mean[-1]:.2f}", f"{grew:.0%}"]


def _falls(plan: Plan, runs: dict[tuple[float, int], ViTRun]) -> str:
    """In how many comparisons of neighbouring scales the mean final stable rank falls."""
    ordered = sorted(plan.scales, reverse=True)
    found = []
    for larger, smaller in pairwise(ordered):
        for seed in plan.seeds:
            ends = [runs[s, seed].history.stable_rank[-1].mean(-1) for s in (larger, smaller)]
            found += list(ends[1] < ends[0])
    return f"{sum(found)} of {len(found)}"


def _figures(plan: Plan, runs: dict[tuple[float, int], ViTRun], folder: Path, stem: str) -> str:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    first = plan.seeds[0]
    last_layer = len(runs[plan.scales[0], first].history.layer_names) - 1
    layer = min(1, last_layer)  # the paper's Figure 3 shows the second layer
    n, m = len(plan.scales), 2
    spectra, axes = plt.subplots(m, n, figsize=(3.4 * n, 5.6), layout="constrained", squeeze=False)
    for column, scale in enumerate(plan.scales):
        for p in range(m):
            ax = plot_spectra(
                runs[scale, first].history, layer, 0, p, n_values=8, ax=axes[p, column]
            )
            ax.set_title(f"scale {scale:g}", fontsize="medium")
            legend = ax.get_legend()
            if legend is not None and (p, column) != (0, 0):
                legend.remove()
    ranks, axes = plt.subplots(
        m,
        last_layer + 1,
        figsize=(3.6 * (last_layer + 1), 5.6),
        layout="constrained",
        squeeze=False,
    )
    for number in range(last_layer + 1):
        for p in range(m):
            ax = axes[p, number]
            for scale in plan.scales:
                _stable_rank(
                    ax, [runs[scale, s] for s in plan.seeds], number, p, f"scale {scale:g}"
                )
            ax.set_title(f"layer {number + 1}", fontsize="medium")
            ax.set_xlabel("optimizer step")
            ax.set_ylabel(f"stable rank of {DELTAS[p]}")
            ax.set_xscale("log")
    axes[0, 0].legend(frameon=False, fontsize="small")
    final, axes = plt.subplots(m, n, figsize=(3.4 * n, 5.6), layout="constrained", squeeze=False)
    for column, scale in enumerate(plan.scales):
        for p in range(m):
            ax = plot_final_spectrum(runs[scale, first].history, layer, p, ax=axes[p, column])
            ax.set_title(f"scale {scale:g}", fontsize="medium")
    captions = {
        "spectra": (
            spectra,
            f"Singular values of the change through training, layer {layer + 1}, head 1, seed "
            f"{first} (Figures 1 and 3).",
        ),
        "stable_rank": (
            ranks,
            "Stable rank of the change: mean and standard deviation over the layer's heads and the "
            "seeds (Figures 4, 12, 14, 16).",
        ),
        "final_spectrum": (
            final,
            "Spectrum after training beside the initial product's, each over its largest value, "
            f"layer {layer + 1}, seed {first}: mean and range over heads (Figures 5, 11, 13, 15).",
        ),
    }
    lines = []
    for name, (figure, caption) in captions.items():
        figure.savefig(folder / f"{stem}_{name}.png", dpi=110)
        plt.close(figure)
        lines.append(f"![{caption}]({stem}_{name}.png)\n\n{caption}")
    return "\n\n".join(lines)


def _stable_rank(ax: Any, runs: Sequence[ViTRun], layer: int, p: int, label: str) -> None:
    histories = [run.history for run in runs]
    steps = histories[0].steps[1:]
    ranks = np.concatenate([h.stable_rank[1:, p, h.layer == layer] for h in histories], axis=1)
    mean, spread = ranks.mean(1), ranks.std(1)
    (line,) = ax.plot(steps, mean, label=label)
    ax.fill_between(steps, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, lw=0)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
