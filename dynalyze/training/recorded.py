"""What runs in weights have in common: a training run, and the flow of full weights."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalyze._typing import ArrayLike, FloatArray, IntArray
from dynalyze.flow.initialization import Initialization
from dynalyze.training.curves import Curves, log_curves, plot_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class RecordedRun:
    """Records on the clock of the flow, read as a `dynalyze.flow.trajectory.Trajectory` is.

    A dataclass that inherits it has the fields below and flow times `t` of its records.
    """

    theta: FloatArray  # (n_records, p), products u ⊙ v, or singular values in descending order
    losses: FloatArray  # (n_records,), loss on all samples
    init: Initialization
    product_names: tuple[str, ...]  # length p
    weights: dict[str, FloatArray]  # parameters at the end, by name
    singular_values: bool  # whether `theta` holds singular values

    if TYPE_CHECKING:

        @property
        def t(self) -> FloatArray:
            """Flow time of the records, shape (n_records,)."""

    @property
    def t_rescaled(self) -> FloatArray:
        """Rescaled time t / log(1/α), natural logarithm, of the records; shape (n_records,)."""
        return self.t / self.init.log_inverse_alpha

    def theta_at(self, t: ArrayLike) -> FloatArray:
        """Recorded quantities at flow times `t`, shape (*t.shape, p), interpolated.

        Interpolation is linear in the log coordinates of `dynalyze.flow.coordinates`, in which
        products move at a constant rate on a plateau (log σ for singular values).

        Raises
        ------
        InvalidInputError
            If a time lies outside the run.
        """
        return self._curves.at(t)

    def loss_at(self, t: ArrayLike) -> FloatArray:
        """Loss at flow times `t`, shape of `t`: the recorded losses, interpolated linearly.

        Raises
        ------
        InvalidInputError
            If a time lies outside the run.
        """
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

        Raises
        ------
        InvalidInputError
            If `threshold` is not positive and finite.
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

    def _to_save(self) -> tuple[dict[str, FloatArray], dict[str, Any]]:
        """Arrays and metadata of a saved file, from which `_from_saved` has the fields above."""
        arrays = {
            "theta": self.theta,
            "losses": self.losses,
            "u0": self.init.u0,
            "v0": self.init.v0,
            **{f"weights.{name}": value for name, value in self.weights.items()},
        }
        metadata = {
            "log10_alpha": self.init.log10_alpha,
            "product_names": list(self.product_names),
        }
        return arrays, metadata

    @staticmethod
    def _from_saved(arrays: dict[str, FloatArray], metadata: dict[str, Any]) -> dict[str, Any]:
        """Fields that every saved run has; its other arrays and metadata are left in place."""
        weights = [name for name in arrays if name.startswith("weights.")]
        return {
            "theta": arrays.pop("theta"),
            "losses": arrays.pop("losses"),
            "init": Initialization(
                arrays.pop("u0"), arrays.pop("v0"), log10_alpha=metadata.pop("log10_alpha")
            ),
            "product_names": tuple(metadata.pop("product_names")),
            "weights": {name.removeprefix("weights."): arrays.pop(name) for name in weights},
        }

    @cached_property
    def _curves(self) -> Curves:
        if self.singular_values:
            return log_curves(self.t, self.theta)
        chart = self.init.coordinates
        return Curves(self.t, self.theta, chart.z_of_theta, chart.theta, signed=True)
