"""Heads with full weights: rank-one steps predicted from the data, and taken by the flow."""

import matplotlib as mpl
import numpy as np

from dynalyze import Initialization
from dynalyze.ranks import FullTrajectory, RankPrediction, predict_rank_steps, rank_steps
from dynalyze.ranks import simulate as simulate_full
from dynalyze.training import FullHead, train
from validation import report

HEAD = FullHead(4, 3)
SEEDS = range(6)
LOG10_ALPHA = -12.0
END = 2.5  # rescaled time
LEARNING_RATE = 0.02


def random_teacher(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """60 samples of 4 Gaussian tokens, labelled by a head with Gaussian matrices of full rank."""
    rng = np.random.default_rng(seed)
    d = HEAD.d_model
    X = rng.standard_normal((60, 4, d))
    key_query, value_output = (rng.standard_normal((d, d)) / np.sqrt(d) for _ in range(2))
    weights = np.exp(X @ key_query @ X.transpose(0, 2, 1))
    return X, weights / weights.sum(-1, keepdims=True) @ X @ value_output


def simulated(seed: int) -> tuple[RankPrediction, FullTrajectory]:
    data = random_teacher(seed)
    init = Initialization.gaussian(HEAD.n_weights, log10_alpha=LOG10_ALPHA, rng=seed + 1)
    flow = simulate_full(HEAD, data, init, until=END * init.log_inverse_alpha)
    return predict_rank_steps(HEAD, data), flow


def rows_of(seed: int, prediction: RankPrediction, flow: FullTrajectory) -> list[list[str]]:
    """One row per predicted step, matched with the flow's step of the same product and rank."""
    steps = rank_steps(flow)
    middles = np.append((steps.t[1:] + steps.t[:-1]) / 2, flow.t[-1])
    losses, times = flow.loss_at(middles), steps.t / flow.init.log_inverse_alpha
    place = {
        step: k for k, step in enumerate(zip(steps.products, steps.ranks.tolist(), strict=True))
    }
    rows = []
    for k, (product, rank) in enumerate(
        zip(prediction.products, prediction.ranks.tolist(), strict=True)
    ):
        if prediction.times[k] > END:
            break
        found = place.get((product, rank))
        rows.append(
            [
                str(seed) if k == 0 else "",
                f"{product} to rank {rank}",
                f"{prediction.times[k]:.3f}",
                "–" if found is None else f"{times[found]:.3f}",
                "–" if found is None else str(found + 1),
                f"{prediction.losses[k + 1]:.5f}",
                "–" if found is None else f"{losses[found]:.5f}",
            ]
        )
    return rows


def descent_agrees(seed: int) -> str:
    """A sentence on gradient descent from a larger scale, against the flow from the same one."""
    data = random_teacher(seed)
    init = Initialization.gaussian(HEAD.n_weights, log10_alpha=-6.0, rng=seed + 1)
    until = END * init.log_inverse_alpha
    run = train(HEAD, data, init=init, lr=LEARNING_RATE, until=until)
    flow, descent = (rank_steps(one) for one in (simulate_full(HEAD, data, init, until=until), run))
    same = flow.products == descent.products and np.array_equal(flow.ranks, descent.ranks)
    late = np.max(np.abs(descent.t / flow.t - 1)) if same else np.nan
    return (
        f"Gradient descent (learning rate {LEARNING_RATE}, α = 1e-6, seed {seed}) takes "
        f"{'the same' if same else 'other'} {len(descent.t)} steps as the flow from the same "
        f"weights, at most {100 * late:.1f}% apart in time."
    )


def draw(prediction: RankPrediction, flow: FullTrajectory, name: str) -> None:
    figure = flow.plot().figure.get_figure(root=True)
    for ax in figure.axes:
        for time in prediction.times[prediction.times < END]:
            ax.axvline(time, color="0.6", lw=0.8, ls=":")
    figure.savefig(report.DOCS / "validation" / name, dpi=120)


def main() -> None:
    mpl.use("Agg")
    results = {seed: simulated(seed) for seed in SEEDS}
    rows = [row for seed, (p, flow) in results.items() for row in rows_of(seed, p, flow)]
    header = ["seed", "step", "T predicted", "T of the flow", "its place", "loss predicted"]
    header.append("loss of the flow")
    body = f"""
The theory of the paper is about diagonal weights. With full weights W_K, W_Q, W_V, W_O it observes
steps of rank one; `predict_rank_steps` predicts them from the data, by a recursion with singular
directions in place of coordinates (an extension of this library, to leading order).

d = {HEAD.d_model}, {HEAD.d_head} columns, 60 samples of 4 tokens, random teachers of full rank; \
flow of all weights from
a Gaussian initialization at α = 1e{LOG10_ALPHA:.0f}. A step of the flow is a singular value that
crosses 0.05, so that it is later or earlier than the leading order by O(1 / log(1/α)). The flow's
loss is taken halfway to the next step: where two steps nearly coincide there is no plateau to see.
Steps predicted after T = {END} are left out.

{report.table(header, rows)}

{descent_agrees(SEEDS[0])}

Dotted: predicted times. Seed {SEEDS[0]}:

![loss and singular values](full_head.png)
"""
    draw(*results[SEEDS[0]], "full_head.png")
    report.write(
        "validation/full_head.md",
        "Heads with full weights: steps of rank one",
        body,
        module="validation.full_head",
        packages=("numpy", "scipy", "torch"),
    )


if __name__ == "__main__":
    main()
