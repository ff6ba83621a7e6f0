"""`compare`: did the stages come as predicted? Theory against a simulation or a training run."""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray, IntArray
from dynalyze._core.dataframe import dataframe
from dynalyze._core.plain import plain
from dynalyze.checks.comparable import check_comparable
from dynalyze.checks.matching import Inversion, MeasuredRun, Outcome, inversions, match
from dynalyze.checks.table import comparison_table
from dynalyze.errors import InvalidInputError
from dynalyze.stages.prediction import StagePrediction

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Comparison:
    """Predicted against measured stages; K stages, times in flow time.

    A jump is the time at which the activating product's |θ| crosses its size in `sizes`. Errors
    are NaN where a stage has no match; `outcomes` says why.
    """

    prediction: StagePrediction = field(repr=False)
    run: MeasuredRun = field(repr=False)
    threshold: float | None  # |θ| at which a jump is called; None for 5% of what is jumped to
    sizes: FloatArray  # (p,), the same for each product
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
    def clock(self) -> str:
        """What the run's times are: flow time, or what an optimizer makes of its formula."""
        return str(getattr(self.run, "clock", "flow times"))

    @property
    def expected(self) -> FloatArray:
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
        return comparison_table(
            self._columns(),
            log10_alpha=self.log10_alpha,
            threshold=self.threshold,
            clock=self.clock,
            inversions=self.inversions,
            missing=self.missing.tolist(),
            extra=self._extra(),
        )

    def _extra(self) -> list[str]:
        """Jumps that no stage predicts, in words."""
        at_alpha, foreseen = self.prediction.at_alpha, set()
        if at_alpha is not None:
            foreseen = set(zip(at_alpha.coordinates.tolist(), at_alpha.signs.tolist(), strict=True))
        jumps = zip(self.extra_times, self.extra_coordinates, self.extra_signs, strict=True)
        return [
            f"{'+' if sign > 0 else '−'} {self.prediction.product_names[i]} at t = {t:.6g}"
            + ("; foreseen at this α" if (int(i), int(sign)) in foreseen else "")
            for t, i, sign in jumps
        ]

    def __repr__(self) -> str:
        matched = sum(outcome is Outcome.MATCHED for outcome in self.outcomes)
        return f"<Comparison: {matched} of {len(self.outcomes)} stages matched>"

    def __str__(self) -> str:
        return self.summary()

    def to_dataframe(self) -> "pd.DataFrame":
        """Stages as a pandas DataFrame, one row each (needs the extra ``dataframe``)."""
        return dataframe(self._columns(), number_rows="stage")

    def _columns(self) -> dict[str, Any]:
        prediction = self.prediction
        return {
            "product": [prediction.product_names[i] for i in prediction.coordinates],
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

    def to_dict(self) -> dict[str, Any]:
        """Stages, inversions and crossings that no stage predicts, ready for JSON.

        Of the prediction and the run only their names and α are in it: they save themselves.
        """
        names = tuple(f.name for f in fields(self) if f.name not in ("prediction", "run"))
        names += ("log10_alpha", "clock", "errors", "relative_errors", "relative_leading_errors")
        prediction = self.prediction
        products = {
            "products": [prediction.product_names[i] for i in prediction.coordinates],
            "signs": prediction.signs,
        }
        return dict(plain(products | {name: getattr(self, name) for name in names}))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Loss of the run over the predicted staircase, errors below; see `plots.comparison`."""
        from dynalyze.plots.comparison import plot_comparison

        return plot_comparison(self, ax=ax)


def compare(
    prediction: StagePrediction, trajectory: MeasuredRun, *, threshold: float | None = None
) -> Comparison:
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
        `dynalyze.checks.MeasuredRun`.
    threshold : float, optional
        |θ| at which a product counts as active, the same for all. Stages whose product stays
        below it are reported as such. By default `StagePrediction.jump_sizes`, 5% of the value
        that each product jumps to, whatever its units.

    Returns
    -------
    Comparison

    Raises
    ------
    InvalidInputError
        If the two have different α, other initial weights, different numbers of products,
        different losses or other data, or `threshold` is not positive.

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
    if threshold is not None and not 0 < threshold < np.inf:
        raise InvalidInputError(
            f"threshold={threshold!r} must be positive and finite: it is a size |θ|"
        )
    check_comparable(prediction, trajectory)
    init = trajectory.init
    leading = prediction.times * init.log_inverse_alpha
    if prediction.at_alpha is None:
        predicted = np.full(prediction.n_stages, np.nan)
        separated = prediction.log10_alpha_separated > init.log10_alpha
    else:
        predicted = prediction.jump_times(threshold)
        separated = prediction.separated
    expected = np.where(np.isnan(predicted), leading, predicted)
    sizes = prediction.jump_sizes
    if threshold is not None:
        sizes = np.full(sizes.size, float(threshold))
    matches = match(prediction, trajectory, expected, sizes)
    scales = np.abs(prediction.theta).max(axis=1, initial=0.0)
    scales[0] = scales[min(1, prediction.n_stages)]
    return Comparison(
        prediction=prediction,
        run=trajectory,
        threshold=threshold,
        sizes=sizes,
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
            None if prediction.at_alpha is None else predicted,
            init.log_inverse_alpha,
        ),
        extra_times=matches.extra_times,
        extra_coordinates=matches.extra_coordinates,
        extra_signs=matches.extra_signs,
    )


def _plateau_distances(
    prediction: StagePrediction, run: MeasuredRun, measured: FloatArray, expected: FloatArray
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
