"""Gradient descent on the weights of diagonal attention heads, many steps in one compiled call.

A step is that of `torch.optim.SGD`: with the slope s of the loss in a weight w and decay λ,

    s ← s + λ w,   m ← β m + (1 − d) s   (m ← s at the first step),   w ← w − η m

or, by Nesterov, w ← w − η (s + β m). The slopes of the weights follow from those of the products
θ = [w_K ⊙ w_Q, w_V ⊙ w_O], which `dynalyze.models.kernels` gives.
"""

from typing import NamedTuple

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray, IntArray
from dynalyze._core.compiled import njit
from dynalyze.models.kernels import LANES, loss_and_gradient

kernel = njit(cache=True, nogil=True, error_model="numpy")


class Lanes(NamedTuple):
    """The samples of a step as the kernels want them; n_blocks blocks of `LANES` samples."""

    X: FloatArray  # (n_blocks, n_tokens, d, LANES)
    y: FloatArray  # (n_blocks, n_tokens, d, LANES)
    weight: FloatArray  # (n_blocks, LANES), of each sample in the loss


class Batches(NamedTuple):
    """What batches are drawn from; `orders` has no columns where each step takes all samples."""

    X: FloatArray  # (n_samples, n_tokens, d)
    y: FloatArray  # (n_samples, n_tokens, d)
    orders: IntArray  # (n_runs, n), the samples to come in this epoch
    size: int  # samples of a step
    factor: float  # of the loss, beside the mean over samples of half the squared error


