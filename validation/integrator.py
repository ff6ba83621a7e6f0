"""Error of the library's integrator in units of its tolerance, on random problems.

Linear models, attention heads and formulas with random data, α from 1e-1 to 1e-1000. The reference
is LSODA of SciPy in log coordinates, restarted every few units of z so that its tolerance is
absolute and tight. The error of a crossing of |θ_i| with a level is |g_i| |Δt|: the error of z_i
there. The error of the end is the largest of any z_i at the last time. References are good to some
1e-11, those of heads at α = 1e-300 and below to some 1e-10, which the rows of `tol` 1e-10 include.
"""

import argparse
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy as sp
from scipy.integrate import LSODA
from scipy.optimize import brentq

from dynalyze import Initialization, simulate
from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.models import AttentionHead, DiagonalLinear, SymbolicModel
from dynalyze.models.protocol import Objective
from validation import report

KINDS = ("linear", "head", "formula")
ALPHAS = (-1, -2, -4, -8, -20, -100, -300, -1000)
TOLS = (1e-4, 1e-6, 1e-8, 1e-10)
FIRST = 6000  # seed of the first problem; the method was tuned on smaller ones
PROBLEMS = 100
SECONDS = 120  # of a problem's reference and runs
TIGHT = 3e-13
MOVED = 20.0  # change of z after which the reference is restarted
LEVEL = 0.05  # of the crossings, in units of the largest |θ|


@dataclass(frozen=True)
class Problem:
    """A random problem: a loss, initial weights, and how far to follow the flow."""

    seed: int
    kind: str
    init: Initialization = field(repr=False)
    objective: Objective = field(repr=False)
    end: float  # flow time


def linear(rng: np.random.Generator) -> Objective:
    p, n = int(rng.integers(2, 25)), int(rng.integers(8, 60))
    X = rng.standard_normal((n, p))
    if rng.random() < 0.3:
        X = 0.3 * X + rng.standard_normal((n, 1))
    y = X @ (rng.standard_normal(p) * (rng.random(p) < 0.6)) + 0.3 * rng.standard_normal(n)
    return DiagonalLinear(p).bind((X, y))


def head(rng: np.random.Generator) -> Objective:
    d, tokens, n = int(rng.integers(2, 7)), int(rng.integers(3, 6)), int(rng.integers(30, 120))
    model = AttentionHead(d, threads=1)
    X = rng.standard_normal((n, tokens, d))
    y = model.predict(rng.standard_normal(2 * d), X)
    return model.bind((X, y + 0.1 * rng.standard_normal(y.shape)))


x = sp.symbols("x0:4")
a, b, c, d, e, f = sp.symbols("a b c d e f")
FORMULAS = (
    (sp.tanh(a * x[0] + b * x[1]) + c * x[2] + d * x[0] * x[3], (a, b, c, d)),
    (a * x[0] + b * x[1] + c * sp.sin(x[2] + d * x[3]) + e * x[0] * x[1], (a, b, c, d, e)),
    ((a * x[0] + b * x[1]) / (1 + (c * x[2] + d) ** 2) + e * x[3] + f * x[0], (a, b, c, d, e, f)),
)


def formula(rng: np.random.Generator) -> Objective:
    h, products = FORMULAS[int(rng.integers(len(FORMULAS)))]
    model = SymbolicModel(h, inputs=x, products=products)
    X = rng.standard_normal((int(rng.integers(20, 60)), 4))
    teacher = sp.lambdify([x, products], h)
    y = teacher(X.T, rng.standard_normal(len(products)))
    return model.bind((X, y + 0.1 * rng.standard_normal(len(X))))


def problem(seed: int) -> Problem:
    """Random problem of a seed."""
    rng = np.random.default_rng([20261121, seed])
    kind = KINDS[seed % len(KINDS)]
    make: dict[str, Callable[[np.random.Generator], Objective]] = {
        "linear": linear,
        "head": head,
        "formula": formula,
    }
    objective = make[kind](rng)
    p = objective.n_products
    init = Initialization.gaussian(p, log10_alpha=float(rng.choice(ALPHAS)), rng=rng)
    fastest = float(np.max(np.abs(objective.field(np.zeros(p)))))
    return Problem(
        seed, kind, init, objective, rng.uniform(3, 8) * init.log_inverse_alpha / fastest
    )


