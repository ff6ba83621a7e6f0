"""What a training of a vision transformer leaves: spectra, losses, accuracies, weights."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze._core.pytorch import torch
from dynalyze._core.saved_files import load_saved, write_saved
from dynalyze._core.saved_schema import AnyNumbers, Array, Schema
from dynalyze._core.status import Status
from dynalyze.spectra import history
from dynalyze.spectra.history import SpectraHistory
from dynalyze.training.vit.model import VisionTransformer, ViTShape

_SCHEMA = Schema(
    "vision transformer run",
    arrays={
        **{f"history.{name}": array for name, array in history.SCHEMA.arrays.items()},
        "weights.*": AnyNumbers(),
        "train_losses": Array("E"),
        "test_losses": Array("E"),
        "test_accuracies": Array("E"),
    },
    metadata={
        "history": history.SCHEMA.metadata,
        "shape": {field.name: int for field in fields(ViTShape)},
        "n_steps": int,
        "status": str,
        "message": str,
        "configuration": dict,
    },
)


@dataclass(frozen=True)
class ViTRun:
    """A training of E epochs."""

    history: SpectraHistory  # spectra of the change since the start
    train_losses: FloatArray  # (E,), mean cross-entropy over each epoch's steps
    test_losses: FloatArray  # (E,), after each epoch
    test_accuracies: FloatArray  # (E,)
    n_steps: int  # optimizer steps made
    status: Status  # finished, diverged, max_seconds, callback or interrupted
    message: str  # why it ended, and what to do about it
    shape: ViTShape
    weights: Mapping[str, "np.ndarray[Any, np.dtype[Any]]"]  # at the end, by name
    configuration: Mapping[str, Any]  # how it was trained

    def __repr__(self) -> str:
        return f"<ViTRun: {len(self.train_losses)} epochs, {self.n_steps} steps, {self.status}>"

    def __str__(self) -> str:
        return self.summary()

    @property
    def success(self) -> bool:
        """Whether the training came to the end that was asked for."""
        return self.status.success

    def model(self) -> VisionTransformer:
        """Return the trained model, on the CPU."""
        model = VisionTransformer(self.shape)
        state = {name: torch.from_numpy(np.array(value)) for name, value in self.weights.items()}
        model.load_state_dict(state)
        return model

    def summary(self) -> str:
        """Status, losses and table of ranks, as text."""
        lines = [f"status: {self.status} ({self.message})"]
        if len(self.train_losses):
            lines.append(
                f"after {len(self.train_losses)} epochs: loss {self.train_losses[-1]:.4f}, on test "
                f"images {self.test_losses[-1]:.4f}, accuracy {self.test_accuracies[-1]:.4f}"
            )
        return "\n".join([*lines, self.history.summary()])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to one file, completely or not at all."""
        spectra, text = self.history.to_parts()
        arrays = {f"history.{name}": value for name, value in spectra.items()}
        arrays |= {f"weights.{name}": value for name, value in self.weights.items()}
        for name in ("train_losses", "test_losses", "test_accuracies"):
            arrays[name] = getattr(self, name)
        metadata = {
            "history": text,
            "shape": asdict(self.shape),
            **{n: getattr(self, n) for n in ("n_steps", "status", "message", "configuration")},
        }
        write_saved(path, _SCHEMA, arrays, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ViTRun":
        """Read a run that `save` wrote.

        Raises
        ------
        SavedFileError
            If the file is damaged or holds something else.
        """
        return load_saved(path, _SCHEMA, cls._from_parts)

    @classmethod
    def _from_parts(cls, arrays: dict[str, Any], metadata: dict[str, Any]) -> "ViTRun":
        parts: dict[str, dict[str, Any]] = {"history": {}, "weights": {}, "": {}}
        for name, value in arrays.items():
            group, _, rest = name.partition(".") if "." in name else ("", "", name)
            parts[group][rest] = value
        metadata["shape"] = ViTShape(**metadata["shape"])
        metadata["status"] = Status(metadata["status"])
        metadata["history"] = SpectraHistory.from_parts(parts["history"], metadata["history"])
        return cls(weights=parts["weights"], **parts[""], **metadata)
