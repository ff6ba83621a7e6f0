"""The paper's Figure 10: Assumption 4.4 on the toy head, by noise on newly active weights."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np

from dynalyze.checks import Perturbation, perturb
from validation import _perturbed, _toy, report

PAPER_TIMES = (202.5, 321.4, 356.8, 405.4, 486.5)
LONG = 8  # windows of the paper's length


def perturbed(times: Sequence[float], *, newly_active: bool) -> tuple[Perturbation, ...]:
    return perturb(
        _toy.run(_perturbed.ALPHA),
        times=np.array(times) * -_perturbed.ALPHA,
        newly_active=newly_active,
        sd=0.01,
        threshold=_perturbed.VISIBLE**0.5,
        window=LONG * _perturbed.WINDOW,
        rng=0,
    )


def table(found: Sequence[Perturbation]) -> str:
    rows = []
    for one, paper in zip(found, PAPER_TIMES, strict=True):
        distances = one.distances / np.abs(one.reference).max(axis=1)
        at = np.searchsorted(one.t, one.time + _perturbed.WINDOW * np.array([1, 2, 4]))
        rows.append(
            [
                f"{one.time / -_perturbed.ALPHA:.1f} ({paper})",
                _perturbed.which(one),
                f"{one.distances[0]:.1e}",
                *(f"{distances[k]:.0e}" for k in at),
                f"{distances[-1]:.0e}",
            ]
        )
    header = ["time, ours (paper)", "perturbed", "largest Δθ at once", "after 1000 epochs"]
    return report.table([*header, "2000", "4000", "8000"], rows)


def main() -> None:
    mpl.use("Agg")
    ours = _perturbed.arrivals()
    times = [float(ours[np.argmin(np.abs(ours - time))]) for time in PAPER_TIMES]
    new, everything = (perturbed(times, newly_active=flag) for flag in (True, False))
    _perturbed.draw(new, report.DOCS / "validation" / "figure10.png")
    soon = sum(
        one.distances[np.searchsorted(one.t, one.time + _perturbed.WINDOW)]
        < one.rtol * np.abs(one.reference).max()
        for one in new
    )
    late = sum(one.returned for one in new)
    late_of_all = sum(one.returned for one in everything)
    body = f"""
The run at α = 1e-32 is perturbed when some product first exceeds 1e-5, at ours of those times
that are nearest to the paper's five: its weights get N(0, 0.01²). The paper follows the run for
1000 epochs, which is a flow time of 200 or 6.25 of its axis (shaded); we go on to {LONG}
times that.

![Figure 10](figure10.png)

The new product alone perturbed; distances from there on relative to the largest product:

{table(new)}

All products above 1e-5 perturbed by as much:

{table(everything)}

## What the paper shows, and what we find

The paper: perturbed when a new product has just become visible, the run returns to the
unperturbed one. Here: after the paper's 1000 epochs {soon} of {len(new)} are within 5% of the
largest product of the next plateaus, the first because it is not visible yet; after {LONG}
times that {late} of {len(new)} ({late_of_all} with all products perturbed) are within 5% of the
largest at that time.

What the perturbation changes is when the new product activates, by log(size after / size before)
over 2|g| of flow time: both runs then reach the same next plateau, and differ only in between. At
the first time the product grows so slowly that 1000 epochs end before it is visible in either run.
Where products nearly tie the shift can exchange them, and then what is left of it shows at later
jumps too.

Reading "newly exceeds 1e-5" of the weights instead of the products gives times that fit the
paper's five less well (190, 319, 361, 392 and 449).
"""
    report.write("validation/figure10.md", "Figure 10: Assumption 4.4", body, module=__spec__.name)


if __name__ == "__main__":
    main()
