"""Gradient descent on the products' weights, for comparison with the flow."""

import time
from typing import TypeAlias

import numpy as np

from dynalyze import Initialization
from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.models.protocol import Objective

Crossings: TypeAlias = tuple[FloatArray, IntArray, IntArray]
"""Flow time, coordinate and direction ±1 of every crossing, each of shape (n,)."""


def largest_stable_step(objective: Objective, theta: FloatArray) -> float:
    """1/λ_max(√θ H √θ): beyond it, descent leaves the balanced minimum at θ."""
    root = np.sqrt(np.abs(theta))
    hessian = objective.hessian_columns(theta, np.arange(theta.size))
    return float(1 / np.linalg.eigvalsh(root[:, None] * hessian * root)[-1])


def descend(
    objective: Objective, init: Initialization, *, end: float, threshold: float, most_steps: int
) -> tuple[float, int, bool, Crossings]:
    """Descend from the initialization; returns step, steps made, whether all, and crossings."""
    from dynalyze import simulate

    final = simulate(objective, init=init, until=end, tol=1e-4).theta[-1]
    step = largest_stable_step(objective, final)
    scale = 10.0**init.log10_alpha
    u, v = scale * init.u0, scale * init.v0
    total = int(end / step)
    t, coordinate, direction = [], [], []
    before = np.abs(u * v)
    for n in range(min(total, most_steps)):
        g = objective.field(u * v)
        u, v = u + step * g * v, v + step * g * u
        after = np.abs(u * v)
        for i in np.flatnonzero((before < threshold) != (after < threshold)):
            part = (threshold - before[i]) / (after[i] - before[i])
            t.append((n + part) * step)
            coordinate.append(int(i))
            direction.append(1 if after[i] > before[i] else -1)
        before = after
    crossings = (np.array(t), np.array(coordinate, dtype=int), np.array(direction, dtype=int))
    return step, min(total, most_steps), total <= most_steps, crossings


def torch_step_seconds(X: np.ndarray, y: np.ndarray) -> float:
    """Seconds of one full-batch step in PyTorch, float64."""
    import torch

    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    weights = torch.full((4, X.shape[2]), 0.1, dtype=torch.float64, requires_grad=True)

    def step() -> None:
        w_k, w_q, w_v, w_o = weights
        logits = (inputs * (w_k * w_q)) @ inputs.mT
        outputs = torch.softmax(logits, dim=-1) @ (inputs * (w_v * w_o))
        loss = 0.5 * ((outputs - targets) ** 2).sum() / len(X)
        (gradient,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            weights.sub_(1e-6 * gradient)

    seconds = []
    for _ in range(40):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))
