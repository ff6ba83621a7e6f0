"""What `predict_stages` returns: the stages, with a table, a plot and a file format."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray, IntArray
from dynalyze._core.dataframe import dataframe
from dynalyze._core.saved_files import load_saved, write_saved
from dynalyze._core.status import Status
from dynalyze.errors import InvalidInputError
from dynalyze.flow.rest import known_point
from dynalyze.models.counted import Stats
from dynalyze.models.protocol import Objective
from dynalyze.stages.durations import transition_durations
from dynalyze.stages.finite import FiniteScaleStages, jump_sizes
from dynalyze.stages.saved import SCHEMA, from_parts, to_parts
from dynalyze.stages.stability import largest_product, sharpness, warn_of_learning_rate
from dynalyze.stages.table import Jumps, stage_columns, stage_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_FEW_STAGES = 100  # up to which transitions are followed for a table or a file


@dataclass(frozen=True, eq=False, repr=False)
class StagePrediction:
    """The stages that gradient flow from a vanishing initialization goes through.

    K stages, p products. Plateau k rests at θ^k from T_k to T_{k+1}; stage k is the activation
    of `coordinates[k]` at T_{k+1} = `times[k]`, which leads to plateau k + 1. Times are rescaled:
    flow time divided by log(1/α), natural logarithm. Source: Algorithm 1, arXiv 2306.07042.
    """

    times: FloatArray  # (K,), rescaled time T_{k+1} of each activation
    coordinates: IntArray  # (K,), product that activates
    signs: IntArray  # (K,), ±1, sign with which it grows
    theta: FloatArray  # (K+1, p), products on each plateau
    b: FloatArray  # (K+1, p), log-scales at the start of each plateau, in [0, 2]
    fields: FloatArray  # (K+1, p), g(θ^k)
    losses: FloatArray  # (K+1,), loss on each plateau
    support_sizes: IntArray  # (K+1,), number of active products on each plateau
    departed: tuple[tuple[int, ...], ...]  # K tuples, products that leave in each transition
    runner_ups: IntArray  # (K,), product that would have activated next, −1 if none
    gaps: FloatArray  # (K,), rescaled time by which the runner-up is later, inf if none
    caveats: tuple[str, ...]  # K sentences: what is degenerate at each limit point, "" if nothing
    zero_fields: FloatArray  # (p,), |g_i| off the support that counts as 0
    tie_rtol: float  # relative gap of two waiting times that counts as a tie
    product_names: tuple[str, ...]  # p names
    status: Status
    message: str  # why the recursion ended, and what to do about it
    stats: Stats
    at_alpha: FiniteScaleStages | None = None  # the stages from a given initialization
    configuration: dict[str, Any] = field(default_factory=dict)  # how it was computed
    known_durations: FloatArray | None = None  # (K,), see `durations`
    known_sharpness: FloatArray | None = None  # (K+1,), see `sharpness`
    objective: Objective | None = None  # the loss with its data; not in a saved file

    def __getstate__(self) -> dict[str, Any]:
        """Leave the objective out of pickles too: it holds the data, and compiled functions."""
        return vars(self) | {"objective": None}

    @property
    def success(self) -> bool:
        """Whether all stages are there: no product outside the support grows any more."""
        return self.status.success

    @property
    def n_stages(self) -> int:
        """Number K of stages."""
        return len(self.times)

    @cached_property
    def durations(self) -> FloatArray:
        """Flow time that each transition takes, from 1% to 99% of the way; shape (K,).

        For a loss that is quadratic in θ the limit points are found without following the flow,
        and the transitions are followed when this is first asked for. NaN where that is no longer
        possible, in a prediction that was saved before, or where a transition cannot be followed.
        """
        if self.known_durations is not None:
            return self.known_durations
        if self.objective is None:
            return np.full(self.n_stages, np.nan)
        plateaus = zip(self.theta, self.losses, self.fields, strict=True)
        points = [known_point(self.objective, *plateau) for plateau in plateaus]
        return transition_durations(self.objective, points, self.coordinates, self.signs)

    @cached_property
    def sharpness(self) -> FloatArray:
        """Largest curvature in (u, v) on each plateau, in 1/flow time; shape (K+1,).

        It takes a Hessian for each plateau when it is first asked for. NaN in a prediction that
        was saved before.
        """
        if self.known_sharpness is not None:
            return self.known_sharpness
        if self.objective is None:
            return np.full(self.n_stages + 1, np.nan)
        plateaus = zip(self.theta, self.fields, strict=True)
        return np.array([sharpness(self.objective, *plateau) for plateau in plateaus])

    def max_learning_rates(self, momentum: float = 0.0, *, nesterov: bool = False) -> FloatArray:
        """Learning rates below which full-batch gradient descent rests on each plateau, (K+1,).

        Beyond one of them descent oscillates or diverges there, and from then on nothing that is
        predicted of the flow holds.

        Parameters
        ----------
        momentum : float
            β of heavy-ball momentum, as in torch.optim.SGD.
        nesterov : bool
            Whether the momentum is Nesterov's, as there.

        Raises
        ------
        InvalidInputError
            If `momentum` does not lie in [0, 1).
        """
        with np.errstate(divide="ignore"):
            return largest_product(momentum, nesterov=nesterov) / self.sharpness

    @property
    def follows_transitions(self) -> bool:
        """Whether `summary` and `save` take the `durations`: known ones, or those of few stages."""
        known = self.known_durations is not None or "durations" in vars(self)
        return known or self.n_stages <= _FEW_STAGES

    @property
    def log10_alpha_separated(self) -> FloatArray:
        """log10 of the α below which each stage is separated from its neighbours; shape (K,).

        There the shortest of three rescaled times (the plateau before, the plateau after, and
        the runner-up's delay), times log(1/α), exceeds the duration of the transition. Above
        it the transitions overlap, and neither times nor plateaus can be told apart, unless
        the initial weights happen to keep them apart: `separated` knows a given one. It takes
        the `durations`.
        """
        before = np.diff(self.times, prepend=0.0)
        after = np.append(before[1:], np.inf)
        room = np.minimum(np.minimum(before, after), self.gaps)
        with np.errstate(divide="ignore"):
            return -self.durations / room / np.log(10)

    @property
    def separated(self) -> BoolArray:
        """Whether each stage is separated, with all before it, at the α of `init`; shape (K,).

        Measured on the log coordinates from the given initialization: in each transition the
        fraction by which the products that are still growing disturb it, summed over this
        stage and those before, is at most 0.02. The log coordinates of what follows are right
        to about that, which over |g| gives the error of a jump time.

        Raises
        ------
        InvalidInputError
            If the prediction was made without ``init``.
        """
        at_alpha = self._at_alpha("which stages are separated depends on the initialization")
        stages = at_alpha.stages_of(self.coordinates, self.signs)
        return (stages >= 0) & (stages < at_alpha.n_separated)

    def jump_times(
        self, threshold: float | None = None, *, unit: str = "flow", lr: float | None = None
    ) -> FloatArray:
        """When each activating product jumps, from the given initialization.

        Parameters
        ----------
        threshold : float, optional
            Size |θ_i| at which a jump is called, the same for all products. By default
            `jump_sizes`, 5% of the value that each jumps to, whatever its units.
        unit : {"flow", "rescaled", "steps"}
            Flow time; flow time / log(1/α), comparable with `times`; or gradient-descent steps
            of size `lr`, flow time / lr.
        lr : float, optional
            Learning rate, needed for ``unit="steps"``.

        Returns
        -------
        ndarray, shape (K,)
            NaN where the product does not reach that size in its own transition or has it from
            the start, or where at this α the stage does not occur: `jump_notes` says which.

        Raises
        ------
        InvalidInputError
            If the prediction was made without ``init``, or an argument is not as above.

        Warns
        -----
        LearningRateWarning
            If `lr` exceeds the `max_learning_rates` of a plateau.
        """
        at_alpha, times, _ = self._jumps(threshold)
        length = at_alpha.units_per_flow_time(unit, lr)
        if unit == "steps":
            warn_of_learning_rate(length, self.max_learning_rates())
        return times / length

    def jump_notes(self, threshold: float | None = None) -> tuple[str, ...]:
        """Why a stage has no jump time, K sentences; empty where it has one."""
        return self._jumps(threshold)[2]

    @property
    def jump_sizes(self) -> FloatArray:
        """Size |θ_i| at which a jump of product i is called by default, shape (p,).

        It is 5% of the value that the product jumps to, the smallest if it does so twice.
        """
        return jump_sizes(self.theta, self.coordinates, self.zero_fields)

    def _jumps(
        self, threshold: float | None
    ) -> tuple[FiniteScaleStages, FloatArray, tuple[str, ...]]:
        at_alpha = self._at_alpha("jump times depend on the initialization")
        if threshold is not None and not threshold > 0:
            raise InvalidInputError(
                f"threshold={threshold!r} must be positive: it is a size |θ| of the product"
            )
        sizes = self.jump_sizes if threshold is None else np.full_like(self.jump_sizes, threshold)
        times, notes = at_alpha.jumps_of(self.coordinates, self.signs, sizes[self.coordinates])
        return at_alpha, times, notes

    def _at_alpha(self, why: str) -> FiniteScaleStages:
        if self.at_alpha is None:
            raise InvalidInputError(
                f"{why}: call predict_stages(..., init=Initialization(...)); `times` has the "
                "leading order without one"
            )
        return self.at_alpha

    def summary(self, threshold: float | None = None) -> str:
        """Table of the stages, one line each; `threshold` is that of `jump_times`."""
        separated, jumps = None, None
        if self.follows_transitions and not np.isnan(self.durations).all():
            separated = self.log10_alpha_separated
        if self.at_alpha is not None:
            _, times, notes = self._jumps(threshold)
            jumps = Jumps(self.at_alpha.log10_alpha, times, notes, threshold)
        return stage_table(
            stage_columns(self),
            self.losses[0],
            separated=separated,
            jumps=jumps,
            caveats=self.caveats,
            ending=[f"status: {self.status} ({self.message})", f"work: {self.stats}"],
        )

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return (
            f"<StagePrediction: {self.n_stages} stages of {len(self.product_names)} products, "
            f"{self.status}>"
        )

    def to_dataframe(self) -> "pd.DataFrame":
        """Stages as a pandas DataFrame, one row each (needs the extra ``dataframe``)."""
        columns = stage_columns(self) | {"log10_alpha_separated": self.log10_alpha_separated}
        if self.at_alpha is not None:
            columns["jump_time"] = self.jump_times()
        return dataframe(columns, number_rows="stage")

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Loss staircase over rescaled time, the products under it; see `plots.stages`."""
        from dynalyze.plots.stages import plot_stages

        return plot_stages(self, ax=ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to `path` (NumPy archive with a JSON stamp), exactly."""
        write_saved(path, SCHEMA, *to_parts(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        SavedFileError
            If the file is truncated, holds something else or comes from a newer version.
        """
        return load_saved(path, SCHEMA, lambda *parts: cls(**from_parts(*parts)))
