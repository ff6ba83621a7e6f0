"""The paper's Figure 2(a): the toy head's loss for six initialization scales, and its cost.

The flow of all six curves is simulated; gradient descent, which the paper ran, is timed in the
same process on the shortest of them and extrapolated to the others.
"""

import os
import statistics
import time
from pathlib import Path

import numpy as np

from dynalyze import Initialization, Trajectory, simulate
from dynalyze.datasets import toy_head
from dynalyze.models.attention_head import AttentionHead
from dynalyze.models.protocol import Objective
from validation import report

COMMAND = "validation.benchmarks.figure2a"
LOG10_ALPHAS = (-1, -2, -4, -8, -16, -32)
# The paper's axis is time / log10(1/α), and a unit of its time is a unit of flow time of the
# mean-squared error: its runs make 5000 log10(1/α) epochs, whose learning rates add up to 0.2.
FIGURE_END = 1000.0
RATE_PER_EPOCH = 0.2
EPOCHS_RUN = 500  # epochs of gradient descent that are run, at the largest α
METHODS = ("auto", "CVODE", "LSODA")
REPEATS = 3


def run(objective: Objective, log10_alpha: float, *, method: str, tol: float = 1e-6) -> Trajectory:
    """Flow up to the end of the figure, from the same u0 and v0 for every α."""
    u0, v0 = np.random.default_rng(1).standard_normal((2, objective.n_products))
    return simulate(
        objective,
        init=Initialization(u0, v0, log10_alpha=log10_alpha),
        until=FIGURE_END * -log10_alpha,
        method=method,
        tol=tol,
    )


def measure(objective: Objective) -> tuple[list[list[str]], list[Trajectory], np.ndarray]:
    """Rows of the table, trajectories of the default method, and the seconds they took.

    Seconds are a pair: sums over α of the smallest and of the median of the repeats.
    """
    rows, trajectories, names = [], [], {}
    totals = {method: np.zeros(2) for method in METHODS}
    for log10_alpha in LOG10_ALPHAS:
        reference = run(objective, log10_alpha, method="LSODA", tol=1e-9)
        for method in METHODS:
            seconds = []
            for _ in range(REPEATS):
                begun = time.perf_counter()
                trajectory = run(objective, log10_alpha, method=method)
                seconds.append(time.perf_counter() - begun)
            if trajectory.status != "finished":
                raise RuntimeError(f"{method} at 1e{log10_alpha}: {trajectory.message}")
            totals[method] += np.array([min(seconds), statistics.median(seconds)])
            if method == "auto":
                trajectories.append(trajectory)
            resolved = trajectory.configuration["method"]
            names[method] = f"{resolved} (default)" if method == "auto" else resolved
            rows.append(
                [
                    f"1e{log10_alpha}",
                    names[method],
                    str(trajectory.n_steps),
                    f"{trajectory.stats.nfev} + {trajectory.stats.nhcol}",
                    _crossing_error(trajectory, reference),
                    f"{min(seconds):.2f} ({statistics.median(seconds):.2f})",
                ]
            )
    rows += [
        ["all six", names[method], "", "", "", "**{:.1f}** ({:.1f})".format(*totals[method])]
        for method in METHODS
    ]
    return rows, trajectories, totals["auto"]


def _crossing_error(trajectory: Trajectory, reference: Trajectory) -> str:
    """Largest error of a time at which some |θ_i| crosses 0.05, on the figure's axis."""
    t, coordinate, direction = trajectory.crossings(0.05)
    exact, *which = reference.crossings(0.05)
    if not (np.array_equal(coordinate, which[0]) and np.array_equal(direction, which[1])):
        return "another order"
    error = np.max(np.abs(t - exact)) / -trajectory.init.log10_alpha
    return f"{error:.0e}"


