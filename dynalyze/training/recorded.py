"""What runs in weights have in common: a training run, and the flow of full weights."""

import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dynalyze._core.arrays import ArrayLike, FloatArray, IntArray
from dynalyze._core.saved_files import load_saved, write_saved
from dynalyze._core.saved_schema import AnyNumbers, Array, ListOf, Schema
from dynalyze._core.status import Status
from dynalyze.flow.dense import DenseOutput
from dynalyze.flow.initialization import Initialization
from dynalyze.flow.trajectory import per_product

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TINY = np.finfo(float).tiny  # singular values below count as this


def run_schema(kind: str, clock: Mapping[str, Array], metadata: Mapping[str, Any]) -> Schema:
    """What a saved run of one kind holds: its clock, and metadata beside those of all kinds."""
    weights = Array("w", finite=True)
    arrays = {"values": Array("n", "p"), "losses": Array("n"), "u0": weights, "v0": weights}
    return Schema(
        kind,
        {**clock, **arrays, "weights.*": AnyNumbers()},
        {**metadata, "log10_alpha": float, "product_names": ListOf(str, "p")},
    )


class RecordedRun:
    """Records on the clock of the flow, read as a `dynalyze.flow.trajectory.Trajectory` is.

    A dataclass that inherits it has the fields below and flow times `t` of its records.
    """

    values: FloatArray  # (n_records, p), products u ⊙ v, or singular values in descending order
    losses: FloatArray  # (n_records,), loss on all samples
    init: Initialization
    product_names: tuple[str, ...]  # length p
    weights: dict[str, FloatArray]  # parameters at the end, by name
    singular_values: bool  # whether `values` are singular values

    _clock: ClassVar[str]  # field that tells the times of the records
    _schema: ClassVar[Schema]  # of a saved file

    if TYPE_CHECKING:

        @property
        def t(self) -> FloatArray:
            """Flow time of the records, shape (n_records,)."""

    @property
    def t_rescaled(self) -> FloatArray:
        """Rescaled time t / log(1/α), natural logarithm, of the records; shape (n_records,)."""
        return self.t / self.init.log_inverse_alpha

    @property
    def theta(self) -> FloatArray:
        """Products θ = u ⊙ v of the records, shape (n_records, p); `values` of diagonal weights.

        Raises
        ------
        AttributeError
            If the weights are full: their products are no numbers, but have singular values.
        """
        self._require_products("theta", "values")
        return self.values

    def theta_at(self, t: ArrayLike) -> FloatArray:
        """Products at flow times `t`, shape (*t.shape, p): `values_at` of diagonal weights."""
        self._require_products("theta_at", "values_at")
        return self.values_at(t)

    def _require_products(self, name: str, remedy: str) -> None:
        if self.singular_values:
            raise AttributeError(
                f"{name} is of products θ = u ⊙ v, and this run records singular values of full "
                f"weights: use {remedy}"
            )

    def values_at(self, t: ArrayLike) -> FloatArray:
        """Recorded `values` at flow times `t`, shape (*t.shape, p), interpolated.

        Interpolation is linear in the log coordinates of `dynalyze.flow.coordinates`, in which
        products move at a constant rate on a plateau (log σ for singular values).

        Raises
        ------
        InvalidInputError
            If a time lies outside the run.
        """
        times = self._dense.inside(t)
        between = self._values_of_z(self._dense(times))
        record = np.searchsorted(self.t[:-1], times)
        on_record = (self.t[record] == times)[..., None]
        return np.where(on_record, self.values[record], between)

    def loss_at(self, t: ArrayLike) -> FloatArray:
        """Loss at flow times `t`, shape of `t`: the recorded losses, interpolated linearly.

        Raises
        ------
        InvalidInputError
            If a time lies outside the run.
        """
        return np.interp(self._dense.inside(t), self.t, self.losses)

    def crossings(self, threshold: ArrayLike) -> tuple[FloatArray, IntArray, IntArray]:
        """Every time at which some |θ_i| (or singular value) crosses a threshold.

        Parameters
        ----------
        threshold : float or array_like, shape (p,)
            Positive value of |θ_i|: one for all, or one for each.

        Returns
        -------
        t : ndarray, shape (n,)
            Flow times, ascending.
        coordinate : ndarray of int, shape (n,)
            Which of the recorded quantities cross.
        direction : ndarray of int, shape (n,)
            +1 where |θ_i| grows, −1 where it shrinks.

        Raises
        ------
        InvalidInputError
            If `threshold` is not positive and finite.
        """
        sizes = per_product(threshold, self.values.shape[1])
        return self._dense.crossings(self._z_of_values(sizes))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Loss over rescaled time, the products under it; see `plots.trajectory`."""
        from dynalyze.plots.trajectory import plot_trajectory

        return plot_trajectory(self, ax=ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to a file, which `load` reads back exactly; customary suffix ``.npz``."""
        arrays = {
            self._clock: getattr(self, self._clock),
            "values": self.values,
            "losses": self.losses,
            "u0": self.init.u0,
            "v0": self.init.v0,
            **{f"weights.{name}": value for name, value in self.weights.items()},
        }
        metadata = {n: getattr(self, n) for n in self._schema.metadata if n != "log10_alpha"}
        metadata["log10_alpha"] = self.init.log10_alpha
        write_saved(path, self._schema, arrays, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a run that `save` wrote.

        Raises
        ------
        SavedFileError
            If the file is truncated, or holds something else.
        """
        return load_saved(path, cls._schema, cls._from_parts)

    @classmethod
    def _from_parts(cls, arrays: dict[str, Any], metadata: dict[str, Any]) -> Self:
        log10_alpha = metadata.pop("log10_alpha")
        metadata["product_names"] = tuple(metadata["product_names"])
        kept = metadata | {name: arrays[name] for name in (cls._clock, "values", "losses")}
        kept["init"] = Initialization(arrays["u0"], arrays["v0"], log10_alpha=log10_alpha)
        weights = {n: array for n, array in arrays.items() if n.startswith("weights.")}
        kept["weights"] = {n.removeprefix("weights."): array for n, array in weights.items()}
        if "status" in kept:
            kept["status"] = Status(kept["status"])
        return cls(**kept)

    @cached_property
    def _dense(self) -> DenseOutput:
        """Straight lines from record to record, in log coordinates."""
        n_pieces = len(self.t) - 1
        ends = np.arange(1, 2 * n_pieces + 1) // 2 if n_pieces else [0]
        z = self._z_of_values(self.values)[ends]
        return DenseOutput(self.t, np.ones(n_pieces, dtype=np.int64), z)

    def _z_of_values(self, values: FloatArray) -> FloatArray:
        if self.singular_values:
            return np.log(np.maximum(values, _TINY)) - np.log(_TINY)  # never negative
        return self.init.coordinates.z_of_theta(values)

    def _values_of_z(self, z: FloatArray) -> FloatArray:
        if self.singular_values:
            return np.exp(z + np.log(_TINY))
        return self.init.coordinates.theta(z)
