"""What generality costs: the head through `TorchModel` beside its own kernel.

    python -m validation.benchmarks.torch_model

Everything is timed in one run on one thread, in interleaved rounds, because the speed of a shared
machine drifts. Writes docs/benchmarks/torch_model.md.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import numpy as np
import torch

from dynalyze import predict_stages
from dynalyze.datasets import toy_head
from dynalyze.models import AttentionHead
from dynalyze.training import DiagonalHead
from validation import report

COMMAND = "validation.benchmarks.torch_model"
D = 50
ROUNDS = 15
SMALL = ((4, 60, 4), (8, 200, 5))  # products / 2, samples, tokens


def interleaved(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every action in every round."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            begun = time.perf_counter()
            action()
            times[name].append(1e3 * (time.perf_counter() - begun))
    return times


def evaluations() -> str:
    data = toy_head(rng=0)
    kernel = AttentionHead(D, threads=1).bind((data.X, data.y))
    through_torch = DiagonalHead(D).bind((data.X, data.y))
    theta = np.random.default_rng(1).standard_normal(2 * D)
    rows = []
    for label, indices in (("loss and field", []), ("1 column", [7]), ("8 columns", range(46, 54))):
        columns = np.array(list(indices), dtype=np.int64)
        difference = np.max(np.abs(through_torch.field(theta) - kernel.field(theta)))
        if columns.size:
            ours = through_torch.hessian_columns(theta, columns)
            difference = np.max(np.abs(ours - kernel.hessian_columns(theta, columns)))
            actions: dict[str, Callable[[], object]] = {
                "kernel": partial(kernel.hessian_columns, theta, columns),
                "torch": partial(through_torch.hessian_columns, theta, columns),
            }
        else:
            actions = {
                "kernel": partial(kernel.value_and_field, theta),
                "torch": partial(through_torch.value_and_field, theta),
            }
        if difference > 1e-12:
            raise RuntimeError(f"{label}: the two differ by {difference:.1e}")
        times = interleaved(actions, ROUNDS)
        low = {name: min(values) for name, values in times.items()}
        middle = {name: median(values) for name, values in times.items()}
        rows.append(
            [
                label,
                f"{low['kernel']:.2f} ({middle['kernel']:.2f})",
                f"{low['torch']:.1f} ({middle['torch']:.1f})",
                f"{low['torch'] / low['kernel']:.0f}",
                f"{difference:.0e}",
            ]
        )
    header = ["", "AttentionHead, ms", "TorchModel, ms", "ratio", "largest difference"]
    return report.table(header, rows)


def by_hand(d: int, X: np.ndarray, y: np.ndarray) -> tuple[Callable, Callable]:
    """The head's loss and field, and its Hessian columns, as one writes them for it alone."""
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)

    def gradient(theta: np.ndarray, graph: bool) -> tuple[torch.Tensor, ...]:
        point = torch.from_numpy(theta.copy()).requires_grad_()
        p, q = point.split(d)
        output = torch.softmax((inputs * p) @ inputs.mT, -1) @ inputs * q
        loss = 0.5 * (output - targets).square().sum((1, 2)).mean()
        return point, loss.detach(), torch.autograd.grad(loss, point, create_graph=graph)[0]

    def value_and_field(theta: np.ndarray) -> tuple[float, np.ndarray]:
        _, loss, slope = gradient(theta, False)
        return float(loss), -slope.numpy()

    def columns(theta: np.ndarray, indices: np.ndarray) -> np.ndarray:
        point, _, slope = gradient(theta, True)
        rows = [torch.autograd.grad(slope[i], point, retain_graph=True)[0] for i in indices]
        return torch.stack(rows).numpy().T.copy()

    return value_and_field, columns


def small_heads() -> str:
    rows = []
    for d, samples, tokens in SMALL:
        data = toy_head(n_samples=samples, n_tokens=tokens, teacher="dense", d_model=d, rng=0)
        ours = DiagonalHead(d).bind((data.X, data.y))
        value_and_field, columns = by_hand(d, data.X, data.y)
        theta = np.random.default_rng(1).standard_normal(2 * d)
        few, every = np.arange(4), np.arange(2 * d)
        if np.max(np.abs(ours.hessian_columns(theta, every) - columns(theta, every))) > 1e-12:
            raise RuntimeError("the two differ")
        for label, mine, theirs in (
            ("loss and field", ours.value_and_field, value_and_field),
            (
                "4 columns",
                partial(ours.hessian_columns, indices=few),
                partial(columns, indices=few),
            ),
            (
                f"{2 * d} columns",
                partial(ours.hessian_columns, indices=every),
                partial(columns, indices=every),
            ),
        ):
            actions = {"ours": partial(mine, theta), "by hand": partial(theirs, theta)}
            times = {name: min(ms) for name, ms in interleaved(actions, 10 * ROUNDS).items()}
            rows.append(
                [
                    f"d = {d}, {samples} × {tokens}",
                    label,
                    f"{times['ours']:.2f}",
                    f"{times['by hand']:.2f}",
                    f"{times['ours'] / times['by hand']:.2f}",
                ]
            )
    header = ["head, samples × tokens", "", "TorchModel, ms", "by hand, ms", "ratio"]
    return report.table(header, rows)


def predictions() -> str:
    rng = np.random.default_rng(2)
    X = rng.standard_normal((200, 5, 8))
    y = AttentionHead(8).predict(rng.standard_normal(16), X)
    actions = {
        "kernel": lambda: predict_stages(AttentionHead(8, threads=1), (X, y), max_stages=8),
        "torch": lambda: predict_stages(DiagonalHead(8), (X, y), max_stages=8),
    }
    kernel, ours = (action() for action in actions.values())
    if not np.array_equal(kernel.coordinates, ours.coordinates):
        raise RuntimeError("the two predict different stages")
    times = {name: min(values) / 1e3 for name, values in interleaved(actions, 3).items()}
    error = np.max(np.abs(ours.times / kernel.times - 1))
    return (
        f"Eight stages of a head with 16 products, 200 samples of 5 tokens: "
        f"{times['kernel']:.2f} s with the kernel, {times['torch']:.2f} s through torch "
        f"({times['torch'] / times['kernel']:.1f} times as long); the same products and signs in "
        f"the same order, times equal to {error:.0e}."
    )


def main() -> None:
    torch.set_num_threads(1)
    body = f"""
One thread, float64. Times are the smallest of interleaved rounds, medians in parentheses; ratios
are of the smallest.

## The head's objective: its own kernel, and the same module through torch

1000 samples, 10 tokens, 50 features.

{evaluations()}

{predictions()}

## Small modules, beside a function written for them alone

`DiagonalHead` through `TorchModel`, and the same loss in torch without parameters, hooks, chunks or
checks: PyTorch's own dispatch is the limit of what `TorchModel` can be. Its module also multiplies
by v = 1. Columns of passes below 128 kB are batched, which a loop by hand is not.

{small_heads()}
"""
    report.write(
        "benchmarks/torch_model.md",
        "PyTorch models",
        body,
        module=COMMAND,
        packages=("numpy", "numba", "torch"),
    )


if __name__ == "__main__":
    main()
