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
    bounds: IntArray  # (2,), 0 and n_blocks: the one chunk that they are summed in


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
    theta: FloatArray  # (2 d,), room for the products of one run
    sums: FloatArray  # (1, 3, d, LANES), room for what a kernel sums


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
    first = step
    while step < end:
        if not evaluated:
            for run in range(len(runs.losses)):
                if batches.orders.shape[1] > 0:
                    _gather(lanes, batches, run, (step - first) * batches.size)
                prepare(runs, run)
                # Here alone: this much code is compiled anew wherever it is called.
                loss_and_gradient(
                    lanes.X, lanes.y, lanes.weight, runs.theta, lanes.bounds, runs.sums
                )
                collect(runs, run)
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
def prepare(runs: Runs, run: int) -> None:
    """Put the products of a run into its room, and zeros where sums are formed."""
    d = runs.slopes.shape[2]
    for i in range(d):
        runs.theta[i] = runs.weights[0][run, i] * runs.weights[1][run, i]
        runs.theta[d + i] = runs.weights[2][run, i] * runs.weights[3][run, i]
    for kind in range(3):
        for i in range(d):
            for lane in range(LANES):
                runs.sums[0, kind, i, lane] = 0.0


@kernel
def collect(runs: Runs, run: int) -> None:
    """Loss and slopes of a run from the sums."""
    loss = 0.0
    for i in range(runs.slopes.shape[2]):
        in_p, in_q, twice = 0.0, 0.0, 0.0
        for lane in range(LANES):
            in_p += runs.sums[0, 0, i, lane]
            in_q += runs.sums[0, 1, i, lane]
            twice += runs.sums[0, 2, i, lane]
        runs.slopes[run, 0, i] = in_p
        runs.slopes[run, 1, i] = in_q
        loss += 0.5 * twice
    runs.losses[run] = loss


@kernel
def _gather(lanes: Lanes, batches: Batches, run: int, start: int) -> None:
    """Fill the lanes with the batch of this run that begins at `start` of its order."""
    size = min(batches.size, batches.orders.shape[1] - start)
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
