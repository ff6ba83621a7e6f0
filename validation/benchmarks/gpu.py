"""A GPU beside the CPU: field, Hessian columns, a batch of training runs, and the same stages.

    python -m validation.benchmarks.gpu

Writes docs/benchmarks/gpu.md with the device's name where there is a CUDA device; says so and
writes nothing where there is none.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal, TypeAlias

import numpy as np
import torch

from dynalyze import Initialization, predict_stages
from dynalyze.datasets import toy_head
from dynalyze.models import AttentionHead, DiagonalTransformer, TorchModel
from dynalyze.training import DiagonalHead, train_many
from validation import report

COMMAND = "validation.benchmarks.gpu"
ROUNDS = 10
Place: TypeAlias = tuple[str, Literal["float64", "float32"]]  # device and precision
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


def milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.2f}"


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
    places: list[Place] = [("cpu", "float64"), (device, "float64"), (device, "float32")]
    bound = {
        (where, precision): TorchModel(head, head.products, device=where, precision=precision).bind(
            (data.X, data.y)
        )
        for where, precision in places
    }
    expected = kernel.field(theta)
    errors = {}
    for place, objective in bound.items():
        error = np.abs(objective.field(theta) - expected).max() / np.abs(expected).max()
        if not error <= max(1e-12, 20 * objective.rounding):
            raise RuntimeError(f"the field on {place} is off by {error:.1e}")
        errors[place] = error

    def times(
        action: Callable[[Place], object], at: Sequence[Place], rounds: int = ROUNDS
    ) -> list[float]:
        return [
            seconds_of(lambda: action(place), place[0], rounds)  # noqa: B023 (called at once)
            for place in at
        ]

    def runs(place: Place) -> object:
        where, precision = place
        return train_many(
            head, (data.X, data.y), inits, lr=0.01, steps=STEPS, device=where, precision=precision
        )

    measured = {
        "field": times(lambda place: bound[place].field(theta), places),
        "100 Hessian columns": times(
            lambda place: bound[place].hessian_columns(theta, every), places, 3
        ),
        f"{RUNS} training runs, {STEPS} steps": times(runs, places, 3),
    }
    in_numba = {
        "field": seconds_of(lambda: kernel.field(theta), "cpu"),
        "100 Hessian columns": seconds_of(lambda: kernel.hessian_columns(theta, every), "cpu", 3),
    }
    return [
        [
            str(n_samples),
            name,
            *(milliseconds(t) for t in (in_numba.get(name), *seconds)),
            f"{seconds[0] / seconds[1]:.1f}",
            f"{errors[places[2]]:.0e}" if name == "field" else "–",
        ]
        for name, seconds in measured.items()
    ]


def main() -> None:
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured, and docs/benchmarks/gpu.md is as it was")
        return
    device = "cuda"
    rows = [row for n_samples in (1000, 20_000) for row in rows_of(device, n_samples)]
    header = [
        "samples", "", "AttentionHead, ms", "torch CPU, ms", "GPU, ms", "GPU in float32, ms",
        "torch CPU / GPU", "error of float32",
    ]  # fmt: skip
    body = f"""
Device: {torch.cuda.get_device_name()}; {torch.get_num_threads()} CPU threads. Medians; float64
but for one column.

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