def gradient_descent(
    X: np.ndarray, y: np.ndarray, epochs: int, *, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Full-batch gradient descent at α = 0.1: products at its end, and seconds of an epoch.

    Seconds are a pair: the smallest, over blocks of ten epochs, and the median.
    """
    import torch

    torch.set_num_threads(threads)
    log10_alpha = LOG10_ALPHAS[0]
    u0, v0 = np.random.default_rng(1).standard_normal((2, 2 * X.shape[2]))
    u, v = (torch.tensor(10.0**log10_alpha * w, requires_grad=True) for w in (u0, v0))
    inputs, targets = torch.tensor(X), torch.tensor(y)
    optimizer = torch.optim.SGD([u, v], lr=RATE_PER_EPOCH)
    seconds = []
    for _ in range(epochs):
        begun = time.perf_counter()
        optimizer.zero_grad()
        query_key, value_output = (u * v).chunk(2)
        attention = torch.softmax((inputs * query_key) @ inputs.transpose(1, 2), dim=-1)
        loss = torch.nn.functional.mse_loss((attention @ inputs) * value_output, targets)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    blocks = np.array(seconds[: epochs // 10 * 10]).reshape(-1, 10).mean(axis=1)
    return (u * v).detach().numpy(), np.array([blocks.min(), np.median(seconds)])


def draw(trajectories: list[Trajectory], path: Path) -> None:
    """Draw the losses for all α, and the products for the smallest."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (loss_ax, theta_ax) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    axis = np.linspace(0, FIGURE_END, 1500)
    for trajectory in trajectories:
        log10_alpha = trajectory.init.log10_alpha
        t = np.clip(axis * -log10_alpha, 0, trajectory.t[-1])
        loss_ax.plot(axis, trajectory.loss_at(t), label=f"α = 1e{log10_alpha:.0f}")
    theta = trajectory.theta_at(t)
    theta_ax.plot(axis, theta[:, :50], color="C0", lw=1)
    theta_ax.plot(axis, theta[:, 50:], color="C1", lw=1)
    theta_ax.lines[0].set_label("W_K W_Q")
    theta_ax.lines[50].set_label("W_V W_O")
    loss_ax.set(ylabel="loss", title="(a) loss")
    theta_ax.set(ylabel="product θ", title=f"(b) products at α = 1e{log10_alpha:.0f}")
    for ax in (loss_ax, theta_ax):
        ax.set_xlabel("time / log10(1/α)")
        ax.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    data = toy_head(rng=0)
    objective = AttentionHead(50).bind((data.X, data.y), loss="mse")
    begun = time.perf_counter()
    run(objective, LOG10_ALPHAS[0], method="auto", tol=1e-2)
    compiling = time.perf_counter() - begun
    rows, trajectories, ours = measure(objective)
    runs = {
        threads: gradient_descent(data.X, data.y, EPOCHS_RUN, threads=threads)
        for threads in (1, os.cpu_count() or 1)
    }
    threads = min(runs, key=lambda threads: runs[threads][1][0])
    products, seconds = runs[threads]
    off = np.max(np.abs(products - trajectories[0].theta_at(RATE_PER_EPOCH * EPOCHS_RUN)))
    epochs = sum(5000 * -log10_alpha for log10_alpha in LOG10_ALPHAS)
    minutes = epochs * seconds / 60
    results = report.table(
        [
            "α",
            "method",
            "steps",
            "gradients + Hessian columns",
            "crossing error, figure's axis",
            "seconds",
        ],
        rows,
    )
    body = f"""
Attention head with diagonal weights, d = 50, 1000 samples of 10 Gaussian tokens, the 10-sparse
teacher read off the paper's figures, mean-squared error; gradient flow up to
time / log10(1/α) = {FIGURE_END:.0f}, the end of the paper's axis, from the same Gaussian u0 and v0
for every α.

![loss for six α, and the products at the smallest](figure2a.png)

- **All six curves: {ours[0]:.1f} s** ({ours[1]:.1f} s) by the default method at its default
  tolerance, the kernels compiled (loading or compiling them took {compiling:.1f} s here; they are
  cached on disk).
- Gradient descent: {EPOCHS_RUN} of the {epochs} epochs were run (PyTorch, float64, full batch,
  learning rate {RATE_PER_EPOCH}, α = 0.1), at {1e3 * seconds[0]:.1f} ms ({1e3 * seconds[1]:.1f} ms)
  each with {threads} thread{"s" * (threads > 1)}, the faster of one and {os.cpu_count()}.
  **Extrapolated to all of them: {minutes[0]:.0f} minutes ({minutes[1]:.0f}), \
{60 * minutes[0] / ours[0]:.0f} times as long.** At the end of
  that run its products differ from the flow's by {off:.1g} at most.

{results}

Crossing error: largest error of a time at which some product crosses 0.05 in size, against LSODA
at tolerance 1e-9; the axis is {FIGURE_END:.0f} long. All methods have the same tolerance, 1e-6.
Seconds are the smallest of {REPEATS} runs, and of blocks of ten epochs; medians in parentheses.
"""
    report.write(
        "benchmarks/figure2a.md",
        "Figure 2(a) of the paper: six initialization scales of the toy head",
        body,
        module=COMMAND,
        packages=("numpy", "scipy", "numba", "scikit-sundae", "torch"),
    )
    draw(trajectories, report.DOCS / "benchmarks" / "figure2a.png")


if __name__ == "__main__":
    main()
