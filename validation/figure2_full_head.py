"""Figure 2 with full weights: the toy head with 50 × 50 matrices, descent for six α and flow."""

import time
from dataclasses import dataclass, replace
from itertools import combinations

import matplotlib as mpl
import numpy as np

from dynalyze import Initialization, StagePrediction, datasets
from dynalyze.ranks import FullTrajectory, predict_rank_steps, rank_steps
from dynalyze.ranks import simulate as simulate_full
from dynalyze.training import FullHead, Recording, TrainingRun, train
from validation import _toy, report

HEAD = FullHead(50, 50)
PRODUCTS = {"W_K W_Q": "KQ", "W_V W_O": "VO"}
LARGEST_RATE = 6.0
FEWEST_STEPS = 500
FLOW_LOG10_ALPHA = -4
FLOW_END = 750.0  # of the paper's axis
FLOW_TOLERANCE = 1e-6
HALVED_END = 400.0  # of the paper's axis, for descent at half the learning rate
SMALLEST, SECOND = _toy.LOG10_ALPHAS[-1], _toy.LOG10_ALPHAS[-2]
LEARNED, STIRS = 0.02, 0.002  # singular values at which a step is counted, and begins

Step = tuple[str, int]  # "KQ" or "VO", and its rank after the step


def data() -> tuple[np.ndarray, np.ndarray]:
    """The samples of the diagonal figure."""
    toy = datasets.toy_head(rng=_toy.DATA_SEED)
    return toy.X, toy.y


def initial_weights(log10_alpha: float) -> Initialization:
    seed = _toy.WEIGHT_SEED
    return Initialization.gaussian(HEAD.n_weights, log10_alpha=log10_alpha, rng=seed)


def descend(log10_alpha: float, lr: float, end: float = _toy.FIGURE_END) -> TrainingRun:
    """Full-batch gradient descent to a time on the paper's axis."""
    return train(
        HEAD,
        data(),
        init=initial_weights(log10_alpha),
        lr=lr,
        until=end * -log10_alpha,
        loss="mse",
        recording=Recording(check_every=2),
    )


def learning_rate(log10_alpha: float) -> float:
    return min(LARGEST_RATE, _toy.FIGURE_END * -log10_alpha / FEWEST_STEPS)


@dataclass(frozen=True)
class Steps:
    """First gain of every rank of a run, and what does not fit that picture."""

    gains: dict[Step, float]  # time on the paper's axis, ascending
    falls: int  # ranks lost again
    alone: int  # gains during which no other one is under way


def steps_of(run: TrainingRun | FullTrajectory) -> Steps:
    steps, per_unit = rank_steps(run, threshold=LEARNED), -run.init.log10_alpha
    gains: dict[Step, float] = {}
    for product, rank, change, t in zip(
        steps.products, steps.ranks.tolist(), steps.changes, steps.t, strict=True
    ):
        if change > 0:
            gains.setdefault((PRODUCTS[product], rank), float(t) / per_unit)
    stirs: dict[Step, list[float]] = {}
    early = rank_steps(run, threshold=STIRS)
    for product, rank, change, t in zip(
        early.products, early.ranks.tolist(), early.changes, early.t, strict=True
    ):
        if change > 0:
            stirs.setdefault((PRODUCTS[product], rank), []).append(float(t) / per_unit)
    spans = {
        step: (max((s for s in stirs.get(step, []) if s <= end), default=0.0), end)
        for step, end in gains.items()
    }
    alone = sum(
        all(
            end < other_start or start > other_end
            for other, (other_start, other_end) in spans.items()
            if other != step
        )
        for step, (start, end) in spans.items()
    )
    return Steps(gains, int(np.count_nonzero(steps.changes < 0)), alone)


def diagonal_gains(prediction: StagePrediction) -> dict[Step, float]:
    """The stages of diagonal weights as gains of rank, on the paper's axis."""
    gains: dict[Step, float] = {}
    ranks = dict.fromkeys(PRODUCTS.values(), 0)
    for i, T in zip(prediction.coordinates.tolist(), prediction.times, strict=True):
        product = PRODUCTS[prediction.product_names[i].rsplit("[", 1)[0]]
        ranks[product] += 1
        gains[product, ranks[product]] = float(T) * _toy.FIGURE_PER_RESCALED
    return gains


