"""The paper's toy head: predicted stages on the axis of its Figures 2 and 6–8."""

import matplotlib as mpl
import numpy as np

from dynalyze import StagePrediction, datasets, predict_stages
from dynalyze.models import AttentionHead
from validation import report

FIGURE_INITIAL_LOSS = 0.0894  # read off Figure 2
SEEDS = range(5)


def predict(seed: int) -> StagePrediction:
    data = datasets.toy_head(rng=seed)
    return predict_stages(AttentionHead(50), (data.X, data.y), loss="mse")


def stage_table(prediction: StagePrediction) -> str:
    rows = []
    for k in range(prediction.n_stages):
        i = int(prediction.coordinates[k])
        rows.append(
            [
                k + 1,
                f"`{prediction.product_names[i]}`",
                f"{prediction.times[k]:.3f}",
                f"{prediction.times[k] * np.log(10):.1f}",
                f"{prediction.gaps[k] * np.log(10):.2g}",
                f"{prediction.theta[k + 1, i]:.3f}",
                f"{prediction.theta[-1, i]:.3f}",
                f"{datasets.sparse_teacher()[i]:.3f}",
                f"{prediction.losses[k + 1]:.2e}",
            ]
        )
    header = ["stage", "product", "T", "T · ln 10 (figure's axis)", "runner-up later by (figure)"]
    header += ["value then", "value at the end", "teacher", "loss after"]
    return report.table(header, rows)


def main() -> None:
    mpl.use("Agg")
    predictions = {seed: predict(seed) for seed in SEEDS}
    first = predictions[SEEDS[0]]
    ax = first.plot()
    ax.set_title("Paper's toy head, predicted from the data (T, not the figure's axis)")
    ax.figure.get_figure(root=True).savefig(report.DOCS / "validation" / "toy_head.png", dpi=120)
    per_seed = [
        [
            seed,
            f"{p.losses[0]:.4f}",
            f"{p.n_stages} ({p.status})",
            ", ".join(f"{t * np.log(10):.0f}" for t in p.times[:8]),
            " ".join(_short(p.product_names[i]) for i in p.coordinates[:8]),
            f"{p.stats.nfev} + {p.stats.nhcol}",
            f"{p.stats.seconds:.1f}",
        ]
        for seed, p in predictions.items()
    ]
    body = f"""
1000 samples of 10 Gaussian tokens, d = 50, labelled by the 10-sparse teacher whose values were
read off the paper's figures; loss `"mse"`. The paper's axis is flow time / log10(1/α), so it
shows T · ln 10. Its data are not published: ours are fresh, by seed.

Initial loss: {first.losses[0]:.4f} (seed 0); the paper's Figure 2 starts at \
{FIGURE_INITIAL_LOSS}. The sampling error of a fresh draw is seen from the seeds below.

## Stages, seed 0

{stage_table(first)}

The figure's plot ends at 1000: stages after that are beyond it.

![stages](toy_head.png)

## Other draws of the data

{
        report.table(
            [
                "seed",
                "initial loss",
                "stages",
                "first eight times × ln 10",
                "first eight products",
                "gradients + Hessian columns",
                "seconds",
            ],
            per_seed,
        )
    }
"""
    report.write("validation/toy_head.md", "The paper's toy head", body, module=__spec__.name)


def _short(name: str) -> str:
    return name.replace("W_K W_Q", "KQ").replace("W_V W_O", "VO")


if __name__ == "__main__":
    main()
