"""Steps of `train` on the library's kernels, through PyTorch, and in a loop written by hand.

    python -m validation.benchmarks.training

Everything is timed in one run on one thread, in interleaved rounds, because the speed of a shared
machine drifts. Writes docs/benchmarks/training.md.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from dynalyze import Initialization
from dynalyze.models import AttentionHead
from dynalyze.training import DiagonalHead, Recording, train, train_many
from validation import report

COMMAND = "validation.benchmarks.training"
SIZES = ((20, 4, 4), (100, 8, 8), (1000, 10, 50))  # samples, tokens, features
RULES: dict[str, dict[str, Any]] = {
    "gradient descent": {},
    "momentum 0.5": {"optimizer_options": {"momentum": 0.5}},
    "SGD, batches of 10": {"optimizer": "sgd", "batch_size": 10, "rng": 0},
}
LEARNING_RATE = 0.002
ROUNDS = 3
SECONDS = 0.3  # of each run that is timed, about
RECORDING = Recording(every=1000)  # and at every change of a product by 0.02
RUNS = 8  # trained at once

Data: TypeAlias = tuple[np.ndarray, np.ndarray]


def half_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss "squared" as a function, which PyTorch trains with."""
    return 0.5 * ((output - target) ** 2).flatten(1).sum(1)


def by_hand(
    data: Data, init: Initialization, *, steps: int, rng: int = 0, **rule: Any
) -> dict[str, np.ndarray]:
    """The loop as one writes it: autograd and torch.optim.SGD, with nothing recorded."""
    X, y = map(torch.from_numpy, data)
    d = X.shape[2]
    alpha = 10.0**init.log10_alpha
    names = ("w_k", "w_q", "w_v", "w_o")
    parts = (init.u0[:d], init.v0[:d], init.u0[d:], init.v0[d:])
    weights = [torch.from_numpy(alpha * part).requires_grad_() for part in parts]
    w_k, w_q, w_v, w_o = weights
    options = rule.get("optimizer_options", {})
    optimizer = torch.optim.SGD(weights, lr=LEARNING_RATE, **options)
    size, generator = rule.get("batch_size", len(X)), np.random.default_rng(rng)
    order = np.zeros(0, dtype=np.int64)
    for _ in range(steps):
        x, target = X, y
        if size < len(X):
            order = order if len(order) else generator.permutation(len(X))
            x, target, order = X[order[:size]], y[order[:size]], order[size:]
        output = torch.softmax((x * (w_k * w_q)) @ x.mT, -1) @ x * (w_v * w_o)
        loss = 0.5 * ((output - target) ** 2).sum() / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: w.detach().numpy() for name, w in zip(names, weights, strict=True)}


def seconds_per_step(actions: dict[str, Callable[[int], Any]]) -> dict[str, float]:
    """Smallest seconds of a step of each action, which is called with a number of steps."""
    lengths, best = {}, dict.fromkeys(actions, np.inf)
    for name, action in actions.items():
        action(2)
        spent = {}
        for steps in (2, 22):
            begun = time.perf_counter()
            action(steps)
            spent[steps] = time.perf_counter() - begun
        lengths[name] = int(np.clip(20 * SECONDS / max(1e-9, spent[22] - spent[2]), 10, 20_000))
    for _ in range(ROUNDS):
        for name, action in actions.items():
            spent = {}
            for steps in (1, 1 + lengths[name]):
                begun = time.perf_counter()
                action(steps)
                spent[steps] = time.perf_counter() - begun
            steps = lengths[name]
            best[name] = min(best[name], (spent[1 + steps] - spent[1]) / steps)
    return best


def problem(n_samples: int, n_tokens: int, d: int) -> Data:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((n_samples, n_tokens, d))
    return X, AttentionHead(d).predict(0.5 * rng.standard_normal(2 * d), X)


