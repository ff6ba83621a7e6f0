"""What `train` returns: a training run, read like a trajectory of the flow."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze._core.saved_schema import Array
from dynalyze._core.status import Status
from dynalyze.flow.initialization import Initialization
from dynalyze.training.recorded import RecordedRun, run_schema
from dynalyze.training.trainable import flow_time_per_step


@dataclass(frozen=True, eq=False)
class TrainingRun(RecordedRun):
    """Records of one training run, on the clock of the flow: t = learning rate × step.

    With heavy-ball momentum β a step is lr/(1 − β) of flow time. `clock` says what t is.

    It reads as `dynalyze.flow.trajectory.Trajectory` does: `t`, `theta`, `theta_at`, `loss_at`,
    `losses`, `crossings`. Of full weights, which have no θ, `values` and `values_at` are the
    singular values of the products.
    With Adam or weight decay t is no flow time of the loss, only the same formula.

    Notes
    -----
    `status` is finished, diverged, max_seconds, callback or interrupted; `message` says what to
    do about it.
    """

    steps: IntArray  # (n_records,), optimizer steps made before the record
    values: FloatArray  # (n_records, p), products u ⊙ v, or singular values in descending order
    losses: FloatArray  # (n_records,), loss on all samples
    lr: float  # learning rate
    optimizer: str  # "gd", "sgd" or "adam"
    init: Initialization = field(repr=False)
    product_names: tuple[str, ...] = field(repr=False)  # length p
    weights: dict[str, FloatArray] = field(repr=False)  # parameters at the end, by name
    singular_values: bool  # whether `values` are singular values
    loss_rises: int  # steps at which the loss rose, counted for full-batch gradient descent
    status: Status
    message: str
    configuration: dict[str, Any] = field(repr=False)  # options, versions, device

    _clock = "steps"
    _schema = run_schema(
        "training run",
        {"steps": Array("n", dtype="int", least=0)},
        {
            "lr": float,
            "optimizer": str,
            "singular_values": bool,
            "loss_rises": int,
            "status": str,
            "message": str,
            "configuration": dict,
        },
    )

    def __repr__(self) -> str:
        return (
            f"<TrainingRun: {self.steps[-1]} steps of {self.optimizer} at lr={self.lr:g} to loss "
            f"{self.losses[-1]:.6g}, {self.status}>"
        )

    @cached_property
    def t(self) -> FloatArray:
        """Flow time of the records, lr × steps or lr/(1 − β) × steps; shape (n_records,)."""
        return np.asarray(self._step * self.steps, dtype=np.float64)

    @property
    def clock(self) -> str:
        """What the times `t` are, in words."""
        options = self._options
        if self.optimizer == "adam":
            return "lr × steps, which with Adam is no flow time"
        if options.get("weight_decay", 0.0):
            return "lr × steps, which with weight decay is no flow time of this loss"
        if self._step != self.lr:
            return f"flow times, lr/(1 − β) × steps with momentum β = {options['momentum']:g}"
        return "flow times, lr × steps"

    @property
    def _options(self) -> dict[str, Any]:
        return dict(self.configuration.get("optimizer_options", {}))

    @property
    def _step(self) -> float:
        return flow_time_per_step(self.lr, None if self.optimizer == "adam" else self._options)

    @property
    def success(self) -> bool:
        """Whether the run came to the end that was asked for."""
        return self.status.success
