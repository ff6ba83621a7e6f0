"""Stage paths of linear networks, complete and their beginnings, against LARS of scikit-learn."""

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import lars_path

from dynalyze import StagePrediction, predict_stages
from dynalyze.models import DiagonalLinear
from validation import report

SIZES = ((150, 300), (600, 300), (500, 1000), (2000, 1000))  # (samples, features)
LARGE = ((2500, 5000), (5000, 10_000))
FIRST = 60  # stages, and knots
REPEATS = 3  # in turn, of which the median ratio counts


def problem(n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian features, a dense Gaussian teacher, noise of 5 standard deviations of a weight."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, p))
    return X, X @ rng.standard_normal(p) + 5 * rng.standard_normal(n)


def ours(X: np.ndarray, y: np.ndarray, first: int | None = None) -> StagePrediction:
    """All stages of the diagonal linear network, or the first ones."""
    return predict_stages(DiagonalLinear(X.shape[1]), (X, y), max_stages=first)


def lars(X: np.ndarray, y: np.ndarray, first: int = 10**6) -> np.ndarray:
    """Coefficients at all knots of the Lasso path, or at the first ones, (p, K + 1)."""
    return lars_path(X, y, method="lasso", max_iter=first)[2]


def cpu_seconds(run: Callable[..., object], *args: np.ndarray | int) -> float:
    """CPU time of one call."""
    started = time.process_time()
    run(*args)
    return time.process_time() - started


def peak_megabytes(run: Callable[..., object], *args: np.ndarray | int) -> float:
    """Largest memory of one call beyond its arguments, the result included."""
    tracemalloc.start()
    run(*args)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


@dataclass(frozen=True)
class Comparison:
    """Both paths on one problem: CPU seconds, their ratio, and megabytes."""

    seconds: tuple[float, float]
    ratio: float
    megabytes: tuple[float, float]

    def cells(self) -> list[str]:
        """Cells of a row."""
        mine, theirs = self.megabytes
        return [
            *(f"{seconds:.2f}" for seconds in self.seconds),
            f"{self.ratio:.1f}",
            f"{mine:.0f}",
            f"{theirs:.0f}",
            f"{mine / theirs:.1f}",
        ]


def compared(X: np.ndarray, y: np.ndarray, *first: int) -> Comparison:
    """Both in turn; their medians, and the median of the ratios."""
    pairs = [
        (cpu_seconds(ours, X, y, *first), cpu_seconds(lars, X, y, *first)) for _ in range(REPEATS)
    ]
    mine, theirs = np.median(pairs, axis=0)
    ratio = float(np.median([a / b for a, b in pairs]))
    megabytes = peak_megabytes(ours, X, y, *first), peak_megabytes(lars, X, y, *first)
    return Comparison((mine, theirs), ratio, megabytes)


def growth(found: dict[tuple[int, int], Comparison], over: float) -> tuple[float, float]:
    """Exponents e of p^e by which ours and LARS grow between the sizes with p = `over` n."""
    (n_1, p_1), (n_2, p_2) = (size for size in found if size[1] == over * size[0])
    ratios = np.divide(found[n_2, p_2].seconds, found[n_1, p_1].seconds)
    ours_grows, lars_grows = np.log(ratios) / np.log(p_2 / p_1)
    return float(ours_grows), float(lars_grows)


def main() -> None:
    small = problem(20, 5)
    ours(*small), lars(*small)  # imports
    rows, found = [], {}
    for n, p in SIZES:
        X, y = problem(n, p)
        found[n, p] = compared(X, y)
        prediction = ours(X, y)
        knots = lars(X, y).shape[1] - 1
        departures = sum(map(len, prediction.departed))
        rows.append([f"{n} × {p}", prediction.n_stages, departures, knots, *found[n, p].cells()])
    beginnings, large = [], {}
    for n, p in LARGE:
        X, y = problem(n, p)
        large[n, p] = compared(X, y, FIRST)
        beginnings.append([f"{n} × {p}", *large[n, p].cells()])
    wide, tall, first = (
        "ours as p^{:.1f}, LARS as p^{:.1f}".format(*growth(*paths))
        for paths in ((found, 2), (found, 0.5), (large, 2))
    )
    costs = ["ours, s", "LARS, s", "ratio", "ours, MB", "LARS, MB", "ratio"]
    header = ["samples × features", "stages", "departures", "knots of LARS", *costs]
    body = f"""
`predict_stages` of the diagonal linear network and `sklearn.linear_model.lars_path` (the Lasso
path) on the same Gaussian data with a dense teacher. CPU seconds, medians of {REPEATS} runs in
turn; memory is the largest that a call takes beyond its arguments, its result included. The two
paths differ, and so do their numbers of steps: a stage keeps θ, b and g of its plateau, a knot of
LARS one vector.

## Complete paths

{report.table(header, rows)}

Growth from the smaller to the larger: at n = p/2 {wide}; at n = 2p {tall}.
A step needs the correlations of all features with the residual, 2np multiplications, of which a
complete path at n = 2p takes about p: 4p³, for both. A path that grows as p^2.2 does not exist for
methods that look at all the data in every step.

## The first {FIRST} stages

{report.table(["samples × features", *costs], beginnings)}

Growth: {first}; the data themselves as p².
"""
    report.write(
        "benchmarks/linear_path.md",
        "Paths of linear networks",
        body,
        module=__spec__.name,
        packages=("numpy", "scipy", "scikit-learn"),
    )


if __name__ == "__main__":
    main()