def with_steps(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function with the last argument as its number of steps."""
    *others, steps = args
    return function(*others, steps=steps, **options)


def one_by_one(
    head: DiagonalHead, data: Data, inits: list[Initialization], steps: int, **options: Any
) -> None:
    for init in inits:
        train(head, data, init=init, steps=steps, **options)


def single_runs() -> str:
    rows = []
    for shape in SIZES:
        d = shape[2]
        data, init = problem(*shape), Initialization.gaussian(2 * d, log10_alpha=-1, rng=1)
        for name, rule in RULES.items():
            options = {"init": init, "lr": LEARNING_RATE, "recording": RECORDING, **rule}

            trained = partial(with_steps, train, DiagonalHead(d), data, **options)
            hand = {"data": data, "init": init, **rule}
            ends = [
                trained(100).weights,
                trained(100, loss=half_square).weights,
                by_hand(steps=100, **hand),
            ]
            difference = max(
                np.max(np.abs(end[weight] - ends[0][weight])) for end in ends for weight in end
            )
            if difference > 1e-12:
                raise RuntimeError(f"{shape}, {name}: the runs differ by {difference:.1e}")
            times = seconds_per_step(
                {
                    "kernels": trained,
                    "torch": partial(trained, loss=half_square),
                    "by hand": partial(with_steps, by_hand, **hand),
                }
            )
            rows.append(
                [
                    " × ".join(map(str, shape)),
                    name,
                    *(f"{1e6 * value:.0f}" for value in times.values()),
                    f"{times['torch'] / times['kernels']:.0f}",
                    f"{times['by hand'] / times['kernels']:.0f}",
                    f"{times['torch'] / times['by hand']:.1f}",
                    f"{difference:.0e}",
                ]
            )
    header = ["samples × tokens × features", "rule", "kernels, µs", "train in torch, µs"]
    header += ["by hand, µs", "torch / kernels", "by hand / kernels", "torch / by hand"]
    return report.table([*header, "largest difference"], rows)


def many_runs() -> str:
    rows = []
    for shape in SIZES:
        d = shape[2]
        data = problem(*shape)
        inits = [Initialization.gaussian(2 * d, log10_alpha=-1, rng=seed) for seed in range(RUNS)]
        options: dict[str, Any] = {"lr": LEARNING_RATE, "recording": RECORDING}
        alone = partial(one_by_one, DiagonalHead(d), data, inits, **options)
        at_once = partial(with_steps, train_many, DiagonalHead(d), data, inits, **options)
        times = seconds_per_step(
            {
                "train, kernels": alone,
                "train_many, kernels": at_once,
                "train, torch": partial(alone, loss=half_square),
                "train_many, torch": partial(at_once, loss=half_square),
            }
        )
        per_run = [f"{1e6 * value / RUNS:.0f}" for value in times.values()]
        one, many, torch_one, torch_many = times.values()
        ratios = [f"{one / many:.1f}", f"{torch_one / torch_many:.1f}", f"{torch_many / many:.0f}"]
        rows.append([" × ".join(map(str, shape)), *per_run, *ratios])
    header = ["samples × tokens × features", "train, kernels, µs", "train_many, kernels, µs"]
    header += ["train, torch, µs", "train_many, torch, µs", "train / train_many, kernels"]
    return report.table([*header, "train / train_many, torch", "train_many, torch / kernels"], rows)


def main() -> None:
    torch.set_num_threads(1)
    body = f"""
Diagonal heads from α = 0.1, float64, one thread. Microseconds of a step, the smallest of {ROUNDS}
interleaved rounds: the time of a run of about {SECONDS} s less that of a run of one step, so that
what is done once does not count. `train` records, watches for divergence and for Ctrl-C; the loop
by hand does nothing but step (autograd and `torch.optim.SGD`). Through torch `train` goes here
because the loss is given as a function. Weights after 100 steps were compared first.

## One run

{single_runs()}

## {RUNS} runs, one after another and at once

Microseconds per run and step, gradient descent on all samples.

{many_runs()}
"""
    report.write(
        "benchmarks/training.md",
        "Training diagonal heads",
        body,
        module=COMMAND,
        packages=("numpy", "numba", "torch"),
    )


if __name__ == "__main__":
    main()