def draw(runs: dict[int, TrainingRun], diagonal: StagePrediction) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for log10_alpha, run in runs.items():
        axes[0].plot(run.t / -log10_alpha, run.losses, label=f"α = 1e{log10_alpha}")
    times = diagonal.times * _toy.FIGURE_PER_RESCALED
    edges = [0.0, *times[times < _toy.FIGURE_END], _toy.FIGURE_END]
    axes[0].stairs(
        diagonal.losses[: len(edges) - 1],
        edges,
        baseline=None,
        color="black",
        linestyle="--",
        label="diagonal, α → 0",
    )
    axes[0].set_ylim(-0.002, 1.1 * diagonal.losses[0])
    axes[0].set_title("loss")
    axes[0].legend(frameon=False)
    run, width = runs[SMALLEST], HEAD.d_model
    t = np.linspace(0, run.t[-1], 2000)
    values = run.values_at(t)
    for k, (ax, title) in enumerate(zip(axes[1:], ("W_K W_Qᵀ", "W_V W_Oᵀ"), strict=True)):
        ax.plot(t / -SMALLEST, values[:, k * width : (k + 1) * width], linewidth=1.2)
        ax.set_title(f"singular values of {title}, α = 1e{SMALLEST}")
        ax.set_ylim(bottom=0)
        predicted = [
            t for (product, _), t in diagonal_gains(diagonal).items() if product == ("KQ", "VO")[k]
        ]
        label: str | None = "stages of diagonal weights, α → 0"
        for one in predicted:
            if one < _toy.FIGURE_END:
                ax.axvline(one, color="0.5", linewidth=0.9, linestyle=":", zorder=0, label=label)
                label = None
        ax.legend(loc="upper left", fontsize=8, framealpha=1, edgecolor="none")
        ax.set_ylim(top=1.15 * values[:, k * width].max())
    for ax in axes:
        ax.set_xlim(0, _toy.FIGURE_END)
        ax.set_xlabel("flow time / log10(1/α)")
    figure.savefig(report.DOCS / "validation" / "figure2_full_head.png", dpi=110)
    plt.close(figure)


def alpha_table(runs: dict[int, TrainingRun], found: dict[int, Steps]) -> str:
    rows = []
    for log10_alpha, run in runs.items():
        steps = found[log10_alpha]
        small = not np.any(run.values[0] > LEARNED)
        counts = (len(steps.gains), steps.alone, steps.falls) if small else ("–",) * 3
        rows.append(
            [
                f"1e{log10_alpha}",
                f"{run.lr:g}",
                run.steps[-1],
                run.loss_rises,
                f"{run.losses[0]:.4f}",
                f"{run.losses[-1]:.2e}",
                " ".join(f"{product}{rank}" for product, rank in steps.gains) if small else "–",
                *counts,
            ]
        )
    header = ["α", "learning rate", "steps of descent", "of them uphill", "loss at 0", "at 1000"]
    header += ["gains of rank, in order", "gains", "alone", "ranks lost again"]
    return report.table(header, rows)


def step_table(
    found: dict[int, Steps], flow: Steps, diagonal: dict[Step, float], predicted: dict[Step, float]
) -> str:
    smallest, second = found[SMALLEST].gains, found[SECOND].gains
    every = sorted({*smallest, *diagonal}, key=lambda s: smallest.get(s, diagonal.get(s, np.inf)))
    share = SECOND / SMALLEST
    rows = []
    for step in every:
        if smallest.get(step, diagonal.get(step, np.inf)) > _toy.FIGURE_END:
            continue
        limit = np.nan
        if step in smallest and step in second:
            limit = (smallest[step] - share * second[step]) / (1 - share)
        rows.append(
            [
                f"{step[0]} to rank {step[1]}",
                *(
                    _time(gains.get(step))
                    for gains in (flow.gains, found[FLOW_LOG10_ALPHA].gains, second, smallest)
                ),
                _time(limit),
                _time(predicted.get(step)),
                _time(diagonal.get(step)),
            ]
        )
    header = ["step", f"flow, 1e{FLOW_LOG10_ALPHA}", f"descent, 1e{FLOW_LOG10_ALPHA}"]
    header += [f"1e{SECOND}", f"1e{SMALLEST}", "extrapolated to α → 0"]
    header += ["predicted for full weights", "predicted for diagonal weights"]
    return report.table(header, rows)


