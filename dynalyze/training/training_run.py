"""What `train` returns: a training run, read like a trajectory of the flow."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalyze._saved_files import read_saved, write_saved
from dynalyze._typing import ArrayLike, FloatArray, IntArray
from dynalyze.errors import InvalidInputError
from dynalyze.flow.initialization import Initialization

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KIND = "training run"


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """Records of one training run, on the clock of the flow: t = learning rate × step.

    It reads as `dynalyze.flow.trajectory.Trajectory` does: `t`, `theta`, `theta_at`, `loss_at`,
    `losses`, `crossings`. For full weights `theta` holds the singular values of the products.
    With an optimizer other than gradient descent t is no flow time, only the same formula.

    Notes
    -----
    `status` is one of ``"finished"``, ``"diverged"``, ``"max_seconds"``, ``"callback"`` and
    ``"interrupted"``; `message` says what to do about it.
    """

    steps: IntArray  # (n_records,), optimizer steps made before the record
    theta: FloatArray  # (n_records, p), products u ⊙ v, or singular values in descending order
    losses: FloatArray  # (n_records,), loss on all samples
    learning_rate: float
    optimizer: str  # "gd", "sgd" or "adam"
    init: Initialization = field(repr=False)
    product_names: tuple[str, ...] = field(repr=False)  # length p
    weights: dict[str, FloatArray] = field(repr=False)  # parameters at the end, by name
    singular_values: bool  # whether `theta` holds singular values
    loss_rises: int  # steps at which the loss rose, counted for full-batch gradient descent
    status: str
    message: str
    configuration: dict[str, Any] = field(repr=False)  # options, versions, device

    @cached_property
    def t(self) -> FloatArray:
        """Flow time learning_rate × steps of the records, shape (n_records,)."""
        return np.asarray(self.learning_rate * self.steps, dtype=np.float64)

    @property
    def t_rescaled(self) -> FloatArray:
        """Rescaled time t / log(1/α), natural logarithm, of the records; shape (n_records,)."""
        return self.t / self.init.log_inverse_alpha

    @property
    def success(self) -> bool:
        """Whether the run came to the end that was asked for."""
        return self.status == "finished"

    def theta_at(self, t: ArrayLike) -> FloatArray:
        """Recorded quantities at flow times `t`, shape (*t.shape, p), interpolated.

        Interpolation is linear in the log coordinates of `dynalyze.flow.coordinates`, in which
        products move at a constant rate on a plateau (log σ for singular values).
        """
        times = self._inside(t)
        if len(self.t) == 1:
            return np.broadcast_to(self.theta[0], (*times.shape, self.theta.shape[1])).copy()
        right = np.clip(np.searchsorted(self.t, times, side="right"), 1, len(self.t) - 1)
        start, stop = self.t[right - 1], self.t[right]
        share = ((times - start) / (stop - start))[..., None]
        z = (1 - share) * self._z[right - 1] + share * self._z[right]
        exact = self.theta[right - 1]
        return np.where(share == 0, exact, np.where(share == 1, self.theta[right], self._back(z)))

    def loss_at(self, t: ArrayLike) -> FloatArray:
        """Loss at flow times `t`, shape of `t`: the recorded losses, interpolated linearly."""
        times = self._inside(t)
        return np.interp(times.ravel(), self.t, self.losses).reshape(times.shape)

    def crossings(self, threshold: float) -> tuple[FloatArray, IntArray, IntArray]:
        """Every time at which some |θ_i| (or singular value) crosses a threshold.

        Parameters
        ----------
        threshold : float
            Positive value of |θ_i|.

        Returns
        -------
        t : ndarray, shape (n,)
            Flow times, ascending.
        coordinate : ndarray of int, shape (n,)
            Which of the recorded quantities cross.
        direction : ndarray of int, shape (n,)
            +1 where |θ_i| grows, −1 where it shrinks.
        """
        if not 0 < threshold < np.inf:
            raise InvalidInputError(
                f"threshold={threshold} must be positive and finite: it is a value of |θ|"
            )
        level = self._forth(np.full(self.theta.shape[1], float(threshold)))
        times, coordinates, directions = [], [], []
        # A singular value meets the level from one side, a product both level and −level.
        for sign in (1,) if self.singular_values else (1, -1):
            above = sign * self._z > level
            before, after = above[:-1], above[1:]
            record, coordinate = np.nonzero(before != after)
            a = sign * self._z[record, coordinate] - level[coordinate]
            b = sign * self._z[record + 1, coordinate] - level[coordinate]
            times.append(self.t[record] + a / (a - b) * np.diff(self.t)[record])
            coordinates.append(coordinate)
            directions.append(np.where(after[record, coordinate], 1, -1))
        t = np.concatenate(times)
        order = np.argsort(t, kind="stable")
        return (
            t[order],
            np.concatenate(coordinates)[order].astype(np.int64),
            np.concatenate(directions)[order].astype(np.int64),
        )

    def plot(self, ax: "Sequence[Axes] | None" = None) -> "tuple[Axes, Axes]":
        """Plot the loss and the recorded quantities over rescaled time, as Figure 2.

        Parameters
        ----------
        ax : pair of Axes, optional
            Where to draw the loss and the products; by default a new figure.

        Returns
        -------
        pair of Axes
        """
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")[1]
        loss_ax, theta_ax = ax
        loss_ax.plot(self.t_rescaled, self.losses)
        loss_ax.set_ylabel("loss")
        ever_seen = np.max(np.abs(self.theta), axis=0) > 0.01 * np.max(np.abs(self.theta))
        for i in np.flatnonzero(ever_seen):
            theta_ax.plot(self.t_rescaled, self.theta[:, i], label=self.product_names[i])
        theta_ax.plot(self.t_rescaled, self.theta[:, ~ever_seen], color="0.7", lw=0.5)
        theta_ax.set_ylabel("singular value" if self.singular_values else "product θ")
        for one in (loss_ax, theta_ax):
            one.set_xlabel("rescaled time t / log(1/α)")
        return loss_ax, theta_ax

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to a file, which `load` reads back exactly; customary suffix ``.npz``."""
        arrays = {
            "steps": self.steps,
            "theta": self.theta,
            "losses": self.losses,
            "u0": self.init.u0,
            "v0": self.init.v0,
            **{f"weights.{name}": value for name, value in self.weights.items()},
        }
        metadata = {
            "log10_alpha": self.init.log10_alpha,
            "product_names": list(self.product_names),
            **{
                name: getattr(self, name)
                for name in (
                    *("learning_rate", "optimizer", "singular_values", "loss_rises"),
                    *("status", "message", "configuration"),
                )
            },
        }
        write_saved(path, _KIND, arrays, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TrainingRun":
        """Read a run that `save` wrote.

        Raises
        ------
        SavedFileError
            If the file is truncated, or holds something else.
        """
        arrays, stamp = read_saved(path, _KIND)
        metadata = stamp["metadata"]
        init = Initialization(
            arrays.pop("u0"), arrays.pop("v0"), log10_alpha=metadata.pop("log10_alpha")
        )
        names = tuple(metadata.pop("product_names"))
        weights = {k.removeprefix("weights."): v for k, v in arrays.items() if "weights." in k}
        return cls(
            steps=arrays["steps"],
            theta=arrays["theta"],
            losses=arrays["losses"],
            init=init,
            product_names=names,
            weights=weights,
            **metadata,
        )

    @cached_property
    def _z(self) -> FloatArray:
        return self._forth(self.theta)

    def _forth(self, theta: FloatArray) -> FloatArray:
        """Coordinates in which plateaus are straight."""
        if self.singular_values:
            return np.log(np.maximum(theta, np.finfo(float).tiny))
        return self.init.coordinates.z_of_theta(theta)

    def _back(self, z: FloatArray) -> FloatArray:
        return np.exp(z) if self.singular_values else self.init.coordinates.theta(z)

    def _inside(self, t: ArrayLike) -> FloatArray:
        times = np.asarray(t, dtype=float)
        last = self.t[-1]
        # A time computed as learning rate × steps may exceed the last by rounding.
        if times.size and not (times.min() >= 0 and times.max() <= last * (1 + 1e-12)):
            raise InvalidInputError(
                f"t ranges over [{times.min():g}, {times.max():g}], and the run over "
                f"[0, {last:g}] in flow time (learning rate × steps)"
            )
        return np.minimum(times, last)
