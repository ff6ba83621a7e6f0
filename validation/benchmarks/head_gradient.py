"""Speed of the attention head's gradient and Hessian columns, against what else computes them.

    python -m validation.benchmarks.head_gradient

The problem is the paper's toy head: 1000 samples, 10 tokens, 50 features. Everything is timed in
one run, in interleaved rounds, because the speed of a shared machine drifts. Writes
docs/benchmarks/head_gradient.md.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import llvmlite.binding

# NumPy's OpenBLAS reads these when it is loaded; PyTorch's threads are set below.
FRESH = "numpy" not in sys.modules
if FRESH:
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if llvmlite.binding.get_host_cpu_features().get("avx512f"):
        # OpenBLAS does not know every processor, and then takes slower kernels than it has.
        os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"

import numba  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from dynalyze.models import AttentionHead  # noqa: E402
from validation import report  # noqa: E402

SHAPE = (1000, 10, 50)
LONG = [(64, tokens, d) for tokens in (64, 197) for d in (8, 16, 32, 64)]
ROUNDS = 60
REPEATS = 3  # calls in a row in each round, so that data may be in cache, as in a solver
N_SAMPLES, N_TOKENS, D = SHAPE
# Four products of tokens × tokens × features per sample, two operations each, no symmetry used
NOMINAL = 8.0 * N_SAMPLES * N_TOKENS**2 * D

SQUARE = 500  # rows and columns of the matrices whose product is the machine's own rate


@numba.njit(fastmath=True, nogil=True)
def plain_gradient(X, y, theta):  # noqa: PLR0912
    """Loss and gradient by plain loops, the innermost over features."""
    n_samples, n_tokens, d = X.shape
    p, q = theta[:d], theta[d:]
    A, D_row = np.empty(n_tokens), np.empty(n_tokens)
    M, r, xp, mixed = np.empty(d), np.empty(d), np.empty(d), np.empty(d)
    loss, gradient = 0.0, np.zeros(2 * d)
    for s in range(n_samples):
        x = X[s]
        for a in range(n_tokens):
            for i in range(d):
                xp[i] = p[i] * x[a, i]
                M[i] = 0.0
                mixed[i] = 0.0
            largest = -np.inf
            for b in range(n_tokens):
                total = 0.0
                for i in range(d):
                    total += xp[i] * x[b, i]
                A[b] = total
                largest = max(largest, total)
            norm = 0.0
            for b in range(n_tokens):
                A[b] = np.exp(A[b] - largest)
                norm += A[b]
            for b in range(n_tokens):
                A[b] /= norm
                for i in range(d):
                    M[i] += A[b] * x[b, i]
            for i in range(d):
                residual = q[i] * M[i] - y[s, a, i]
                loss += residual * residual
                gradient[d + i] += residual * M[i]
                r[i] = residual * q[i]
            mean = 0.0
            for b in range(n_tokens):
                total = 0.0
                for i in range(d):
                    total += r[i] * x[b, i]
                D_row[b] = total
                mean += A[b] * total
            for b in range(n_tokens):
                E = A[b] * (D_row[b] - mean)
                for i in range(d):
                    mixed[i] += E * x[b, i]
            for i in range(d):
                gradient[i] += mixed[i] * x[a, i]
    return 0.5 * loss / n_samples, gradient / n_samples


def numpy_gradient(X, y, theta):
    p, q = theta[:D], theta[D:]
    transposed = X.transpose(0, 2, 1)
    A = (X * p) @ transposed
    A -= A.max(axis=2, keepdims=True)
    np.exp(A, out=A)
    A /= A.sum(axis=2, keepdims=True)
    M = A @ X
    r = q * M - y
    D_matrix = (q * r) @ transposed
    E = A * (D_matrix - (A * D_matrix).sum(axis=2, keepdims=True))
    gradient = np.concatenate([((E @ X) * X).sum(axis=(0, 1)), (r * M).sum(axis=(0, 1))])
    return 0.5 * (r**2).sum() / len(X), gradient / len(X)


def torch_loss(theta, X, y):
    A = torch.softmax((X * theta[:D]) @ X.transpose(1, 2), dim=2)
    return 0.5 * (((A @ X) * theta[D:] - y) ** 2).sum() / len(X)


def torch_gradient(theta, X, y):
    theta = theta.clone().requires_grad_()
    loss = torch_loss(theta, X, y)
    return loss.detach(), torch.autograd.grad(loss, theta)[0]


def torch_hessian_columns(theta, X, y, indices):
    def gradient(products):
        return torch.func.grad(torch_loss)(products, X, y)

    columns = []
    for index in indices:
        direction = torch.zeros_like(theta)
        direction[index] = 1.0
        columns.append(torch.func.jvp(gradient, (theta,), (direction,))[1])
    return torch.stack(columns, dim=1)


def with_torch_threads(
    threads: int, function: Callable[..., object], *args
) -> Callable[[], object]:
    def call() -> object:
        torch.set_num_threads(threads)
        return function(*args)

    return call


def interleaved(
    tasks: dict[str, Callable[[], object]], rounds: int, repeats: int
) -> dict[str, tuple[float, float]]:
    """Smallest and median time of each task in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for function in tasks.values():
        function()
    for _ in range(rounds):
        for name, function in tasks.items():
            for _ in range(repeats):
                start = time.perf_counter()
                function()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: (min(values), float(np.median(values))) for name, values in times.items()}


