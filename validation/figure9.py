"""The paper's Figure 9: Assumption 4.3 on the toy head, by noise on all active weights."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np

from dynalyze import AssumptionReport, check_assumptions, predict_stages
from dynalyze.checks import Perturbation, perturb
from validation import _perturbed, _toy, report

PAPER_TIMES = (373.4, 541.2, 778.0, 862.4, 942.2)
STAGES = 12


def table(found: Sequence[Perturbation]) -> str:
    """Distance after the perturbation, and after fractions of the window."""
    rows = []
    for one in found:
        distances = one.distances
        at = [0, len(distances) // 10, len(distances) // 4, len(distances) // 2, -1]
        rows.append(
            [
                f"{one.time / -_perturbed.ALPHA:.1f}",
                _perturbed.which(one),
                *(f"{distances[k]:.1e}" for k in at),
                "yes" if one.returned else "no",
            ]
        )
    header = ["time (figure)", "perturbed", "largest Δθ at once", "after 10%", "25%", "50%"]
    return report.table([*header, "end of the window", "returned"], rows)


def assumptions() -> AssumptionReport:
    prediction = predict_stages(_toy.objective(), max_stages=STAGES)
    return check_assumptions(prediction, trials=4, largest_radius=0.5, rng=0)


def assumption_table(found: AssumptionReport) -> str:
    rows = []
    for unique, strict, robust in zip(
        found.nondegenerate, found.strict_minimum, found.noise_robust, strict=True
    ):
        rows.append(
            [
                unique.stage,
                f"{'holds' if unique.passed else '**near-tie**'}, gap {unique.margin:.1e}",
                f"1e{np.floor(unique.values['log10_alpha']):.0f}",
                f"{'holds' if strict.passed else '**fails**'}, c = {strict.margin:.2g}",
                f"{strict.values['residual']:.0e}",
                f"{'holds' if robust.passed else '**fails**'}, δ ≥ {robust.values['radius']:.2g}",
            ]
        )
    header = ["stage", "4.2: relative gap", "told apart below α", "4.3", "eigenvalue's residual"]
    return report.table([*header, "4.4"], rows)


def main() -> None:
    mpl.use("Agg")
    found = perturb(
        _toy.run(_perturbed.ALPHA),
        times=np.array(PAPER_TIMES) * -_perturbed.ALPHA,
        window=_perturbed.WINDOW,
        rng=0,
    )
    _perturbed.draw(found, report.DOCS / "validation" / "figure9.png")
    checked = assumptions()
    near = [v.message for v in checked.nondegenerate if not v.passed]
    listed = "\n".join(
        f"- stage {v.stage}: {v.message}." for v in checked.nondegenerate if not v.passed
    )
    body = f"""
The run at α = 1e-32 is perturbed at the paper's five times: every weight above 1e-5 gets
N(0, 0.05²), and the run goes on for 1000 epochs, which is a flow time of 200.

![Figure 9](figure9.png)

{table(found)}

## What the paper shows, and what we find

The paper: at five random epochs the perturbed run returns to the unperturbed one within 1000
epochs. Here: {sum(one.returned for one in found)} of {len(found)} are back within 5% of the
largest product at the end of the window, at the same times on the axis. Where the distance at
the end is largest, a slow direction of the plateau (small c below) has not relaxed yet.

The times are rescaled times, not iterations: a window of a few iterations would show nothing.

## All three assumptions, measured

The same from `check_assumptions`, stage by stage, without any run ({STAGES} stages; 4.4 with 4
random starts per stage, up to half the size of u):

{assumption_table(checked)}

{len(near)} of {STAGES} stages are not told apart from their runner-up by any α that a float holds:

{listed}

All assumptions hold at the first {checked.n_stages_passed} stages, before the first near-tie.
"""
    report.write("validation/figure9.md", "Figure 9: Assumption 4.3", body, module=__spec__.name)


if __name__ == "__main__":
    main()
