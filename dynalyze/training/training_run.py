"""What `train` returns: a training run, read like a trajectory of the flow."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalyze._saved_files import read_saved, write_saved
from dynalyze._typing import ArrayLike, FloatArray, IntArray
from dynalyze.flow.initialization import Initialization
from dynalyze.training.curves import Curves, log_curves, plot_curves

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
        return self._curves.at(t)

    def loss_at(self, t: ArrayLike) -> FloatArray:
        """Loss at flow times `t`, shape of `t`: the recorded losses, interpolated linearly."""
        times = self._curves.inside(t)
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
        return self._curves.crossings(threshold)

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
        label = "singular value" if self.singular_values else "product θ"
        return plot_curves(self.t_rescaled, self.theta, self.losses, self.product_names, label, ax)

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
    def _curves(self) -> Curves:
        if self.singular_values:
            return log_curves(self.t, self.theta)
        chart = self.init.coordinates
        return Curves(self.t, self.theta, chart.z_of_theta, chart.theta, signed=True)