def long_sequences() -> str:
    """Table of all Hessian columns of long sequences beside their finite differences."""
    rows = []
    for n_samples, n_tokens, d in LONG:
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((2, n_samples, n_tokens, d))
        theta, everything = 0.3 * rng.standard_normal(2 * d), np.arange(2 * d)
        objective = AttentionHead(d, threads=1).bind((X, y))
        times = interleaved(
            {
                "gradient": partial(objective.value_and_field, theta),
                "columns": partial(objective.hessian_columns, theta, everything),
                "two": partial(objective.hessian_columns, theta, np.array([0, d - 1])),
            },
            3,
            REPEATS,
        )
        gradient, columns, two = (times[name][0] for name in ("gradient", "columns", "two"))
        ratio = 2 * d * gradient / columns
        rows.append(
            [
                f"{n_tokens}",
                f"{d}",
                f"{gradient:.1f}",
                f"{two:.1f}",
                f"{columns:.1f}",
                f"{columns / gradient:.1f}",
                f"{ratio:.1f}",
            ]
        )
    header = ["tokens", "d", "gradient", "2 columns in p", "all 2 d columns"]
    return report.table([*header, "all, in gradients", "2 d gradients / all"], rows)


def main() -> None:
    if not FRESH:
        subprocess.run([sys.executable, "-m", "validation.benchmarks.head_gradient"], check=True)
        return
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((2, *SHAPE))
    theta = 0.3 * rng.standard_normal(2 * D)
    tensors = torch.as_tensor(theta), torch.as_tensor(X), torch.as_tensor(y)
    one, two = (AttentionHead(D, threads=threads).bind((X, y)) for threads in (1, 2))
    for value, gradient in (
        plain_gradient(X, y, theta),
        numpy_gradient(X, y, theta),
        [values.numpy() for values in torch_gradient(*tensors)],
    ):
        np.testing.assert_allclose(value, one.value(theta), rtol=1e-12)
        np.testing.assert_allclose(gradient, -one.field(theta), atol=1e-11)

    square = rng.standard_normal((SQUARE, SQUARE))
    gradient_times = interleaved(
        {
            "dynalyze": lambda: one.value_and_field(theta),
            "plain Numba loops": lambda: plain_gradient(X, y, theta),
            "NumPy matmul": lambda: numpy_gradient(X, y, theta),
            "torch autograd": with_torch_threads(1, torch_gradient, *tensors),
            "dgemm": lambda: square @ square,
            "dynalyze, 2 threads": lambda: two.value_and_field(theta),
            "torch autograd, 2 threads": with_torch_threads(2, torch_gradient, *tensors),
        },
        ROUNDS,
        REPEATS,
    )
    rate = 2e3 * SQUARE**3 / gradient_times.pop("dgemm")[0]

    columns = {k: np.sort(rng.permutation(2 * D)[:k]) for k in (1, 2, 4, 8, 16, 32, 100)}
    tasks: dict[str, Callable[[], object]] = {
        "gradient": lambda: one.value_and_field(theta),
        "plain": lambda: plain_gradient(X, y, theta),
    }
    slow: dict[str, Callable[[], object]] = {}
    for k, indices in columns.items():
        tasks[f"{k}"] = partial(one.hessian_columns, theta, indices)
        tasks[f"{k}, 2 threads"] = partial(two.hessian_columns, theta, indices)
        if k <= 4 or k == 2 * D:
            slow[f"{k}, torch"] = with_torch_threads(1, torch_hessian_columns, *tensors, indices)
    torch.set_num_threads(1)
    expected = torch_hessian_columns(*tensors, columns[4])
    np.testing.assert_allclose(one.hessian_columns(theta, columns[4]), expected, atol=1e-11)
    hessian_times = interleaved(tasks, ROUNDS, REPEATS)
    hessian_times |= interleaved(slow, 3, 1)

    ours = gradient_times["dynalyze"][0]
    gradient_rows = [
        [
            name,
            f"{best:.2f}",
            f"{median:.2f}",
            f"{best / ours:.1f}",
            f"{1e3 * NOMINAL / best / rate:.2f}",
        ]
        for name, (best, median) in gradient_times.items()
    ]
    base, plain = hessian_times["gradient"][0], hessian_times["plain"][0]
    hessian_rows = []
    for k in columns:
        best, median = hessian_times[f"{k}"]
        torch_time = hessian_times.get(f"{k}, torch")
        hessian_rows.append(
            [
                "all 100" if k == 2 * D else f"{k}",
                f"{best:.2f}",
                f"{median:.2f}",
                f"{hessian_times[f'{k}, 2 threads'][0]:.2f}",
                f"{best / base:.1f}",
                f"{best / plain:.1f}",
                "–" if torch_time is None else f"{torch_time[0]:.0f}",
            ]
        )
    gradient_table = report.table(
        ["", "best", "median", "best / dynalyze's best", "share of dgemm's rate"], gradient_rows
    )
    hessian_header = ["columns", "best", "median", "best, 2 threads", "in our gradients"]
    hessian_table = report.table(
        [*hessian_header, "in plain-loop gradients", "torch.func"], hessian_rows
    )
    body = f"""
{N_SAMPLES} samples, {N_TOKENS} tokens, {D} features, float64.
All times are milliseconds, the smallest and the median over {ROUNDS} interleaved rounds of
{REPEATS} calls in a row (torch.func: 3 rounds of one call), in one run. Ratios and shares are of
the smallest, because other work on the machine only ever adds time; medians far above them mean
that the machine was busy. One thread unless it says otherwise. All results were compared before
timing.

## Loss and gradient

The operations are counted as {NOMINAL / 1e6:.0f} million: four products of tokens × tokens ×
features per sample, without use of symmetry (dynalyze does about three quarters of them). They are
compared with a {SQUARE} × {SQUARE} matrix product (dgemm of NumPy's OpenBLAS, AVX-512 kernels where
the machine has them) on one thread, timed in the same rounds: at best {rate / 1e9:.0f} × 10⁹
operations per second.

{gradient_table}

## Hessian columns

Columns chosen at random among all {2 * D}, half of which are cheap (those of W_V W_O).
torch.func is forward over reverse, column by column.

{hessian_table}

## Long sequences

All columns together, by sums over pairs of features, against one-sided finite differences, which
take 2 d gradients more than the one at hand (central ones twice that); {LONG[0][0]} samples, the
smallest of 3 rounds of {REPEATS} calls, one thread.

{long_sequences()}
"""
    report.write(
        "benchmarks/head_gradient.md",
        "Gradient and Hessian of the attention head",
        body,
        module="validation.benchmarks.head_gradient",
        packages=("numpy", "numba", "llvmlite", "torch"),
    )


if __name__ == "__main__":
    main()
