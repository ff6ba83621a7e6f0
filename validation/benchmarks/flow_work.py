"""Work of the flow's integrators at equal error of the crossing times.

Work is counted in gradients; Hessian columns count as what they cost in gradients, measured in
the same run. The error is the largest, in flow time, over all crossings of |θ_j| = 0.05.
Diffrax needs its own environment: ``python -m validation.benchmarks.flow_work --diffrax PYTHON``.
"""

import argparse
import json
import subprocess
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
from scipy.integrate import solve_ivp
from scipy.signal import find_peaks

from dynalyze import Initialization, Trajectory, datasets, simulate
from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.models import AttentionHead
from dynalyze.models.counted import CountedObjective
from dynalyze.models.protocol import Objective
from validation import report
from validation.benchmarks._gradient_descent import Crossings, descend, torch_step_seconds

THRESHOLD = 0.05
TARGETS = (1e-2, 1e-3, 1e-5)
METHODS = ("surrogate", "CVODE", "LSODA", "BDF", "Radau")
FINEST = 1e-9
GROWTH_TOL = 1e-3
SECONDS_PER_RUN = 300.0

Prices: TypeAlias = tuple[IntArray, FloatArray]
"""Numbers of Hessian columns, ascending, and what so many cost in gradients."""


class Counting(CountedObjective):
    """Objective that prices fields and Hessian columns in gradients.

    Losses are free: the checks after steps evaluate them, the steps do not.
    """

    def __init__(self, objective: Objective, prices: Prices) -> None:
        super().__init__(objective)
        self.prices = prices
        self.gradients = 0
        self.work = 0.0

    def field(self, theta: FloatArray) -> FloatArray:
        """Field, priced at one."""
        self.gradients += 1
        self.work += 1
        return super().field(theta)

    def hessian_columns(self, theta: FloatArray, indices: IntArray) -> FloatArray:
        """Columns, at the price of so many."""
        self.work += float(np.interp(len(indices), *self.prices)) if len(indices) else 0.0
        return super().hessian_columns(theta, indices)


@dataclass(frozen=True)
class Problem:
    """A head with its data, and how far to follow it."""

    name: str
    d: int
    tokens: int
    samples: int
    horizon: float  # rescaled time
    alphas: tuple[int, ...]
    all_methods: tuple[int, ...]  # α at which SciPy's methods run as well
    ratio: float  # of tolerances tried one after another
    objective: Objective = field(repr=False)
    data: tuple[FloatArray, FloatArray] = field(repr=False)

    def methods(self, log10_alpha: int) -> tuple[str, ...]:
        """Methods that run at this α."""
        return METHODS if log10_alpha in self.all_methods else METHODS[:2]

    def init(self, log10_alpha: int) -> Initialization:
        """Gaussian initialization, the same for all methods."""
        return Initialization.gaussian(2 * self.d, log10_alpha=log10_alpha, rng=5)


def problem(
    name: str,
    d: int,
    tokens: int,
    samples: int,
    *,
    horizon: float,
    alphas: tuple[int, ...],
    all_methods: tuple[int, ...],
    ratio: float = 10**-0.5,
) -> Problem:
    data = datasets.toy_head(n_samples=samples, n_tokens=tokens, teacher="dense", d_model=d, rng=0)
    objective = AttentionHead(d, threads=1).bind((data.X, data.y))
    return Problem(
        name,
        d,
        tokens,
        samples,
        horizon=horizon,
        alphas=alphas,
        all_methods=all_methods,
        ratio=ratio,
        objective=objective,
        data=(data.X, data.y),
    )


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def prices(objective: Objective) -> tuple[Prices, float]:
    """Cost of k Hessian columns in gradients, and of a gradient in seconds."""
    theta = 0.3 * np.random.default_rng(1).standard_normal(objective.n_products)
    gradient = median_seconds(lambda: objective.field(theta), 60)
    fewer = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < objective.n_products]
    counts = np.array([*fewer, objective.n_products])
    cost = [
        median_seconds(partial(objective.hessian_columns, theta, np.arange(k)), 15) for k in counts
    ]
    return (counts, np.array(cost) / gradient), gradient


def crossing_error(reference: Crossings, found: Crossings) -> float:
    """Largest difference of matched crossings; ∞ where one is missing or extra."""
    times: list = [defaultdict(list), defaultdict(list)]
    for store, (t, coordinate, direction) in zip(times, (reference, found), strict=True):
        for key in zip(t, coordinate.tolist(), direction.tolist(), strict=True):
            store[key[1:]].append(key[0])
    if {k: len(v) for k, v in times[0].items()} != {k: len(v) for k, v in times[1].items()}:
        return np.inf
    return max(float(np.max(np.abs(np.subtract(times[0][k], times[1][k])))) for k in times[0])