class Rule(NamedTuple):
    """Options of gradient descent."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool


class Runs(NamedTuple):
    """State of the runs, changed in place."""

    weights: tuple[FloatArray, ...]  # w_K, w_Q, w_V, w_O, each (n_runs, d)
    velocities: tuple[FloatArray, ...]  # m of each, (n_runs, d); anything without momentum
    losses: FloatArray  # (n_runs,), at the weights of the latest evaluation
    slopes: FloatArray  # (n_runs, 2, d), of the products there


class Watch(NamedTuple):
    """What calls for a record or ends a run, and what counts the rises of the loss."""

    last: FloatArray  # (n_runs, 2, d), products at the last record of each run
    recorded: IntArray  # (n_runs,), step of that record
    alive: BoolArray  # (n_runs,), runs that have not diverged
    bound: FloatArray  # (n_runs,), loss beyond which a run diverges
    initial: FloatArray  # (n_runs,), loss at the start
    previous: FloatArray  # (n_runs,), loss at the step before; full batches only, as below
    rises: IntArray  # (n_runs,), steps at which the loss rose
    rounding: float  # share of the initial loss by which it may seem to rise
    change: float  # of a product since the last record, that calls for another
    every: int  # most steps between two records
    check_every: int  # steps between two looks at the products


@kernel
def descend(
    lanes: Lanes,
    batches: Batches,
    rule: Rule,
    runs: Runs,
    watch: Watch,
    step: int,
    end: int,
    evaluated: bool,
) -> tuple[int, bool]:
    """Make steps from `step` to `end`, or to the first one that has to be looked at.

    Returns the step reached, and whether it is one to look at: its losses and slopes are then
    there, and the next call, which is told by `evaluated`, begins with its update.
    """
    sums = np.zeros((1, 3, lanes.X.shape[2], LANES))
    theta = np.empty(2 * lanes.X.shape[2])
    first = step
    while step < end:
        if not evaluated:
            for run in range(len(runs.losses)):
                _evaluate(lanes, batches, runs, run, (step - first) * batches.size, sums, theta)
            if batches.orders.shape[1] == 0:
                _count_rises(runs.losses, watch)
            if step % watch.check_every == 0 and _is_due(runs, watch, step):
                return step, True
        evaluated = False
        for run in range(len(runs.losses)):
            _update(rule, runs, run, step > 0)
        step += 1
    return step, False


@kernel
def evaluate(lanes: Lanes, runs: Runs, run: int, sums: FloatArray, theta: FloatArray) -> None:
    """Loss and slopes of one run on the samples in `lanes`."""
    d = len(theta) // 2
    for i in range(d):
        theta[i] = runs.weights[0][run, i] * runs.weights[1][run, i]
        theta[d + i] = runs.weights[2][run, i] * runs.weights[3][run, i]
    for kind in range(3):
        for i in range(d):
            for lane in range(LANES):
                sums[0, kind, i, lane] = 0.0
    bounds = np.array([0, len(lanes.X)])
    loss_and_gradient(lanes.X, lanes.y, lanes.weight, theta, bounds, sums)
    loss = 0.0
    for i in range(d):
        in_p, in_q, twice = 0.0, 0.0, 0.0
        for lane in range(LANES):
            in_p += sums[0, 0, i, lane]
            in_q += sums[0, 1, i, lane]
            twice += sums[0, 2, i, lane]
        runs.slopes[run, 0, i] = in_p
        runs.slopes[run, 1, i] = in_q
        loss += 0.5 * twice
    runs.losses[run] = loss


@kernel
def _evaluate(
    lanes: Lanes,
    batches: Batches,
    runs: Runs,
    run: int,
    start: int,
    sums: FloatArray,
    theta: FloatArray,
) -> None:
    """As `evaluate`, on the batch of this run that begins at `start` of its order, if any."""
    n_left = batches.orders.shape[1] - start
    if n_left > 0:
        size = min(batches.size, n_left)
        _, n_tokens, d, _ = lanes.X.shape
        for place in range(lanes.weight.size):
            block, lane = place // LANES, place % LANES
            lanes.weight[block, lane] = batches.factor / size if place < size else 0.0
            # Samples without weight have to be numbers all the same.
            sample = batches.orders[run, start + min(place, size - 1)]
            for a in range(n_tokens):
                for i in range(d):
                    lanes.X[block, a, i, lane] = batches.X[sample, a, i]
                    lanes.y[block, a, i, lane] = batches.y[sample, a, i]
    evaluate(lanes, runs, run, sums, theta)


@kernel
def _count_rises(losses: FloatArray, watch: Watch) -> None:
    for run in range(len(losses)):
        slack = watch.rounding * abs(watch.initial[run])
        watch.rises[run] += losses[run] > watch.previous[run] + slack
        watch.previous[run] = losses[run]


@kernel
def _is_due(runs: Runs, watch: Watch, step: int) -> bool:
    """Whether some run that goes on has to be recorded, or is suspected to diverge."""
    for run in range(len(runs.losses)):
        if not watch.alive[run]:
            continue
        loss = runs.losses[run]
        if not (loss <= watch.bound[run] and np.isfinite(loss)):
            return True
        if step - watch.recorded[run] >= watch.every:
            return True
        for product in range(2):
            u, v = runs.weights[2 * product], runs.weights[2 * product + 1]
            for i in range(u.shape[1]):
                moved = abs(u[run, i] * v[run, i] - watch.last[run, product, i])
                if moved >= watch.change:
                    return True
    return False


@kernel
def _update(rule: Rule, runs: Runs, run: int, begun: bool) -> None:
    """Make one step with the slopes in hand; `begun` says whether there are velocities."""
    for product in range(2):
        u, v = runs.weights[2 * product], runs.weights[2 * product + 1]
        for i in range(u.shape[1]):
            slope, old_u, old_v = runs.slopes[run, product, i], u[run, i], v[run, i]
            u[run, i] -= rule.lr * _direction(
                rule, runs.velocities[2 * product], run, i, slope * old_v, old_u, begun
            )
            v[run, i] -= rule.lr * _direction(
                rule, runs.velocities[2 * product + 1], run, i, slope * old_u, old_v, begun
            )


@kernel
def _direction(
    rule: Rule, velocity: FloatArray, run: int, i: int, slope: float, weight: float, begun: bool
) -> float:
    slope += rule.weight_decay * weight
    if rule.momentum == 0.0:
        return slope
    if begun:
        velocity[run, i] = rule.momentum * velocity[run, i] + (1.0 - rule.dampening) * slope
    else:
        velocity[run, i] = slope
    return slope + rule.momentum * velocity[run, i] if rule.nesterov else velocity[run, i]
