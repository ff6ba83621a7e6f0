"""Checkpoints of a training run: tensors in safetensors, everything else in JSON.

A checkpoint is a folder ``step-000001000`` with two files, ``tensors.safetensors`` and
``state.json``. It is written beside its final name and renamed, so that a run that is killed
leaves the last complete checkpoint behind; the JSON is stamped, and holds digests of itself and
of the tensors, so that a damaged or edited one is refused. Folders without the stamp are other
people's, whatever their names: they are neither read nor removed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dynalyze._core.pytorch import torch
from dynalyze._version import __version__
from dynalyze.errors import InvalidInputError, MissingDependencyError, SavedFileError

FORMAT = 3
_STAMP = "dynalyze checkpoint"
TENSORS, _STATE = "tensors.safetensors", "state.json"
_FINAL = re.compile(r"step-(\d{9,})")
_HALF_WRITTEN = re.compile(r"\.tmp\w{6}")  # the name under which safetensors writes a file
# The files of a checkpoint, and what safetensors was killed while writing.
_OWN_FILE = re.compile(rf"{re.escape(TENSORS)}|{re.escape(_STATE)}|\.tmp\w+")
_TEMPORARY = re.compile(r"\.(step-\d{9,}|initial)\.\d+")


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` returns."""

    path: Path
    step: int
    tensors: dict[str, torch.Tensor]  # on the CPU
    state: dict[str, Any]  # what was given, after a round trip through JSON
    digest: str  # of all that was saved


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

    Raises
    ------
    InvalidInputError
        If `keep` is below 1, or a folder that is no checkpoint has the checkpoint's name.
    """
    if keep < 1:
        raise InvalidInputError(f"keep={keep} must be at least 1")
    parent = Path(folder)
    final = parent / f"step-{step:09d}"
    if final.exists() and not _is_stamped(final):
        raise InvalidInputError(
            f"{final} is no checkpoint, and stands where one must be written: move it, or give "
            "another folder"
        )
    with written_aside(parent, final.name) as temporary:
        _write_tensors(temporary / TENSORS, tensors)
        header: dict[str, Any] = {
            "kind": _STAMP,
            "format": FORMAT,
            "dynalyze_version": __version__,
            "torch_version": torch.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": int(step),
            "tensors": _file_digest(temporary / TENSORS),
            "state": as_json(state),
        }
        header["digest"] = _digest(header)
        with (temporary / _STATE).open("w", encoding="utf-8") as file:
            json.dump(header, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            _remove(final)
        temporary.rename(final)
    for old in [place for _, place in _checkpoints(parent) if _is_stamped(place)][:-keep]:
        _remove(old)
    return final


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint with the most steps in `folder`; None if there is none."""
    found = _checkpoints(Path(folder))
    return found[-1][1] if found else None


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read one checkpoint, or the latest one of a folder of checkpoints.

    Raises
    ------
    SavedFileError
        If a file is missing, truncated, damaged, edited, or of another format.
    FileNotFoundError
        If there is no checkpoint at `path`.
    """
    given = Path(path)
    place = given if _FINAL.fullmatch(given.name) else latest_checkpoint(given)
    if place is None or not place.is_dir():
        raise FileNotFoundError(
            f"there is no checkpoint in {given}: give a folder that training wrote to"
        )
    load_file = safetensors_for_torch().load_file
    try:
        header = json.loads((place / _STATE).read_text(encoding="utf-8"))
        found, version = header["format"], header["dynalyze_version"]
        if found == FORMAT:
            digest = header.pop("digest")
            if header["kind"] != _STAMP or _digest(header) != digest:
                raise ValueError("its contents differ from what was written")
            expected, step, state = header["tensors"], int(header["step"]), dict(header["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(place, _STATE, error) from error
    if found != FORMAT:
        raise SavedFileError(
            f"{place} was written by dynalyze {version} in format {found}; this version, "
            f"{__version__}, reads format {FORMAT}: "
            "upgrade dynalyze, or begin anew in another folder"
        )
    try:
        if _file_digest(place / TENSORS) != expected:
            raise ValueError("its contents differ from what was written")
        tensors = load_file(place / TENSORS)
    except Exception as error:  # safetensors raises errors of its own
        raise _damaged(place, TENSORS, error) from error
    return Checkpoint(place, step, tensors, state, digest)


@contextmanager
def written_aside(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent`, to be renamed once it is complete; removed if it is not."""
    parent.mkdir(parents=True, exist_ok=True)
    temporary = parent / f".{name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed were about to write into `folder`, or to remove.

    Only folders that hold nothing but files of a checkpoint are theirs.
    """
    for place in folder.iterdir():
        named = _TEMPORARY.fullmatch(place.name) and place.is_dir() and not place.is_symlink()
        if named and all(
            file.name in (TENSORS, _STATE) or _HALF_WRITTEN.fullmatch(file.name)
            for file in place.iterdir()
        ):
            shutil.rmtree(place)


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to a safetensors file, in this order.

    Storage that tensors share is refused by the format: each is written on its own.
    """
    safetensors_for_torch().save_file(
        {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path
    )


def write_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write weights to a safetensors file, completely or not at all."""
    with written_aside(path.parent, path.stem) as temporary:
        _write_tensors(temporary / TENSORS, weights)
        (temporary / TENSORS).replace(path)


def random_state(generator: np.random.Generator) -> dict[str, Any]:
    """State of a NumPy generator, ready for JSON."""
    state: dict[str, Any] = as_json(generator.bit_generator.state)
    return state


def as_json(value: Any) -> Any:
    """`value` after a round trip through JSON: tuples become lists, NumPy's numbers Python's."""
    return json.loads(json.dumps(value, default=_plain))


def as_text(value: Any) -> bytes:
    """Canonical JSON of `value`."""
    return json.dumps(value, sort_keys=True, default=_plain).encode()


def safetensors_for_torch() -> Any:
    """Return the module ``safetensors.torch``, which comes with the extra ``torch``."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingDependencyError(
            'checkpoints need safetensors: pip install "dynalyze[torch]"'
        ) from error
    return safetensors.torch


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _checkpoints(parent: Path) -> list[tuple[int, Path]]:
    """Steps and folders of what are checkpoints by their names and files, damaged ones included."""
    found = []
    for place in parent.iterdir() if parent.is_dir() else ():
        named = _FINAL.fullmatch(place.name)
        if named and any((place / file).is_file() for file in (TENSORS, _STATE)):
            found.append((int(named[1]), place))
    return sorted(found)


def _is_stamped(place: Path) -> bool:
    """Whether `place` holds a checkpoint that this library wrote."""
    try:
        header = json.loads((place / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(header, dict) and header.get("kind") == _STAMP


def _remove(place: Path) -> None:
    """Remove a checkpoint; a kill in between leaves what `remove_leftovers` removes."""
    aside = place.with_name(f".{place.name}.{os.getpid()}0")
    shutil.rmtree(aside, ignore_errors=True)
    place.rename(aside)
    shutil.rmtree(aside)


def _digest(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(as_text(header)).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(place: Path, name: str, error: Exception) -> SavedFileError:
    return SavedFileError(
        f"{place / name} cannot be read: it is missing, truncated or damaged ({error}). Remove "
        f"the folder {place.name} to go on from the checkpoint before it"
    )