@dataclass(frozen=True)
class Outcome:
    """One run."""

    tol: float
    error: float
    gradients: int
    hessians: int
    work: float
    seconds: float


def run(
    p: Problem, costs: Prices, log10_alpha: int, method: str, tol: float
) -> tuple[Crossings | None, Counting, float]:
    """Crossings, None if the run did not come to its end; the work, and CPU seconds."""
    counting = Counting(p.objective, costs)
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trajectory = simulate(
            counting,
            init=p.init(log10_alpha),
            until_rescaled=p.horizon,
            method=method,
            tol=tol,
            max_seconds=SECONDS_PER_RUN,
            max_steps=10**6,
        )
    seconds = time.process_time() - started
    crossings = trajectory.crossings(THRESHOLD) if trajectory.success else None
    return crossings, counting, seconds


def crossings_at(p: Problem, costs: Prices, log10_alpha: int, method: str, tol: float) -> Crossings:
    """Crossings of a run that must come to its end."""
    crossings = run(p, costs, log10_alpha, method, tol)[0]
    if crossings is None:
        raise RuntimeError(f"{p.name}, α = 1e{log10_alpha}: {method} at {tol:.0e} did not finish")
    return crossings


def ladder(
    p: Problem, costs: Prices, log10_alpha: int, method: str, reference: Crossings
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    tol = 10**-0.5
    while tol > FINEST and method in p.methods(log10_alpha):
        crossings, counting, seconds = run(p, costs, log10_alpha, method, tol)
        error = np.inf if crossings is None else crossing_error(reference, crossings)
        outcomes.append(
            Outcome(tol, error, counting.gradients, counting.nhev, counting.work, seconds)
        )
        if error <= TARGETS[-1] or seconds > SECONDS_PER_RUN / 2:
            break
        tol *= p.ratio
    return outcomes


def cheapest(outcomes: Iterable[Outcome], target: float) -> Outcome | None:
    return min((o for o in outcomes if o.error <= target), key=lambda o: o.work, default=None)


def cell(outcomes: list[Outcome], target: float) -> str:
    if not outcomes:
        return "not run"
    outcome = cheapest(outcomes, target)
    if outcome is None:
        return f"not reached: {min(o.error for o in outcomes):.1e}"
    return (
        f"{outcome.work:.0f} ({outcome.gradients} + {outcome.hessians} H, {outcome.seconds:.2f} s)"
    )


def separate_transitions(p: Problem, trajectory: Trajectory) -> int:
    """Number of times that the loss begins to fall fast, ten times faster than before and after."""
    theta = trajectory.theta_at(trajectory.t)
    rates = [2 * np.abs(row) @ p.objective.field(row) ** 2 for row in theta]
    falling = np.log10(np.maximum(rates, 1e-300))
    ends = [falling.min() - 9]
    return len(find_peaks(np.concatenate([ends, falling, ends]), prominence=1)[0])


def growth_rows(problems: list[Problem]) -> str:
    """Work of the library's own method over α, at one tolerance, and what there was to do."""
    rows = []
    for p in problems:
        for log10_alpha in (-4, -8, -20, -100, -1000, -10000):
            trajectory = simulate(
                p.objective,
                init=p.init(log10_alpha),
                until_rescaled=p.horizon,
                method="surrogate",
                tol=GROWTH_TOL,
            )
            n = separate_transitions(p, trajectory)
            rows.append(
                [
                    p.name,
                    f"1e{log10_alpha}",
                    str(trajectory.stats.nfev),
                    str(trajectory.stats.nhev),
                    str(n),
                    f"{trajectory.stats.nfev / n:.0f}",
                ]
            )
    header = ["problem", "α", "gradients", "H", "separate transitions", "gradients for each"]
    return report.table(header, rows)


def raw_weights(p: Problem, log10_alpha: int, reference: Crossings) -> str:
    """LSODA on (u, v), with tolerances tied to α."""
    init = p.init(log10_alpha)
    alpha = 10.0**log10_alpha
    if alpha == 0:
        return "the start is 0 and never moves"
    n, calls = 2 * p.d, [0]

    def rate(_, w):
        calls[0] += 1
        g = p.objective.field(w[:n] * w[n:])
        return np.concatenate([w[n:] * g, w[:n] * g])

    start = alpha * np.concatenate([init.u0, init.v0])
    end = p.horizon * init.log_inverse_alpha
    best = "no run within 1e-2"
    for rtol in (1e-4, 1e-6, 1e-8):
        calls[0] = 0
        solution = solve_ivp(
            rate, (0, end), start, method="LSODA", rtol=rtol, atol=rtol * alpha, dense_output=True
        )
        times = np.unique(np.concatenate([solution.t, np.linspace(0, end, 20_000)]))
        if solution.sol is None:
            raise RuntimeError(f"LSODA has no dense output: {solution.message}")
        values = solution.sol(times)
        theta = np.abs(values[:n] * values[n:]).T - THRESHOLD
        rows, columns = np.nonzero(theta[:-1] * theta[1:] < 0)
        part = theta[rows, columns] / (theta[rows, columns] - theta[rows + 1, columns])
        t = times[rows] + part * (times[rows + 1] - times[rows])
        direction = np.sign(theta[rows + 1, columns]).astype(int)
        error = crossing_error(reference, (t, columns, direction))
        text = "crossings missing or extra" if error == np.inf else f"error {error:.1e}"
        best = f"rtol {rtol:.0e}: {calls[0]} gradients, {text}"
        if error <= 1e-2:
            break
    return best


def method_tables(p: Problem, costs: Prices, gradient: float) -> tuple[str, dict[int, Crossings]]:
    rows, ratios = [], []
    references: dict[int, Crossings] = {}
    own_work: dict[tuple[int, float], float] = {}
    for log10_alpha in p.alphas:
        references[log10_alpha] = reference = crossings_at(p, costs, log10_alpha, "LSODA", 1e-10)
        own = crossings_at(p, costs, log10_alpha, "surrogate", 1e-8)
        agreement = crossing_error(reference, own)
        by_method = {m: ladder(p, costs, log10_alpha, m, reference) for m in METHODS}
        for target in TARGETS:
            best = {m: cheapest(by_method[m], target) for m in METHODS[:2]}
            rows.append(
                [
                    f"1e{log10_alpha}",
                    f"{target:.0e}",
                    *(cell(by_method[m], target) for m in METHODS),
                ]
            )
            mine, theirs = best["surrogate"], best["CVODE"]
            if mine:
                own_work[log10_alpha, target] = mine.work
            if mine and theirs:
                ratios.append(
                    [
                        f"1e{log10_alpha}",
                        f"{target:.0e}",
                        f"{mine.work / theirs.work:.2f}",
                        f"{mine.gradients / theirs.gradients:.2f}",
                        f"{mine.error / mine.tol:.1f}",
                        f"{theirs.error / theirs.tol:.0f}",
                        f"{agreement:.1e}",
                    ]
                )
        print(p.name, log10_alpha, [rows[-3:], ratios[-3:]], flush=True)
    smallest = ", ".join(
        f"{own_work[-1000, target] / own_work[-20, target]:.2f} at {target:.0e}"
        for target in TARGETS
    )
    counts, price = costs
    listed = ", ".join(f"{k}: {c:.1f}" for k, c in zip(counts, price, strict=True))
    text = (
        f"## {p.name}\n\nd = {p.d}, {p.tokens} tokens, {p.samples} samples, dense teacher, up to "
        f"rescaled time {p.horizon:g}. A gradient takes {1e3 * gradient:.3f} ms; columns of the "
        f"Hessian cost, in gradients, {listed}.\n\nWork in gradients (gradients + calls for "
        "Hessian columns, CPU seconds) of the cheapest run within the error:\n\n"
        + report.table(["α", "error", *METHODS], rows)
        + "\n\n`surrogate` against CVODE, and each one's error in units of its tolerance; the "
        "reference is LSODA at tol 1e-10, the last column how far `surrogate` at 1e-8 is from "
        "it:\n\n"
        + report.table(
            [
                "α",
                "error",
                "ratio of work",
                "of gradients alone",
                "error/tol",
                "CVODE's",
                "references differ by",
            ],
            ratios,
        )
        + f"\n\nWork of `surrogate` at α = 1e-1000 over that at 1e-20, by error: {smallest}."
    )
    return text, references


def diffrax_rows(python: str | None, p: Problem, references: dict[int, Crossings]) -> str:
    if python is None:
        return "Diffrax was not run: give `--diffrax PYTHON`, an interpreter that has it."
    rows = []
    for log10_alpha in (a for a in p.alphas if a >= -100):
        init = p.init(log10_alpha)
        request = {
            "X": p.data[0].tolist(),
            "y": p.data[1].tolist(),
            "log_abs_c": init.log_abs_c.tolist(),
            "z0": init.z0.tolist(),
            "end": p.horizon * init.log_inverse_alpha,
            "threshold": THRESHOLD,
        }
        answer = subprocess.run(
            [python, "-m", "validation.benchmarks._diffrax_flow"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=True,
        )
        for result in json.loads(answer.stdout):
            error = "–"
            if result["crossings"] is not None:
                t, i, sign = result["crossings"]
                worst = crossing_error(
                    references[log10_alpha],
                    (np.array(t), np.array(i, dtype=int), np.array(sign, dtype=int)),
                )
                error = "crossings missing or extra" if worst == np.inf else f"{worst:.1e}"
            rows.append(
                [
                    f"1e{log10_alpha}",
                    result["solver"],
                    result["tol"],
                    result["steps"],
                    result["gradients"],
                    f"{result['seconds']:.2f}",
                    f"{result['compile']:.1f}",
                    error,
                    result["status"],
                ]
            )
    header = ["α", "solver", "tol", "steps", "gradients", "seconds", "compiling", "error", "status"]
    return report.table(header, rows)


def descent_rows(problems: list[Problem], references: dict[str, dict[int, Crossings]]) -> str:
    rows = []
    for p in problems:
        per_step = torch_step_seconds(*p.data)
        for log10_alpha in (-4, -8):
            init = p.init(log10_alpha)
            end = p.horizon * init.log_inverse_alpha
            limit = 200_000 if p.d < 20 else 2_000
            step, steps, whole, crossings = descend(
                p.objective, init, end=end, threshold=THRESHOLD, most_steps=limit
            )
            error = "–"
            if whole:
                worst = crossing_error(references[p.name][log10_alpha], crossings)
                error = "crossings missing or extra" if worst == np.inf else f"{worst:.1e}"
            rows.append(
                [
                    p.name,
                    f"1e{log10_alpha}",
                    f"{step:.3g}",
                    f"{end / step:.0f}" + ("" if whole else f" (extrapolated from {steps})"),
                    f"{1e3 * per_step:.2f}",
                    f"{per_step * end / step:.0f}",
                    error,
                ]
            )
    header = ["problem", "α", "step", "steps", "ms each", "seconds", "error"]
    return report.table(header, rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--diffrax", metavar="PYTHON", help="interpreter that has diffrax")
    options = parser.parse_args(arguments)
    alphas = (-4, -8, -20, -100, -1000)
    problems = [
        problem("(A)", 8, 5, 200, horizon=20.0, alphas=alphas, all_methods=alphas),
        problem("(B)", 50, 10, 1000, horizon=9.0, alphas=alphas, all_methods=(-4, -20)),
    ]
    texts = []
    references: dict[str, dict[int, Crossings]] = {}
    for p in problems:
        text, references[p.name] = method_tables(p, *prices(p.objective))
        texts.append(text)
    small = problems[0]
    raw = report.table(
        ["α", "LSODA on (u, v), relative tolerance and α times it as absolute one"],
        [[f"1e{a}", raw_weights(small, a, references[small.name][a])] for a in small.alphas],
    )
    body = "\n\n".join(
        [
            "All methods of the first two sections solve dz/dt = g(θ(z)), CVODE and SciPy's with "
            "analytic Jacobians of the active columns. " + (__doc__ or "").split("\n\n")[1].strip(),
            "CPU seconds are those of the whole call of `simulate`. Where a gradient takes less "
            "than a millisecond they favour CVODE at small errors: `surrogate` pays for its few "
            "gradients with linear algebra of its own.",
            *texts,
            "## From 1e-4 to 1e-10000\n\n"
            f"`surrogate` at tol {GROWTH_TOL:g}. A plateau costs one step, however long it is; the "
            "cost is that of the transitions. At larger α they run into one another, so that there "
            "are fewer to resolve: counted here are the peaks of −dL/dt that stand out by a factor "
            "of ten. Once they are separate the work for each stays the same, and so does the "
            "whole. So the work at 1e-1000 is more than at 1e-20 where transitions have separated "
            "between the two: few on (A), most of them on (B).\n\n" + growth_rows(problems),
            f"## Raw weights, {small.name}\n\n{raw}",
            f"## Diffrax, {small.name}\n\n"
            + diffrax_rows(options.diffrax, small, references[small.name]),
            "## PyTorch gradient descent at its largest stable step\n\nThe step is 1/λ of the "
            "final Hessian in balanced weights; iterates are computed by the library's own "
            "gradient, times are PyTorch's.\n\n" + descent_rows(problems, references),
        ]
    )
    report.write(
        "benchmarks/flow_work.md",
        "Work of the flow's integrators",
        body,
        module="validation.benchmarks.flow_work",
        packages=("numpy", "scipy", "numba", "scikit-sundae", "torch"),
    )


if __name__ == "__main__":
    main()
