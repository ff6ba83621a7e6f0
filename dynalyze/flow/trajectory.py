"""What `simulate` returns: the flow at its steps and between them, saved and loaded exactly."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalyze._core.arrays import ArrayLike, FloatArray, IntArray
from dynalyze._core.interrupts import arrived, delivering, held
from dynalyze._core.saved_files import load_saved, write_saved
from dynalyze._core.saved_schema import Array, ListOf, Schema
from dynalyze._core.status import Status
from dynalyze.errors import InvalidInputError
from dynalyze.flow.dense import DenseOutput
from dynalyze.flow.initialization import Initialization
from dynalyze.models.counted import CountedObjective, Stats
from dynalyze.models.protocol import Objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SCHEMA = Schema(
    "trajectory",
    arrays={
        "t": Array("n+1", finite=True),
        "z": Array("n+1", "p"),
        "losses": Array("n+1"),
        "breaks": Array("m+1", finite=True),
        "degrees": Array("m", dtype="int", least=1),
        "coefficients": Array("v", "p"),
        "origin_loss": Array(),
        "origin_field": Array("p"),
        "u0": Array("p", finite=True),
        "v0": Array("p", finite=True),
    },
    metadata={
        "log10_alpha": float,
        "product_names": ListOf(str, "p"),
        "n_steps": int,
        "stats": {"nfev": int, "nhev": int, "nhcol": int, "seconds": float},
        "status": str,
        "message": str,
        "configuration": dict,
    },
)


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """Gradient flow of a network with product weights, from `dynalyze.simulate`.

    Times are flow times t unless they are called rescaled: t / log(1/α), natural logarithm.

    Notes
    -----
    Whatever the `status`, the steps made so far are here; `message` says what to do about it.
    """

    t: FloatArray  # (n + 1,), flow times at which steps, or segments of them, end
    z: FloatArray  # (n + 1, p), log coordinates there
    dense: DenseOutput = field(repr=False)  # z in between
    init: Initialization = field(repr=False)
    product_names: tuple[str, ...] = field(repr=False)  # length p
    n_steps: int  # steps of the integrator; one may have many segments
    stats: Stats  # evaluations and seconds
    status: Status
    message: str
    configuration: dict[str, Any] = field(repr=False)  # method, tolerance, versions
    # Loss and field at θ = 0, by which the same model on the same data is known again.
    origin_loss: float = field(repr=False)
    origin_field: FloatArray = field(repr=False)  # (p,)
    objective: Objective | None = field(default=None, repr=False)
    saved_losses: FloatArray | None = field(default=None, repr=False)  # (n + 1,)

    def __repr__(self) -> str:
        return f"<Trajectory: {self.n_steps} steps to flow time {self.t[-1]:.6g}, {self.status}>"

    @property
    def success(self) -> bool:
        """Whether the run came to the end that was asked for."""
        return self.status.success

    @property
    def t_rescaled(self) -> FloatArray:
        """Rescaled time t / log(1/α) at the ends of the segments, shape (n + 1,)."""
        return self.t / self.init.log_inverse_alpha

    @cached_property
    def theta(self) -> FloatArray:
        """Products θ at the ends of the segments, shape (n + 1, p)."""
        return self.init.coordinates.theta(self.z)

    @cached_property
    def losses(self) -> FloatArray:
        """Loss at the ends of the segments, shape (n + 1,); evaluated when first asked for.

        In a trajectory loaded without its objective it is NaN where Ctrl-C came before `save`
        had evaluated it.
        """
        saved = self.saved_losses
        if saved is not None and (self.objective is None or np.isfinite(saved).all()):
            return saved
        with held(), delivering():
            objective = CountedObjective(self._objective())
            return np.array([objective.value(theta) for theta in self.theta])

    def z_at(self, t: ArrayLike) -> FloatArray:
        """Log coordinates at flow times `t`, shape (*t.shape, p)."""
        return self.dense(t)

    def theta_at(self, t: ArrayLike) -> FloatArray:
        """Products θ at flow times `t`, shape (*t.shape, p)."""
        return self.init.coordinates.theta(self.dense(t))

    def weights_at(self, t: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Weights (u, v) at flow times `t`, each of shape (*t.shape, p)."""
        return self.init.weights_at(self.dense(t))

    def loss_at(self, t: ArrayLike) -> FloatArray:
        """Loss at flow times `t`, evaluated there; shape of `t`.

        Raises
        ------
        InvalidInputError
            If the trajectory was loaded without its objective.
        """
        objective = CountedObjective(self._objective())
        theta = self.theta_at(t)
        flat = theta.reshape(-1, theta.shape[-1])
        with held(), delivering():
            return np.array([objective.value(row) for row in flat]).reshape(theta.shape[:-1])

    def crossings(self, threshold: ArrayLike) -> tuple[FloatArray, IntArray, IntArray]:
        """Every time at which some |θ_i| crosses a threshold, located on the dense output.

        Parameters
        ----------
        threshold : float or array_like, shape (p,)
            Positive value of |θ_i|: one for all coordinates, or one for each.

        Returns
        -------
        t : ndarray, shape (n,)
            Flow times, ascending.
        coordinate : ndarray of int, shape (n,)
            Coordinates that cross.
        direction : ndarray of int, shape (n,)
            +1 where |θ_i| grows, −1 where it shrinks.

        Raises
        ------
        InvalidInputError
            If `threshold` is not positive and finite.
        """
        sizes = per_product(threshold, self.z.shape[1])
        return self.dense.crossings(self.init.coordinates.z_of_theta(sizes))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Loss over rescaled time, the products under it; see `plots.trajectory`."""
        from dynalyze.plots.trajectory import plot_trajectory

        return plot_trajectory(self, ax=ax)

    @held()
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the objective to a file, which `load` reads back exactly.

        Ctrl-C ends the evaluation of the losses; the file is written, and holds those at both
        ends and as many as were found.

        Parameters
        ----------
        path : str or path-like
            File to write, used as it is; the customary suffix is ``.npz``.
        """
        arrays = {
            "t": self.t,
            "z": self.z,
            "losses": self._losses_to_save(),
            "breaks": self.dense.breaks,
            "degrees": self.dense.degrees,
            "coefficients": self.dense.coefficients,
            "origin_loss": self.origin_loss,
            "origin_field": self.origin_field,
            "u0": self.init.u0,
            "v0": self.init.v0,
        }
        metadata = {
            "log10_alpha": self.init.log10_alpha,
            "product_names": list(self.product_names),
            "n_steps": self.n_steps,
            "stats": vars(self.stats),
            "status": self.status,
            "message": self.message,
            "configuration": self.configuration,
        }
        write_saved(path, _SCHEMA, arrays, metadata)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, objective: Objective | None = None
    ) -> "Trajectory":
        """Read a trajectory that `save` wrote.

        Parameters
        ----------
        path : str or path-like
            File to read.
        objective : Objective, optional
            The loss, as ``model.bind(data)`` gives it; only `loss_at` needs it.

        Raises
        ------
        SavedFileError
            If the file is truncated, or holds something else.
        """

        def build(arrays: dict[str, Any], metadata: dict[str, Any]) -> "Trajectory":
            init = Initialization(
                arrays.pop("u0"), arrays.pop("v0"), log10_alpha=metadata.pop("log10_alpha")
            )
            dense = DenseOutput(
                arrays.pop("breaks"), arrays.pop("degrees"), arrays.pop("coefficients")
            )
            dense.check()
            return cls(
                **metadata
                | {
                    "product_names": tuple(metadata["product_names"]),
                    "status": Status(metadata["status"]),
                    "stats": Stats(**metadata["stats"]),
                },
                t=arrays["t"],
                z=arrays["z"],
                origin_loss=float(arrays["origin_loss"]),
                origin_field=arrays["origin_field"],
                dense=dense,
                init=init,
                objective=objective,
                saved_losses=arrays["losses"],
            )

        return load_saved(path, _SCHEMA, build)

    def _losses_to_save(self) -> FloatArray:
        if self.saved_losses is not None or "losses" in vars(self):
            return self.losses
        objective, n = CountedObjective(self._objective()), len(self.t)
        losses = np.full(n, np.nan)
        # From coarse to fine, for an interrupted curve to have all of its shape.
        strides = [2**k for k in range(n.bit_length(), -1, -1)]
        for i in dict.fromkeys([0, n - 1, *(i for s in strides for i in range(0, n, s))]):
            if arrived() and i not in (0, n - 1):
                break
            losses[i] = objective.value(self.theta[i])
        return losses

    def _objective(self) -> Objective:
        if self.objective is None:
            raise InvalidInputError(
                "the loss between the steps needs the objective, which a saved trajectory does "
                "not hold: load it with Trajectory.load(path, objective=model.bind(data)), or use "
                "`losses`, the loss at the steps"
            )
        return self.objective


def per_product(threshold: ArrayLike, n_products: int) -> FloatArray:
    """Threshold of |θ_i| for each product, shape (p,), from one for all or one for each.

    Raises
    ------
    InvalidInputError
        If a threshold is not positive and finite, or their number is another.
    """
    sizes = np.asarray(threshold, dtype=float)
    if sizes.shape not in ((), (n_products,)):
        raise InvalidInputError(
            f"threshold has shape {sizes.shape}: give one number, or {n_products}, one for each "
            "product"
        )
    bad = ~((sizes > 0) & (sizes < np.inf))
    if bad.any():
        raise InvalidInputError(
            f"threshold={sizes[bad].flat[0]} must be positive and finite: it is a value of |θ|"
        )
    return np.broadcast_to(sizes, (n_products,))
