"""What `train` returns: a training run, read like a trajectory of the flow."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dynalyze._saved_schema import Array
from dynalyze._typing import FloatArray, IntArray
from dynalyze.flow.initialization import Initialization
from dynalyze.training.recorded import RecordedRun, run_schema


@dataclass(frozen=True, eq=False)
class TrainingRun(RecordedRun):
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
    lr: float  # learning rate
    optimizer: str  # "gd", "sgd" or "adam"
    init: Initialization = field(repr=False)
    product_names: tuple[str, ...] = field(repr=False)  # length p
    weights: dict[str, FloatArray] = field(repr=False)  # parameters at the end, by name
    singular_values: bool  # whether `theta` holds singular values
    loss_rises: int  # steps at which the loss rose, counted for full-batch gradient descent
    status: str
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
        """Flow time lr × steps of the records, shape (n_records,)."""
        return np.asarray(self.lr * self.steps, dtype=np.float64)

    @property
    def success(self) -> bool:
        """Whether the run came to the end that was asked for."""
        return self.status == "finished"
