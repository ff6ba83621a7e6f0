"""Which crossing of a simulation or a training run is which predicted stage."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from math import comb
from typing import Protocol

import numpy as np

from dynalyze._core.arrays import ArrayLike, BoolArray, FloatArray, IntArray
from dynalyze.flow.initialization import Initialization
from dynalyze.stages.prediction import StagePrediction

_MOST_CHOICES = 20_000  # ways to leave out surplus crossings that are tried


class MeasuredRun(Protocol):
    """What a simulation or a training run is read by: `Trajectory`, `TrainingRun`."""

    @property
    def t(self) -> FloatArray:
        """Flow times of the steps or records, ascending."""

    @property
    def init(self) -> Initialization:
        """The weights at the start, with their scale α."""

    @property
    def losses(self) -> FloatArray:
        """Loss at the times `t`."""

    @property
    def theta(self) -> FloatArray:
        """Products at the times `t`, shape (len(t), p)."""

    def theta_at(self, t: ArrayLike) -> FloatArray:
        """Products at any flow times within, shape (*t.shape, p)."""

    def crossings(self, threshold: ArrayLike) -> tuple[FloatArray, IntArray, IntArray]:
        """Flow time, coordinate and direction ±1 of every crossing of |θ_i| = threshold_i.

        The threshold is one for all products, or one for each, shape (p,).
        """


class Outcome(StrEnum):
    """What became of a predicted stage."""

    MATCHED = "matched"
    MISSING = "missing"  # its time passed, and its product did not cross the threshold
    AFTER_END = "after the end"  # its time lies beyond the end of the run
    BELOW = "below threshold"  # its product stays below the threshold in that stage
    FROM_START = "above from the start"  # |θ_i(0)| already exceeds the threshold


@dataclass(frozen=True)
class Inversion:
    """Two stages that came in the other order than the limit α → 0 predicts."""

    first: int  # index of the stage that is predicted to come first
    second: int  # index of the stage that came first
    gap: float  # predicted gap between the two, rescaled time
    gap_flow: float  # the same in flow time at this α
    measured_lead: float  # flow time by which the second came before the first
    duration: float  # flow time that the first one's transition takes
    foreseen: bool | None  # whether the prediction at this α inverts them too; None without one

    @property
    def explained(self) -> bool:
        """Whether the gap is too small at this α to decide the order, or the α was foreseen."""
        return bool(self.foreseen) or self.gap_flow < self.duration


@dataclass(frozen=True)
class Matches:
    """Measured time of each stage, and the crossings that belong to none."""

    times: FloatArray  # (K,), flow time; NaN where there is none
    outcomes: tuple[Outcome, ...]  # (K,)
    extra_times: FloatArray  # (n,), flow times of crossings that were not predicted
    extra_coordinates: IntArray  # (n,)
    extra_signs: IntArray  # (n,)


def match(
    prediction: StagePrediction, run: MeasuredRun, expected: FloatArray, sizes: FloatArray
) -> Matches:
    """Match predicted and measured crossings by product, sign and occurrence.

    Parameters
    ----------
    prediction : StagePrediction
        K stages.
    run : MeasuredRun
        What was measured.
    expected : ndarray, shape (K,)
        Best prediction of each jump time, flow time.
    sizes : ndarray, shape (p,)
        |θ_i| at which each product counts as active.
    """
    t, coordinates, directions = run.crossings(sizes)
    up = directions > 0
    t, coordinates = t[up], coordinates[up]
    signs = np.sign(run.theta_at(t)[np.arange(t.size), coordinates]).astype(np.int64)
    stages, products, product_signs = _predicted_crossings(prediction, sizes)
    times = np.full(prediction.n_stages, np.nan)
    taken = np.zeros(t.size, dtype=bool)
    for key in set(zip(products.tolist(), product_signs.tolist(), strict=True)):
        mine = np.flatnonzero((products == key[0]) & (product_signs == key[1]))
        found = np.flatnonzero((coordinates == key[0]) & (signs == key[1]))
        for a, b in _assign(expected[stages[mine]], t[found]):
            taken[found[b]] = True
            stage = stages[mine[a]]
            if prediction.coordinates[stage] == key[0]:
                times[stage] = t[found[b]]
    visible = np.zeros(prediction.n_stages, dtype=bool)
    visible[stages[products == prediction.coordinates[stages]]] = True
    outcomes = _outcomes(prediction, run, times, expected, visible, sizes)
    return Matches(times, outcomes, t[~taken], coordinates[~taken], signs[~taken])


def inversions(
    prediction: StagePrediction,
    times: FloatArray,
    at_this_scale: FloatArray | None,
    log_inverse_alpha: float,
) -> tuple[Inversion, ...]:
    """Every pair of matched stages that came in the other order than predicted.

    Parameters
    ----------
    prediction : StagePrediction
        K stages.
    times, at_this_scale : ndarray, shape (K,)
        Measured jump times, and those predicted at this α if they are known; flow time.
    log_inverse_alpha : float
        Flow time of one unit of rescaled time.
    """
    found = []
    for first in range(len(times)):
        for second in np.flatnonzero(times[first + 1 :] < times[first]) + first + 1:
            gap = float(prediction.times[second] - prediction.times[first])
            foreseen = None
            if at_this_scale is not None:
                foreseen = bool(at_this_scale[second] < at_this_scale[first])
            found.append(
                Inversion(
                    first=first,
                    second=int(second),
                    gap=gap,
                    gap_flow=gap * log_inverse_alpha,
                    measured_lead=float(times[first] - times[second]),
                    duration=float(prediction.durations[first]),
                    foreseen=foreseen,
                )
            )
    return tuple(found)


def _predicted_crossings(
    prediction: StagePrediction, sizes: FloatArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Stage, product and sign of each predicted growth beyond the threshold.

    Besides the products that activate, those that a later transition pushes beyond it.
    """
    before, after = np.abs(prediction.theta[:-1]), np.abs(prediction.theta[1:])
    flipped = prediction.theta[:-1] * prediction.theta[1:] < 0
    stages, products = np.nonzero(((before < sizes) | flipped) & (after >= sizes))
    signs = np.sign(prediction.theta[1:][stages, products]).astype(np.int64)
    return stages, products, signs