@dataclass(frozen=True)
class Reference:
    """Crossings of a tight run, and z at its end."""

    t: FloatArray  # (n,)
    coordinate: IntArray  # (n,)
    direction: IntArray  # (n,)
    speed: FloatArray  # (n,), |g_i| there
    z_end: FloatArray  # (p,)


def reference(q: Problem, tol: float, level: float, solver: Any = LSODA) -> Reference:
    """Crossings of |θ| with `level` by a solver of SciPy, restarted as z moves."""
    log_c = q.init.log_abs_c
    z0, t = q.init.z0, 0.0
    limit = 0.5 * np.arcsinh(np.exp(np.minimum(np.log(2 * level) - log_c, 600)))
    far = np.log(2 * level) - log_c > 600
    limit[far] = 0.5 * (np.log(4 * level) - log_c[far])

    def theta(z: FloatArray) -> FloatArray:
        size = np.abs(z)
        return np.sign(z) * np.exp(2 * size + log_c - np.log(4)) * -np.expm1(-4 * size)

    found: list[tuple[float, int, int, float]] = []
    while t < q.end:
        origin = z0

        def rate(_: float, y: FloatArray, origin: FloatArray = origin) -> FloatArray:
            return q.objective.field(np.clip(theta(origin + y), -1e20, 1e20))

        def jac(_: float, y: FloatArray, origin: FloatArray = origin) -> FloatArray:
            z = origin + y
            size = np.abs(z)
            slope = np.exp(2 * size + log_c - np.log(2)) * (1 + np.exp(-4 * size))
            columns = q.objective.hessian_columns(theta(z), np.arange(len(z)))
            return -columns * np.minimum(slope, 1e20)

        run = solver(
            rate, t, np.zeros(len(z0)), q.end, rtol=2.3e-14, atol=tol, jac=jac, max_step=1e200
        )
        if solver is not LSODA:
            run.newton_tol = 1e-3
        while run.status == "running" and np.max(np.abs(run.y)) < MOVED:
            before = origin + run.y
            run.step()
            if run.status == "failed":
                raise RuntimeError(f"the reference failed at t = {run.t} on problem {q.seed}")
            after = origin + run.y
            crossed = np.flatnonzero((np.abs(before) < limit) != (np.abs(after) < limit))
            if crossed.size:
                dense = run.dense_output()
                for i in crossed:
                    target = np.sign(after[i] if abs(after[i]) > abs(before[i]) else before[i])
                    root = brentq(
                        lambda s, i=i, v=target * limit[i] - origin[i], y=dense: y(s)[i] - v,
                        run.t_old,
                        run.t,
                        xtol=1e-300,
                        rtol=1e-15,
                    )
                    g = rate(root, dense(root))[i]
                    found.append(
                        (root, int(i), 1 if abs(after[i]) > abs(before[i]) else -1, abs(g))
                    )
        z0, t = origin + run.y, run.t
    found.sort()
    rows = np.array(found).reshape(-1, 4)
    coordinate, direction = rows[:, 1].astype(int), rows[:, 2].astype(int)
    return Reference(rows[:, 0], coordinate, direction, rows[:, 3], z0)


def crossing_errors(
    ref: Reference, t: FloatArray, coordinate: IntArray, direction: IntArray
) -> FloatArray | None:
    """|g_i| |Δt| of each crossing; None where one is missing or extra."""
    errors: list[float] = []
    keys = {*zip(ref.coordinate, ref.direction, strict=True)}
    for i, sign in keys | {*zip(coordinate, direction, strict=True)}:
        ours = t[(coordinate == i) & (direction == sign)]
        mask = (ref.coordinate == i) & (ref.direction == sign)
        if len(ours) != mask.sum():
            return None
        errors += list(np.abs(ours - ref.t[mask]) * ref.speed[mask])
    return np.array(errors)


