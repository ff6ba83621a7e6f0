"""Predicting the paper's toy head against training it by gradient descent in PyTorch."""

import resource
import time
import warnings

import numpy as np
import torch

from dynalyze import Initialization, StagePrediction, datasets, predict_stages
from dynalyze.models import AttentionHead
from validation import report

LOG10_ALPHA = -8
MEASURED_SECONDS = 20.0
DENSE = {50: 60.0, 100: 300.0, 200: 60.0}  # features of a dense teacher and most seconds for it


def gradient_descent_rate(X: np.ndarray, y: np.ndarray, learning_rate: float) -> float:
    """Full-batch gradient-descent steps per second in PyTorch, float64."""
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    generator = torch.Generator().manual_seed(0)
    scale = 10.0**LOG10_ALPHA
    shape = (4, X.shape[2])
    weights = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    weights.requires_grad_(True)

    def step() -> None:
        w_k, w_q, w_v, w_o = weights
        logits = (inputs * (w_k * w_q)) @ inputs.mT
        outputs = torch.softmax(logits, dim=-1) @ (inputs * (w_v * w_o))
        loss = torch.nn.functional.mse_loss(outputs, targets)
        (gradient,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            weights.sub_(learning_rate * gradient)

    for _ in range(5):
        step()
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < MEASURED_SECONDS:
        step()
        steps += 1
    return steps / (time.perf_counter() - started)


def largest_stable_step(prediction: StagePrediction, objective) -> float:
    """2/λ_max of the Hessian in (u, v), which on a balanced plateau is 1/λ_max(√θ H √θ)."""
    largest = 0.0
    for theta in prediction.theta[1:]:
        active = np.flatnonzero(theta)
        root = np.sqrt(np.abs(theta[active]))
        hessian = objective.hessian_columns(theta, active)[active]
        largest = max(largest, np.linalg.eigvalsh(root[:, None] * hessian * root)[-1])
    return 1 / largest


def dense_teacher(d: int, most_seconds: float) -> list[str]:
    """Row of the table for a head of `d` features that learns one with all products."""
    rng = np.random.default_rng(0)
    X, theta = rng.standard_normal((1000, 10, d)), rng.standard_normal(2 * d)
    model = AttentionHead(d, threads=1)
    y = model.predict(theta, X)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it stopped is in the table
        prediction = predict_stages(model, (X, y), max_seconds=most_seconds)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    stats = prediction.stats
    return [
        f"{d}",
        f"{len(prediction.times)}",
        str(prediction.status),
        f"{stats.nfev}",
        f"{stats.nhcol}",
        f"{stats.seconds:.1f}",
        f"{most_seconds:.0f}",
        f"{prediction.losses[-1] / prediction.losses[0]:.1g}",
        f"{grown / 1e6:.0f}",
        f"{(X.nbytes + y.nbytes) / 1e6:.0f}",
    ]


def main() -> None:
    data = datasets.toy_head(rng=0)
    X, y, _ = data
    model = AttentionHead(50)
    objective = model.bind((X, y), loss="mse")
    objective.value_and_field(np.full(100, 0.1))  # compile
    objective.hessian_columns(np.full(100, 0.1), np.arange(3))
    init = Initialization.gaussian(100, log10_alpha=LOG10_ALPHA, rng=0)
    prediction = predict_stages(model, (X, y), loss="mse")
    flow_time = prediction.times[-1] * init.log_inverse_alpha
    learning_rate = largest_stable_step(prediction, objective)
    rate = gradient_descent_rate(X, y, learning_rate)
    steps = flow_time / learning_rate
    stats = prediction.stats
    ours = stats.seconds
    theirs = steps / rate
    rows = [
        [
            "`predict_stages` (α → 0, all 18 stages)",
            f"{stats.nfev} + {stats.nhcol} Hessian columns",
            f"{ours:.1f}",
            "1",
        ],
        [
            f"PyTorch gradient descent, α = 1e{LOG10_ALPHA}, largest stable step "
            f"{learning_rate:.3g}",
            f"{steps:.3g} (extrapolated)",
            f"{theirs:.0f} (extrapolated)",
            f"{theirs / ours:.0f}",
        ],
    ]
    dense = [dense_teacher(*case) for case in DENSE.items()]
    dense_header = [
        *("d", "stages", "status", "gradients", "Hessian columns", "seconds", "at most"),
        *("last loss / first", "MB beside the data", "MB of data"),
    ]
    body = f"""
The 10-sparse toy head of the paper, 1000 samples, 10 tokens, d = 50, loss `"mse"`, both on
{torch.get_num_threads()} threads in float64, after compiling.

{report.table(["method", "gradients", "seconds", "ratio"], rows)}

Gradient descent was measured for {MEASURED_SECONDS:.0f} s ({rate:.1f} steps per second) and
extrapolated to the {steps:.3g} steps that the flow needs to reach the loss of the last plateau
but one, {prediction.losses[-2]:.2g}, and leave it: flow time T · log(1/α) = {flow_time:.4g}.
Its largest stable step is 2 over the largest eigenvalue of the Hessian in the weights, over all
plateaus.

## Dense teachers

Heads that learn a head with 2 d Gaussian products from 1000 samples of 10 tokens, one thread, with
`max_seconds` as under "at most"; `converged` is all stages. The memory is what the process grew by
at most, in this order.

{report.table(dense_header, dense)}
"""
    report.write(
        "benchmarks/toy_prediction.md",
        "Predicting the paper's toy head",
        body,
        module=__spec__.name,
        packages=("numpy", "scipy", "numba", "torch"),
    )


if __name__ == "__main__":
    main()
