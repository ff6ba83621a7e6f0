"""A GPU beside the CPU: field, Hessian columns, a batch of training runs, and the same stages.

    python -m validation.benchmarks.gpu

Writes docs/benchmarks/gpu.md with the device's name where there is a CUDA device; says so and
writes nothing where there is none.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from dynalyze import Initialization, predict_stages
from dynalyze.datasets import toy_head
from dynalyze.models import AttentionHead, DiagonalTransformer, TorchModel
from dynalyze.training import DiagonalHead, train_many
from validation import report

COMMAND = "validation.benchmarks.gpu"
ROUNDS = 10
RUNS = 64
STEPS = 50


def seconds_of(action: Callable[[], object], device: str, rounds: int = ROUNDS) -> float:
    """Median seconds, the device's queue emptied before and after."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    action()
    times = []
    for _ in range(rounds):
        wait()
        begun = time.perf_counter()
        action()
        wait()
        times.append(time.perf_counter() - begun)
    return median(times)


def same_stages(device: str) -> str:
    """A sentence on the stages of one transformer on CPU and device; an error if they differ."""
    rng = np.random.default_rng(0)
    transformer = DiagonalTransformer(4, n_layers=2, n_heads=2, bases="random", rng=0)
    X, y = rng.standard_normal((2, 64, 6, 4))
    cpu, gpu = (
        predict_stages(
            TorchModel(transformer, transformer.products, device=place), (X, y), max_stages=6
        )
        for place in ("cpu", device)
    )
    if not (
        np.array_equal(cpu.coordinates, gpu.coordinates) and np.array_equal(cpu.signs, gpu.signs)
    ):
        raise RuntimeError(f"stages differ: {cpu.coordinates} and {gpu.coordinates}")
    error = np.max(np.abs(gpu.times / cpu.times - 1))
    return (
        f"Both predict the same {cpu.n_stages} stages of a two-layer, two-head diagonal "
        f"transformer in float64, times equal to {error:.0e}."
    )


def rows_of(device: str, n_samples: int) -> list[list[str]]:
    """Field, all Hessian columns and a batch of runs of the toy head, CPU against device."""
    data = toy_head(n_samples=n_samples, rng=0)
    head = DiagonalHead(50)
    theta = np.random.default_rng(1).standard_normal(100)
    every = np.arange(100)
    kernel = AttentionHead(50).bind((data.X, data.y))
    inits = [Initialization.gaussian(100, log10_alpha=-2, rng=seed) for seed in range(RUNS)]
    bound = {
        place: TorchModel(head, head.products, device=place).bind((data.X, data.y))
        for place in ("cpu", device)
    }
    for objective in bound.values():
        np.testing.assert_allclose(objective.field(theta), kernel.field(theta), atol=1e-11)

    def both(action: Callable[[str], object], rounds: int = ROUNDS) -> tuple[float, float]:
        cpu, gpu = (
            seconds_of(lambda: action(place), place, rounds)  # noqa: B023 (called at once)
            for place in ("cpu", device)
        )
        return cpu, gpu

    measured = {
        "field": both(lambda place: bound[place].field(theta)),
        "100 Hessian columns": both(lambda place: bound[place].hessian_columns(theta, every), 3),
        f"{RUNS} training runs, {STEPS} steps": both(
            lambda place: train_many(
                head, (data.X, data.y), inits, lr=0.01, steps=STEPS, device=place
            ),
            3,
        ),
    }
    in_numba = {
        "field": seconds_of(lambda: kernel.field(theta), "cpu"),
        "100 Hessian columns": seconds_of(lambda: kernel.hessian_columns(theta, every), "cpu", 3),
    }
    return [
        [
            str(n_samples),
            name,
            f"{1e3 * in_numba[name]:.2f}" if name in in_numba else "–",
            f"{1e3 * cpu:.2f}",
            f"{1e3 * gpu:.2f}",
            f"{cpu / gpu:.1f}",
        ]
        for name, (cpu, gpu) in measured.items()
    ]


def main() -> None:
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured, and docs/benchmarks/gpu.md is as it was")
        return
    device = "cuda"
    rows = [row for n_samples in (1000, 20_000) for row in rows_of(device, n_samples)]
    header = ["samples", "", "AttentionHead, ms", "torch CPU, ms", "GPU, ms", "torch CPU / GPU"]
    body = f"""
Device: {torch.cuda.get_device_name()}; {torch.get_num_threads()} CPU threads. Float64, medians.

{same_stages(device)}

The toy head, 10 tokens of 50 features:

{report.table(header, rows)}
"""
    report.write(
        "benchmarks/gpu.md",
        "PyTorch models on a GPU",
        body,
        module=COMMAND,
        packages=("numpy", "torch"),
    )


if __name__ == "__main__":
    main()