def _assign(expected: FloatArray, found: FloatArray) -> list[tuple[int, int]]:
    """Pairs of indices, in order; where the numbers differ, those closest in log time."""
    n, m = len(expected), len(found)
    if n == m or comb(max(n, m), min(n, m)) > _MOST_CHOICES:
        return [(i, i) for i in range(min(n, m))]
    long, short = (expected, found) if n > m else (found, expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.nan_to_num(np.abs(np.log(long[:, None] / short)), nan=1e3)
    chosen = min(
        combinations(range(len(long)), len(short)),
        key=lambda rows: sum(cost[row, column] for column, row in enumerate(rows)),
    )
    pairs = [(row, column) for column, row in enumerate(chosen)]
    return pairs if n > m else [(column, row) for row, column in pairs]


def _outcomes(
    prediction: StagePrediction,
    run: MeasuredRun,
    times: FloatArray,
    expected: FloatArray,
    visible: BoolArray,
    sizes: FloatArray,
) -> tuple[Outcome, ...]:
    start, end = run.theta[0], float(run.t[-1])
    outcomes = []
    for k in range(prediction.n_stages):
        if not np.isnan(times[k]):
            outcome = Outcome.MATCHED
        elif not visible[k]:
            outcome = Outcome.BELOW
        elif np.abs(start[i := prediction.coordinates[k]]) >= sizes[i]:
            outcome = Outcome.FROM_START
        elif expected[k] > end:
            outcome = Outcome.AFTER_END
        else:
            outcome = Outcome.MISSING
        outcomes.append(outcome)
    return tuple(outcomes)
