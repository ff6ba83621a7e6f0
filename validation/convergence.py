"""Predicted against simulated jump times as α → 0, on five models."""

import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import sympy as sp
import torch

from dynalyze import Comparison, Initialization, compare, datasets, predict_stages, simulate
from dynalyze.errors import StagesOverlapWarning
from dynalyze.models import AttentionHead, DiagonalLinear, DiagonalTransformer, SymbolicModel
from dynalyze.models.protocol import Objective
from validation import _toy, report

LOG10_ALPHAS = (-2, -4, -8, -20, -50, -100, -300, -1000)
TOLERANCE = 1e-8
METHOD = "LSODA"  # SciPy's: the prediction's orbits are followed by another integrator


class Problem(NamedTuple):
    """A model on its data, and how far it is followed."""

    name: str
    make: Callable[[], Objective]
    threshold: float  # |θ| of a jump
    max_stages: int | None
    weight_seed: int


def diabetes() -> Objective:
    data = datasets.diabetes()
    return DiagonalLinear(10).bind((data.X, data.y))


def small_head() -> Objective:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((200, 5, 8))
    head = AttentionHead(8, threads=1)
    return head.bind((X, head.predict(rng.standard_normal(16), X)))


def transformer() -> Objective:
    X = np.random.default_rng(0).standard_normal((40, 4, 3))
    # Heads with the same basis are interchangeable, and tie.
    model = DiagonalTransformer(3, n_layers=2, n_heads=2, bases="random", rng=0)
    with torch.no_grad():
        y = model(torch.from_numpy(X)).numpy()
    return model.bind((X, y))


def symbolic() -> Objective:
    x = sp.symbols("x0:3")
    a, b, c, d = sp.symbols("a b c d")
    model = SymbolicModel(
        sp.tanh(a * x[0] + b * x[1]) + c * x[2] + d * x[0] * x[2], inputs=x, products=[a, b, c, d]
    )
    X = np.random.default_rng(0).standard_normal((300, 3))
    y = np.tanh(1.2 * X[:, 0] - 0.6 * X[:, 1]) + 0.4 * X[:, 2] - 0.3 * X[:, 0] * X[:, 2]
    return model.bind((X, y))


PROBLEMS = (
    Problem("diabetes, linear", diabetes, 0.003, None, 1),
    Problem("small head (d = 8)", small_head, 0.02, None, 3),
    Problem("the paper's head (d = 50)", _toy.objective, 0.05, 15, 1),
    Problem("transformer (2 layers, 2 heads, d = 3)", transformer, 0.02, 5, 0),
    Problem("symbolic: tanh(a x + b y) + c z + d x z", symbolic, 0.02, None, 0),
)


def run(problem: Problem) -> list[Comparison]:
    objective = problem.make()
    limit = predict_stages(objective, max_stages=problem.max_stages)
    u0, v0 = np.random.default_rng(problem.weight_seed).standard_normal((2, objective.n_products))
    found = []
    for log10_alpha in LOG10_ALPHAS:
        init = Initialization(u0, v0, log10_alpha=log10_alpha)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StagesOverlapWarning)
            prediction = predict_stages(objective, init=init, max_stages=problem.max_stages)
        end = 1.05 * limit.times[-1] + 30 / init.log_inverse_alpha
        trajectory = simulate(
            objective, init=init, until_rescaled=end, tol=TOLERANCE, method=METHOD
        )
        if not trajectory.success:
            raise RuntimeError(f"{problem.name} at 1e{log10_alpha}: {trajectory.message}")
        found.append(compare(prediction, trajectory, threshold=problem.threshold))
    return found


def table(found: list[Comparison]) -> str:
    rows = []
    for comparison in found:
        errors, separated = comparison.relative_errors, comparison.separated
        rows.append(
            [
                f"1e{comparison.log10_alpha:.0f}",
                f"{np.count_nonzero(~np.isnan(comparison.measured))} of {comparison.n_stages}",
                _spread(comparison.relative_leading_errors),
                _spread(errors),
                str(np.count_nonzero(separated)),
                _spread(errors[separated]),
                str(len(comparison.inversions)),
            ]
        )
    header = ["α", "stages matched", "leading order", "at this α", "separated"]
    return report.table([*header, "at this α, separated", "pairs inverted"], rows)


def _spread(errors: np.ndarray) -> str:
    if errors.size == 0 or np.isnan(errors).all():
        return "—"
    return f"{np.nanmedian(errors):.0e} ({np.nanmax(errors):.0e})"


def draw(all_found: dict[str, list[Comparison]]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(all_found), figsize=(3.3 * len(all_found), 3.8), layout="constrained", sharey=True
    )
    for ax, (name, found) in zip(axes, all_found.items(), strict=True):
        x = np.array([-c.log10_alpha for c in found])
        for label, color, select in (
            ("leading order", "0.5", lambda c: c.relative_leading_errors),
            ("at this α", "C3", lambda c: c.relative_errors),
        ):
            values = [select(c)[~np.isnan(select(c))] for c in found]
            known = np.array([v.size > 0 for v in values])
            kept = [v for v in values if v.size]
            ax.plot(x[known], [np.median(v) for v in kept], color=color, marker="o", label=label)
            ax.plot(x[known], [v.max() for v in kept], color=color, linestyle=":", marker=".")
        guide = 0.3 * x[0] / x
        ax.plot(x, guide, color="black", linewidth=0.6, linestyle="--", label="∝ 1 / log(1/α)")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(1e-10, 10)
        ax.set_xlabel("log10(1/α)")
        ax.set_title(name, fontsize=9)
    axes[0].set_ylabel("relative error of jump times")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(report.DOCS / "validation" / "convergence.png", dpi=100)
    plt.close(figure)


def main() -> None:
    mpl.use("Agg")
    all_found, sections = {}, []
    for problem in PROBLEMS:
        started = time.monotonic()
        all_found[problem.name] = run(problem)
        print(f"{problem.name}: {time.monotonic() - started:.0f} s", flush=True)
        sections.append(f"## {problem.name}\n\n{table(all_found[problem.name])}")
    draw(all_found)
    body = f"""
Relative error of the predicted jump times, |θ| = threshold, against the simulated flow
({METHOD}, step tolerance {TOLERANCE:g}), from the same u0 and v0 at every α. The leading order
T log(1/α) is the paper's theory; "at this α" adds the initial weights, the duration of
transitions and the drift during them. Medians over stages, the worst in brackets (dots in the
plot).

![errors](convergence.png)

The leading order's error falls like 1 / log(1/α), as an offset of O(1) must. The prediction at a
given α falls like a power of α, once transitions no longer overlap, down to about 1e-5 of
flow time, which the tolerances of the simulation and of the prediction's orbits leave. "separated"
counts the stages before the first overlap: what is right there to many digits can be off by an
O(1) of flow time behind a near-tie.

{(chr(10) + chr(10)).join(sections)}
"""
    report.write(
        "validation/convergence.md",
        "Jump times as α → 0",
        body,
        module=__spec__.name,
        packages=("numpy", "scipy", "numba", "torch", "sympy"),
    )


if __name__ == "__main__":
    main()
