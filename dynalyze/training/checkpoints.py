"""Checkpoints of a training run: tensors in safetensors, everything else in JSON.

A checkpoint is a folder ``step-000001000`` with two files, ``tensors.safetensors`` and
``state.json``. It is written beside its final name and renamed, so that a run that is killed
leaves the last complete checkpoint behind; the JSON holds a digest of the tensors, so that a
damaged one is refused.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import dynalyze
from dynalyze._torch import torch
from dynalyze.errors import InvalidInputError, MissingDependencyError, SavedFileError

FORMAT = 1
_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` returns."""

    path: Path
    step: int
    tensors: dict[str, torch.Tensor]  # on the CPU
    state: dict[str, Any]  # what was given, after a round trip through JSON


def save_checkpoint(
    folder: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
) -> Path:
    """Write the checkpoint of `step` into `folder`, and remove those older than the last `keep`.

    Parameters
    ----------
    folder : str or path-like
        Folder of the run's checkpoints; made if it is not there.
    step : int
        Number of optimizer steps made so far.
    tensors : mapping of str to Tensor
        Weights, optimizer state, records, torch's random state: kept bit for bit.
    state : mapping
        Anything else, as far as JSON can hold it; `random_state` helps with generators.
    keep : int
        Number of checkpoints to keep, at least 1.

    Returns
    -------
    Path
        The checkpoint's folder.
    """
    if keep < 1:
        raise InvalidInputError(f"keep={keep} must be at least 1")
    save_file = safetensors_for_torch().save_file
    parent = Path(folder)
    parent.mkdir(parents=True, exist_ok=True)
    final = parent / f"step-{step:09d}"
    temporary = parent / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        # Storage shared between tensors is refused by the format: each is written on its own.
        save_file(
            {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()},
            temporary / _TENSORS,
        )
        header = {
            "format": FORMAT,
            "dynalyze_version": dynalyze.__version__,
            "torch_version": torch.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": int(step),
            "digest": _digest(temporary / _TENSORS),
            "state": dict(state),
        }
        with (temporary / _STATE).open("w", encoding="utf-8") as file:
            json.dump(header, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in _complete(parent)[:-keep]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint with the most steps in `folder`; None if there is none."""
    complete = _complete(Path(folder))
    return complete[-1] if complete else None


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read one checkpoint, or the latest one of a folder of checkpoints.

    Raises
    ------
    SavedFileError
        If a file is missing, truncated, damaged, or of a newer format.
    FileNotFoundError
        If there is no checkpoint at `path`.
    """
    given = Path(path)
    place = latest_checkpoint(given) if not given.name.startswith("step-") else given
    if place is None or not place.is_dir():
        raise FileNotFoundError(
            f"there is no checkpoint in {given}: give a folder that training wrote to"
        )
    load_file = safetensors_for_torch().load_file
    try:
        header = json.loads((place / _STATE).read_text(encoding="utf-8"))
        found, digest, step = header["format"], header["digest"], int(header["step"])
        state = dict(header["state"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(place, _STATE, error) from error
    if found > FORMAT:
        raise SavedFileError(
            f"{place} was written by dynalyze {header.get('dynalyze_version')} in format {found}; "
            f"this version, {dynalyze.__version__}, reads formats up to {FORMAT}: upgrade dynalyze"
        )
    try:
        if _digest(place / _TENSORS) != digest:
            raise ValueError("its contents differ from what was written")
        tensors = load_file(place / _TENSORS)
    except Exception as error:  # safetensors raises errors of its own
        raise _damaged(place, _TENSORS, error) from error
    return Checkpoint(place, step, tensors, state)


def random_state(generator: np.random.Generator) -> dict[str, Any]:
    """State of a NumPy generator, ready for JSON."""
    state: dict[str, Any] = json.loads(json.dumps(generator.bit_generator.state, default=_plain))
    return state


def restore_random_state(state: Mapping[str, Any]) -> np.random.Generator:
    """The generator that `random_state` described, at the same point of its stream.

    Raises
    ------
    SavedFileError
        If the state is of no bit generator of NumPy.
    """
    name = str(state.get("bit_generator"))
    kind = getattr(np.random, name, None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise SavedFileError(f"the random state names {name!r}, no bit generator of NumPy")
    bits = kind()
    bits.state = dict(state)
    return np.random.Generator(bits)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _complete(parent: Path) -> list[Path]:
    return sorted(parent.glob("step-*")) if parent.is_dir() else []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(place: Path, name: str, error: Exception) -> SavedFileError:
    return SavedFileError(
        f"{place / name} cannot be read: it is missing, truncated or damaged ({error}). Remove "
        f"the folder {place.name} to go on from the checkpoint before it"
    )


def safetensors_for_torch() -> Any:
    """Return the module ``safetensors.torch``, which comes with the extra ``torch``."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingDependencyError(
            'checkpoints need safetensors: pip install "dynalyze[torch]"'
        ) from error
    return safetensors.torch
