"""Complete stage paths of linear networks against scikit-learn's Lasso path by LARS."""

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import lars_path

from dynalyze import StagePrediction, predict_stages
from dynalyze.models import DiagonalLinear
from validation import report

SIZES = ((150, 300), (600, 300), (500, 1000), (2000, 1000))  # (samples, features)
REPEATS = 3  # in turn, of which the median ratio counts


def problem(n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian features, a dense Gaussian teacher, noise of 5 standard deviations of a weight."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, p))
    return X, X @ rng.standard_normal(p) + 5 * rng.standard_normal(n)


def ours(X: np.ndarray, y: np.ndarray) -> StagePrediction:
    """All stages of the diagonal linear network."""
    return predict_stages(DiagonalLinear(X.shape[1]), (X, y))


def lars(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients at all knots of the Lasso path, (p, K + 1)."""
    return lars_path(X, y, method="lasso", max_iter=10**6)[2]


def cpu_seconds(run: Callable[..., object], *args: np.ndarray) -> float:
    """CPU time of one call."""
    started = time.process_time()
    run(*args)
    return time.process_time() - started


def peak_megabytes(run: Callable[..., object], *args: np.ndarray) -> float:
    """Largest memory of one call beyond its arguments, the result included."""
    tracemalloc.start()
    run(*args)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    small = problem(20, 5)
    ours(*small), lars(*small)  # imports
    rows = []
    for n, p in SIZES:
        X, y = problem(n, p)
        pairs = [(cpu_seconds(ours, X, y), cpu_seconds(lars, X, y)) for _ in range(REPEATS)]
        mine, theirs = np.median(pairs, axis=0)
        ratio = np.median([a / b for a, b in pairs])
        memory = peak_megabytes(ours, X, y), peak_megabytes(lars, X, y)
        prediction = ours(X, y)
        knots = lars(X, y).shape[1] - 1
        departures = sum(map(len, prediction.departed))
        rows.append(
            [
                f"{n} × {p}",
                prediction.n_stages,
                departures,
                knots,
                f"{mine:.2f}",
                f"{theirs:.2f}",
                f"{ratio:.1f}",
                f"{memory[0]:.0f}",
                f"{memory[1]:.0f}",
                f"{memory[0] / memory[1]:.1f}",
            ]
        )
    header = ["samples × features", "stages", "departures", "knots of LARS", "ours, s", "LARS, s"]
    header += ["ratio", "ours, MB", "LARS, MB", "ratio"]
    body = f"""
`predict_stages` of the diagonal linear network, all stages, and `sklearn.linear_model.lars_path`,
all knots of the Lasso path, on the same Gaussian data with a dense teacher. CPU seconds, medians
of {REPEATS} runs in turn; memory is the largest that a call takes beyond its arguments, its result
included. The two paths differ, and so do their numbers of steps: a stage keeps θ, b and g of its
plateau, a knot of LARS one vector.

{report.table(header, rows)}
"""
    report.write(
        "benchmarks/linear_path.md",
        "Complete paths of linear networks",
        body,
        module=__spec__.name,
        packages=("numpy", "scipy", "scikit-learn"),
    )


if __name__ == "__main__":
    main()
