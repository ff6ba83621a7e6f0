"""Checkpoints of a vision transformer's training, its tracker included."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynalyze._core.pytorch import torch
from dynalyze.spectra.history import NOT_ARRAYS
from dynalyze.spectra.tracker import Tracker
from dynalyze.training.checkpoints import (
    TENSORS,
    Checkpoint,
    save_checkpoint,
    write_tensors,
    written_aside,
)
from dynalyze.training.identity import check_same_run

INITIAL = "initial.safetensors"  # weights that changes are measured from


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]  # by group: model, optimizer, history, …
    state: dict[str, Any]

    def tracker_state(self) -> dict[str, Any]:
        """State to give to a tracker that measures from the same start."""
        text = self.state["history"]
        return {
            "step": self.step,
            "history": {
                **self.tensors["history"],
                "layer_names": tuple(text["layer_names"]),
                "notes": tuple(text["notes"]),
                "rank_tolerance": text["rank_tolerance"],
            },
            "directions": self.tensors.get("directions", {}),
            "reference": {},
        }


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    tracker: Tracker,
    *,
    keep: int,
) -> None:
    """Write a checkpoint, and remove those older than the last `keep`."""
    tracked = tracker.state_dict()
    history = tracked["history"]
    together = dict(tensors)
    together |= {f"directions.{name}": value for name, value in tracked["directions"].items()}
    together |= {f"history.{n}": value for n, value in history.items() if n not in NOT_ARRAYS}
    text = {name: history[name] for name in NOT_ARRAYS}
    save_checkpoint(folder, step, together, {**state, "history": text}, keep=keep)


def checked_checkpoint(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> Saved:
    """The contents of a checkpoint of the run that `identity` describes.

    Raises
    ------
    InvalidInputError
        If it is of another.
    """
    check_same_run(checkpoint, identity)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    return Saved(checkpoint.step, groups, checkpoint.state)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """State of an optimizer under the names ``optimizer.INDEX.KEY``."""
    slots = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": value
        for index, slot in slots.items()
        for key, value in slot.items()
        if value is not None
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Take over the state that `optimizer_tensors` gave, under the names ``INDEX.KEY``."""
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        slots.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def write_weights(path: Path, model: torch.nn.Module) -> None:
    """Write a model's weights to a safetensors file, completely or not at all."""
    with written_aside(path.parent, path.stem) as temporary:
        write_tensors(temporary / TENSORS, model.state_dict())
        (temporary / TENSORS).replace(path)