def _time(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.1f}"


def apart(one: Steps, other: Steps) -> tuple[float, int]:
    """Worst relative difference of the times of common steps, and their number."""
    common = [step for step in one.gains if step in other.gains]
    return max(abs(one.gains[s] / other.gains[s] - 1) for s in common), len(common)


def same_order(one: dict[Step, float], other: dict[Step, float]) -> float:
    """Share of the pairs of common steps that come in the same order."""
    pairs = list(combinations([step for step in one if step in other], 2))
    return float(np.mean([(one[a] < one[b]) == (other[a] < other[b]) for a, b in pairs]))


def off_diagonal(run: TrainingRun) -> list[float]:
    """Norm of the entries off the diagonal of each product at the end, relative to its own."""
    products = [run.weights[a] @ run.weights[b].T for a, b in HEAD.matrix_products]
    return [float(np.linalg.norm(M - np.diag(np.diag(M))) / np.linalg.norm(M)) for M in products]


def main() -> None:
    mpl.use("Agg")
    started = time.monotonic()
    runs = {a: descend(a, learning_rate(a)) for a in _toy.LOG10_ALPHAS}
    descended = time.monotonic()
    flow = simulate_full(
        HEAD,
        data(),
        initial_weights(FLOW_LOG10_ALPHA),
        until=FLOW_END * -FLOW_LOG10_ALPHA,
        loss="mse",
        rtol=FLOW_TOLERANCE,
    )
    flowed = time.monotonic()
    halved = descend(FLOW_LOG10_ALPHA, learning_rate(FLOW_LOG10_ALPHA) / 2, HALVED_END)
    first = predict_rank_steps(HEAD, data(), loss="mse", max_steps=1)
    step = (PRODUCTS[first.products[0]], 1)
    whole = float(first.times[0]) * _toy.FIGURE_PER_RESCALED
    predicted = {step: whole}
    diagonal = _toy.prediction()
    draw(runs, diagonal)
    found = {a: steps_of(run) for a, run in runs.items()}
    of_flow = steps_of(flow)
    stages = diagonal_gains(diagonal)
    less_late, common = apart(steps_of(halved), of_flow)
    until_then = {s: t for s, t in of_flow.gains.items() if s in steps_of(halved).gains}
    late, _ = apart(found[FLOW_LOG10_ALPHA], replace(of_flow, gains=until_then))
    rate = 1 / float(first.times[0])
    slowed = LARGEST_RATE * rate / np.log1p(LARGEST_RATE * rate)
    largest = float(runs[-1].values[0].max())
    against, matched = apart(found[SMALLEST], Steps(stages, 0, 0))
    smallest = found[SMALLEST].gains
    typical = np.median([abs(smallest[s] / stages[s] - 1) for s in smallest if s in stages])
    off = off_diagonal(runs[SMALLEST])
    in_order = same_order(smallest, stages)
    earlier = sum(smallest[s] < stages[s] for s in smallest if s in stages)
    body = f"""
The toy task of [figure2.md](figure2.md) (same samples, loss `"mse"`, teacher of diagonal weights)
for a head with full matrices W_K, W_Q, W_V, W_O of {HEAD.d_model} × {HEAD.d_head}, whose entries, \
{2 * HEAD.n_weights} in all, start
Gaussian times α. Full-batch gradient descent for the paper's six α to the end of its axis
({sum(int(run.steps[-1]) for run in runs.values())} steps, {descended - started:.0f} s), and the \
flow at α = 1e{FLOW_LOG10_ALPHA} to {FLOW_END:g} ({flow.configuration["method"]},
{flow.nfev} gradients, {flowed - descended:.0f} s). Times are on the paper's axis, flow time /
log10(1/α).

![Figure 2, full weights](figure2_full_head.png)

Dashed and dotted: what the theory predicts for *diagonal* weights on the same samples, α → 0.

## What the paper shows, and what we find

- **Staircase.** The paper: with full weights too, plateaus that sharpen as α falls, and singular
  values of W_K W_Qᵀ and W_V W_Oᵀ that rise one after another. Here: the same.
- **Rank one at a time.** A gain of rank is a singular value that passes {LEARNED} for the first
  time; it is alone if no other one, of either product, is between {STIRS} and {LEARNED} on its way
  up meanwhile: then exactly one product gains exactly one rank. The smaller α, the more gains are
  alone; KQ2 is W_K W_Qᵀ reaching rank 2.

{alpha_table(runs, found)}

- **α = 0.1** is no small initialization: singular values of the products start at up to
  {largest:.1f}, so that there are no ranks to count. Its loss starts at \
{runs[-1].losses[0]:.2f}, above the plot.
- **Flow and descent.** At α = 1e{FLOW_LOG10_ALPHA} the times of the {common} common gains up to \
{HALVED_END:g} differ by at most
  {late:.1%} at learning rate {runs[FLOW_LOG10_ALPHA].lr:g}, and by at most \
{less_late:.1%} at half of it: the error of descent, of first order.
- **Where ours may differ.** The paper's samples, learning rate, batches, and the α of its singular
  values are not known: there are no numbers to compare, only the picture. The paper ran SGD; this
  is descent on all samples. At α = 1e-16 and below rounding matters: a direction that is not
  learned yet lies in the same matrix entries as those that are, whose last digits seed it at about
  1e-16 whatever α is. Here the columns of the weights are rotated such that small directions have
  columns of their own (`train` and `simulate_full` do it by themselves). Whether the paper's runs
  are free of that is not known.

## What the theory of diagonal weights says about it, and what not

It makes no claim. Eqs. (8)–(10) follow the log-scale of each coordinate; here no coordinate is
distinguished, and the singular vectors of the gradient turn from stage to stage. What carries over:

- Steps of rank one, at times proportional to log(1/α): a product grows along the top singular pair
  of its own gradient G, at the rate σ₁(G). The recursion that follows from it is this library's
  extension, `predict_rank_steps`, tested on small heads in [full_head.md](full_head.md). Here only
  its first step is predicted: the limit point of the k-th needs Hessians in {2 * HEAD.d_model} k \
variables, too
  slow for all of them.
- The first step cannot be later than the first stage of diagonal weights, because |G_ii| ≤ σ₁(G):
  at {whole:.1f} instead of {stages[step]:.1f}, α → 0. (Descent with learning rate η grows by \
log(1 + ησ)/η per unit
  of time: at η = {LARGEST_RATE:g} that makes {slowed * whole:.1f}.)

What is no theorem, but seen: the teacher is diagonal and the tokens isotropic, so that G is
diagonal but for sampling noise, and the products end as good as diagonal: at α = 1e{SMALLEST} \
entries
off the diagonal have {100 * off[0]:.1g}% of the Frobenius norm of W_K W_Qᵀ at the end, and \
{100 * off[1]:.1g}% of that
of W_V W_Oᵀ. The steps at
α = 1e{SMALLEST} come in much the order of the diagonal stages ({in_order:.0%} of pairs), at times \
that differ by
{typical:.1%} in the median of {matched} steps, by {against:.0%} at most. Full weights are earlier \
in {earlier} of them: what
noise there is off the diagonal adds to σ₁(G).

{step_table(found, of_flow, stages, predicted)}

"Extrapolated": from the times at 1e{SECOND} and 1e{SMALLEST}, by t = T log(1/α) + const; where
two steps are close at one of them it means little. The k-th step of a product is set beside the
k-th diagonal stage of that product.
"""
    report.write(
        "validation/figure2_full_head.md",
        "Figure 2, full weights",
        body,
        module="validation.figure2_full_head",
        packages=("numpy", "scipy", "torch"),
    )


if __name__ == "__main__":
    main()