def worst_errors(q: Problem, tols: tuple[float, ...]) -> FloatArray | None:
    """Largest error of a crossing, and of z at the end, at each tolerance; shape (len(tols), 2).

    None for a problem without a crossing.
    """
    rough = simulate(q.objective, init=q.init, until=q.end, method="LSODA", tol=1e-4)
    level = LEVEL * float(np.max(np.abs(rough.theta)))
    ref = reference(q, TIGHT, level)
    if not ref.t.size:
        return None
    errors = []
    for tol in tols:
        trajectory = simulate(q.objective, init=q.init, until=q.end, tol=tol)
        found = crossing_errors(ref, *trajectory.crossings(level))
        ended = trajectory.t[-1] == q.end
        end = float(np.max(np.abs(trajectory.z[-1] - ref.z_end))) if ended else np.inf
        errors.append((np.inf if found is None else float(found.max()), end))
    return np.array(errors)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", action="store_true", help="draw docs/integrator.png alone")
    if parser.parse_args().picture:
        picture()
        return
    signal.signal(signal.SIGVTALRM, lambda *_: (_ for _ in ()).throw(TimeoutError))
    results: list[FloatArray] = []
    late, empty = [], []
    for seed in range(FIRST, FIRST + PROBLEMS):
        q = problem(seed)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = worst_errors(q, TOLS)
        except TimeoutError:
            late.append(seed)
            continue
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if result is None:
            empty.append(seed)
            continue
        results.append(result / np.array(TOLS)[:, None])
        row = " ".join(f"{a:.2f}/{b:.2f}" for a, b in results[-1])
        print(seed, q.kind, q.init.log10_alpha, q.objective.n_products, row, flush=True)
    errors = np.array(results)
    rows = [
        [
            f"{tol:.0e}",
            what,
            f"{np.median(column):.3f}",
            f"{np.quantile(column, 0.9):.2f}",
            f"{column.max():.1f}",
            f"{(column > 3).sum()} of {len(column)}",
        ]
        for tol, pair in zip(TOLS, np.moveaxis(errors, 0, -1), strict=True)
        for what, column in zip(("crossing", "end"), pair, strict=True)
    ]
    body = (
        f"{__doc__}\nSeeds {FIRST} … {FIRST + PROBLEMS - 1}. Left out are {len(empty)} problems "
        f"without a crossing, and {len(late)} that took more than {SECONDS} s of CPU, nearly all "
        "of it the reference's.\n\nLargest error of a problem in units of `tol`, over the problems:"
        "\n\n" + report.table(["tol", "at", "median", "90%", "largest", "above 3"], rows)
    )
    report.write(
        "validation/integrator.md", "What tol bounds", body, module="validation.integrator"
    )


def picture() -> None:
    """Draw the steps of one transition of a head."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from dynalyze.flow.steppers.surrogate.method import step
    from dynalyze.flow.steppers.surrogate.state import start

    q = problem(1)
    up, down = q.init.coordinates.log_amplitudes()
    units = np.ones(q.objective.n_products)
    setup, state = start(q.objective, up, down, units, 0.0, q.init.z0, 7e-6, 5)
    fig, (top, bottom) = plt.subplots(2, sharex=True, figsize=(8, 5), layout="constrained")
    while state.t < 0.6 * q.end:
        before = state
        state, path = step(setup, before, q.end)
        t, theta = before.t + path.t, setup.theta(before.z + path.y[:, :-1])
        top.plot(t, theta, color="0.6", linewidth=1)
        top.plot(t, theta, ".", color="C0", markersize=2)
        top.plot(t[-1:], theta[-1:], "o", color="C3", markersize=3)
        new = state.columns.matrix is not before.columns.matrix
        bottom.plot(t, path.y[:, -1], color="0.6", linewidth=1)
        bottom.plot(
            state.t, state.s, "s" if new else "o", color="C1" if new else "C3", markersize=4
        )
    top.set_ylabel("products θ")
    bottom.set_ylabel("arc length s")
    bottom.set_xlabel("flow time (red: gradients, squares: Hessian columns, dots: inner steps)")
    top.set_xlim(30, 0.6 * q.end)
    fig.savefig(report.DOCS / "integrator.png", dpi=110)


if __name__ == "__main__":
    main()
