"""`compare`: did the stages come as predicted? Theory against a simulation or a training run."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dynalyze._dataframe import dataframe
from dynalyze._typing import BoolArray, FloatArray, IntArray
from dynalyze.checks.matching import Inversion, Outcome, Run, inversions, match
from dynalyze.errors import InvalidInputError
from dynalyze.stages.prediction import StagePrediction

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Difference of initial log coordinates that may be rounding, of single precision too; over |g| it
# is that of jump times.
_SAME_START = 1e-3


@dataclass(frozen=True, eq=False)
class Comparison:
    """Predicted against measured stages; K stages, times in flow time.

    A jump is the time at which the activating product's |θ| crosses `threshold`. Errors are
    NaN where a stage has no match; `outcomes` says why.
    """

    prediction: StagePrediction = field(repr=False)
    run: Run = field(repr=False)
    threshold: float  # |θ| at which a product counts as active
    measured: FloatArray  # (K,), measured jump times
    predicted: FloatArray  # (K,), from the run's initialization, to o(1); NaN without one
    leading: FloatArray  # (K,), T log(1/α), right to leading order
    separated: BoolArray  # (K,), whether the stage is separated from its neighbours at this α
    outcomes: tuple[Outcome, ...]  # (K,), what became of each stage
    plateau_distances: FloatArray  # (K+1,), max|θ(t) − θ^k| in the middle of each plateau
    plateau_scales: FloatArray  # (K+1,), max|θ^k|, and max|θ^1| for plateau 0
    inversions: tuple[Inversion, ...]  # pairs that came in the other order
    extra_times: FloatArray  # (n,), crossings of the run that no stage predicts
    extra_coordinates: IntArray  # (n,), their products
    extra_signs: IntArray  # (n,), their signs

    @property
    def n_stages(self) -> int:
        """Number K of predicted stages."""
        return len(self.measured)

    @property
    def log10_alpha(self) -> float:
        """Scale of the run's initialization."""
        return self.run.init.log10_alpha

    @property
    def best(self) -> FloatArray:
        """Predicted jump times: at this α where they are known, else to leading order; (K,)."""
        return np.where(np.isnan(self.predicted), self.leading, self.predicted)

    @property
    def errors(self) -> FloatArray:
        """Predicted less measured jump time at this α, flow time, shape (K,)."""
        return self.predicted - self.measured

    @property
    def relative_errors(self) -> FloatArray:
        """|error| over the measured jump time, shape (K,)."""
        return np.abs(self.errors) / self.measured

    @property
    def leading_errors(self) -> FloatArray:
        """T log(1/α) less measured jump time, flow time, shape (K,)."""
        return self.leading - self.measured

    @property
    def relative_leading_errors(self) -> FloatArray:
        """|leading-order error| over the measured jump time, shape (K,)."""
        return np.abs(self.leading_errors) / self.measured

    @property
    def plateau_lengths(self) -> FloatArray:
        """(T_{k+1} − T_k) log(1/α), the plateau before each jump, flow time; shape (K,)."""
        return np.diff(self.leading, prepend=0.0)

    @property
    def relative_plateau_distances(self) -> FloatArray:
        """Distance from each plateau over its largest product, shape (K+1,)."""
        return self.plateau_distances / self.plateau_scales

    @property
    def missing(self) -> IntArray:
        """Stages (from 0) whose time passed without them."""
        return np.array(
            [k for k, outcome in enumerate(self.outcomes) if outcome is Outcome.MISSING],
            dtype=np.int64,
        )

    def summary(self) -> str:
        """Table of the stages, one line each, with what did not match below it."""
        from dynalyze.checks.table import summary

        return summary(self)

    def __repr__(self) -> str:
        matched = sum(outcome is Outcome.MATCHED for outcome in self.outcomes)
        return f"<Comparison: {matched} of {len(self.outcomes)} stages matched>"

    def __str__(self) -> str:
        return self.summary()

    def to_dataframe(self) -> "pd.DataFrame":
        """Stages as a pandas DataFrame, one row each (needs the extra ``dataframe``)."""
        prediction = self.prediction
        columns = {
            "product": [prediction.name(int(i)) for i in prediction.coordinates],
            "sign": prediction.signs,
            "outcome": [str(outcome) for outcome in self.outcomes],
            "measured": self.measured,
            "predicted": self.predicted,
            "leading": self.leading,
            "error": self.errors,
            "relative_error": self.relative_errors,
            "error_in_plateaus": self.errors / self.plateau_lengths,
            "relative_leading_error": self.relative_leading_errors,
            "separated": self.separated,
            "relative_plateau_distance": self.relative_plateau_distances[1:],
        }
        return dataframe(columns, number_rows="stage")

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Loss of the run over the predicted staircase, errors below; see `plotting`."""
        from dynalyze.plotting import plot_comparison

        return plot_comparison(self, ax=ax)


def compare(prediction: StagePrediction, trajectory: Run, *, threshold: float = 0.05) -> Comparison:
    """Hold predicted stages against a simulation or a training run.

    Stages are matched by product, sign and occurrence. A prediction made with the run's own
    initialization is judged by its jump times at that α, and the leading order beside it; one
    made without, by its leading order alone.

    Parameters
    ----------
    prediction : StagePrediction
        From `predict_stages`.
    trajectory : Trajectory or TrainingRun
        From `simulate`, from `dynalyze.training`, or anything that satisfies
        `dynalyze.checks.Run`.
    threshold : float
        |θ| at which a product counts as active, in its own units. Stages whose product stays
        below it are reported as such.

    Returns
    -------
    Comparison

    Raises
    ------
    InvalidInputError
        If the two have different α, other initial weights, different numbers of products or
        different losses, or `threshold` is not positive.

    Examples
    --------
    >>> from dynalyze import Initialization, compare, datasets, predict_stages, simulate
    >>> from dynalyze.models import DiagonalLinear
    >>> data = (datasets.diabetes().X, datasets.diabetes().y)
    >>> init = Initialization.gaussian(10, log10_alpha=-100, rng=1)
    >>> prediction = predict_stages(DiagonalLinear(10), data, init=init)
    >>> trajectory = simulate(DiagonalLinear(10), data, init, until_rescaled=4)
    >>> comparison = compare(prediction, trajectory)
    >>> bool(comparison.relative_errors[:2].max() < 1e-4)
    True
    """
    if not 0 < threshold < np.inf:
        raise InvalidInputError(
            f"threshold={threshold!r} must be positive and finite: it is a size |θ|"
        )
    _check_comparable(prediction, trajectory)
    init = trajectory.init
    leading = prediction.times * init.log_inverse_alpha
    if prediction.finite is None:
        predicted = np.full(prediction.n_stages, np.nan)
        separated = prediction.log10_alpha_separated > init.log10_alpha
    else:
        predicted = prediction.jump_times(threshold)
        separated = prediction.separated
    expected = np.where(np.isnan(predicted), leading, predicted)
    matches = match(prediction, trajectory, expected, threshold)
    scales = np.abs(prediction.theta).max(axis=1, initial=0.0)
    scales[0] = scales[min(1, prediction.n_stages)]
    return Comparison(
        prediction=prediction,
        run=trajectory,
        threshold=float(threshold),
        measured=matches.times,
        predicted=predicted,
        leading=leading,
        separated=separated,
        outcomes=matches.outcomes,
        plateau_distances=_plateau_distances(prediction, trajectory, matches.times, expected),
        plateau_scales=scales,
        inversions=inversions(
            prediction,
            matches.times,
            None if prediction.finite is None else predicted,
            init.log_inverse_alpha,
        ),
        extra_times=matches.extra_times,
        extra_coordinates=matches.extra_coordinates,
        extra_signs=matches.extra_signs,
    )


def _plateau_distances(
    prediction: StagePrediction, run: Run, measured: FloatArray, expected: FloatArray
) -> FloatArray:
    """max|θ(t) − θ^k| halfway between the jumps, shape (K+1,); NaN if not visited."""
    start, end = float(run.t[0]), float(run.t[-1])
    jumps = np.where(np.isnan(measured), expected, measured)
    begins = np.concatenate([[start], jumps])
    ends = np.append(jumps, max(end, begins[-1]))
    middles = (begins + ends) / 2
    visited = (ends > begins) & (middles >= start) & (middles <= end)
    distances = np.full(middles.size, np.nan)
    theta = run.theta_at(middles[visited])
    distances[visited] = np.abs(theta - prediction.theta[visited]).max(axis=1, initial=0.0)
    return distances


def _check_comparable(prediction: StagePrediction, run: Run) -> None:
    if not isinstance(prediction, StagePrediction):
        raise InvalidInputError(
            f"prediction is a {type(prediction).__name__}: give a StagePrediction first, then the "
            "trajectory or training run"
        )
    if getattr(run, "singular_values", False):
        raise InvalidInputError(
            "the training run records singular values of full weights, and the prediction is for "
            "products of diagonal weights: train with diagonal weights to compare"
        )
    p, q = prediction.theta.shape[1], run.theta.shape[1]
    if p != q:
        raise InvalidInputError(
            f"the prediction has {p} products and the trajectory {q}: compare a prediction with a "
            "run of the same model"
        )
    if prediction.finite is not None:
        made_for, alpha = prediction.finite.log10_alpha, run.init.log10_alpha
        if not np.isclose(made_for, alpha, rtol=1e-9, atol=0):
            raise InvalidInputError(
                f"the prediction was made for α = 1e{made_for:g} and the trajectory has α = "
                f"1e{alpha:g}: give predict_stages the trajectory's own init, or no init to "
                "compare with the leading order alone"
            )
        _check_same_start(prediction, run)
    mine = prediction.configuration.get("loss")
    theirs = getattr(run, "configuration", {}).get("loss", mine)
    if mine is not None and mine != theirs:
        raise InvalidInputError(
            f"the prediction was made with loss={mine!r} and the trajectory with loss={theirs!r}, "
            "in other units of time: use the same loss for both"
        )


def _check_same_start(prediction: StagePrediction, run: Run) -> None:
    """Refuse a prediction for other initial weights, by what the flow of products sees of them."""
    assert prediction.finite is not None
    mine, theirs = prediction.finite.init, run.init
    apart = np.maximum(np.abs(mine.z0 - theirs.z0), np.abs(mine.log_abs_c - theirs.log_abs_c) / 2)
    if not (apart > _SAME_START).any():
        return
    i = int(np.argmax(apart))
    raise InvalidInputError(
        f"the prediction was made for other initial weights than the trajectory has, of "
        f"{prediction.name(i)} (u0, v0) = ({mine.u0[i]:.6g}, {mine.v0[i]:.6g}) where the "
        f"trajectory has ({theirs.u0[i]:.6g}, {theirs.v0[i]:.6g}): give predict_stages the "
        "trajectory's own init, or no init to compare with the leading order alone"
    )
