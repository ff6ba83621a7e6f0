"""Spectra after the fact: from saved weights, one checkpoint in memory at a time."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynalyze._core.warn import warn
from dynalyze.errors import InvalidInputError, SavedFileError, UnreadableCheckpointWarning
from dynalyze.models.data import as_positive_int
from dynalyze.spectra.attention import find_sources, select_layers
from dynalyze.spectra.history import SpectraHistory
from dynalyze.spectra.layouts import HEAD_COUNT_NAMES
from dynalyze.spectra.options import RecordOptions
from dynalyze.spectra.recognition import Layouts, natural_order, sources_from_names
from dynalyze.spectra.recorder import Recorder
from dynalyze.spectra.sources import AttentionSource, source_names, stored_weights
from dynalyze.spectra.stored_weights import (
    Checkpoint,
    open_checkpoint,
    shapes_of,
    stored_in_use,
    stored_lookup,
)

_CONFIGS = ("config.json", "state.json")  # Hugging Face's, and that of our own checkpoints
_NAMED = 4  # weights listed in an error
_HEADS_KEYS = [name for name in HEAD_COUNT_NAMES if "." not in name]


def track_checkpoints(
    checkpoints: Iterable[Checkpoint],
    *,
    model: nn.Module | None = None,
    n_heads: int | None = None,
    steps: Sequence[int] | None = None,
    reference: Checkpoint | None = None,
    n_values: int | None = None,
    spectrum: str = "full",
    n_directions: int = 4,
    rank_rtol: float = 0.01,
    dtype: torch.dtype | None = None,
    layouts: Layouts | None = None,
    layers: str | Sequence[str] | None = None,
) -> SpectraHistory:
    """Spectra of the change between saved checkpoints, read one at a time.

    Parameters
    ----------
    checkpoints : iterable of path or of state dict
        In the order of training; see `open_checkpoint`.
    model : torch.nn.Module, optional
        A model of the architecture, to find the attention layers and their heads in; its weights
        are not used. Without it the layers are recognised by the names of the saved weights.
    n_heads : int, optional
        Number of query heads where no model is given; by default from the ``config.json`` beside
        the first checkpoint (for checkpoints of `dynalyze.training`, their ``state.json``).
    steps : sequence of int, optional
        Training step of each checkpoint; by default the last number in each name if they all have
        one, and 0, 1, 2, … otherwise.
    reference : path or state dict, optional
        What the change is measured from; the first checkpoint by default.
    n_values, spectrum, n_directions, rank_rtol, dtype, layouts, layers
        See `track`; here all singular values are computed and kept by default.

    Raises
    ------
    InvalidInputError
        If no attention is recognised, the number of heads is not known, or the architecture
        changes between checkpoints.
    SavedFileError
        If the reference, or every checkpoint, cannot be read.

    Warns
    -----
    UnreadableCheckpointWarning
        If some cannot be read, as after a run that was killed; they are left out.
    """
    if isinstance(checkpoints, str | os.PathLike | Mapping):
        raise InvalidInputError(
            f"checkpoints is a single {type(checkpoints).__name__}: give a list, in the order of "
            "training, such as [first, last]."
        )
    checkpoints = list(checkpoints)
    if not checkpoints:
        raise InvalidInputError("checkpoints is empty: give at least one path.")
    if steps is None:
        steps = _steps_from_names(checkpoints)
    _check_steps(steps, len(checkpoints))
    _refuse_one_state_twice(checkpoints)
    first = checkpoints[0] if reference is None else reference
    weights = open_checkpoint(first)
    if model is not None:
        sources = find_sources(model, layouts=layouts, layers=layers)
    else:
        if n_heads is None:
            n_heads = _heads_from_config([first, checkpoints[0]])
        else:
            n_heads = as_positive_int(n_heads, "n_heads")
        sources = select_layers(_sources_of(weights, n_heads), layers)
    names = source_names(sources)
    options = RecordOptions(n_values, spectrum, n_directions, rank_rtol, dtype)
    recorder = Recorder(sources, stored_in_use(weights, stored_weights(sources)), options)
    del weights
    unreadable: list[Exception] = []
    for step, checkpoint in zip(steps, checkpoints, strict=True):
        try:
            recorder.record(stored_lookup(open_checkpoint(checkpoint), names), int(step))
        except (SavedFileError, FileNotFoundError) as error:
            # A run that is killed while it saves leaves a folder without its weights or index.
            if isinstance(error, FileNotFoundError) and not Path(str(checkpoint)).is_dir():
                raise
            unreadable.append(error)
    if len(unreadable) == len(checkpoints):
        raise unreadable[0]
    if unreadable:
        warn(
            f"{len(unreadable)} of {len(checkpoints)} checkpoints could not be read and are left "
            f"out: {'; '.join(map(str, unreadable))}",
            UnreadableCheckpointWarning,
        )
    return recorder.history


def _check_steps(steps: Sequence[int], n_checkpoints: int) -> None:
    if len(steps) != n_checkpoints:
        raise InvalidInputError(
            f"steps has {len(steps)} entries for {n_checkpoints} checkpoints: give one each."
        )
    if not all(isinstance(s, Integral) for s in steps) or any(a >= b for a, b in pairwise(steps)):
        raise InvalidInputError(f"steps={list(steps)} must be whole numbers that grow")


def _refuse_one_state_twice(checkpoints: Sequence[Any]) -> None:
    """What `state_dict` returns moves on with the model: kept twice, it is the last state twice."""
    states = {id(state): state for state in checkpoints if isinstance(state, dict)}
    places = {
        frozenset(w.data_ptr() for w in state.values() if isinstance(w, Tensor))
        for state in states.values()
    }
    if len(places) < len(states):
        raise InvalidInputError(
            "checkpoints holds state dicts that share their memory, and so are one state: keep "
            "copies while training, as in {n: w.clone() for n, w in model.state_dict().items()}."
        )


def _sources_of(weights: Mapping[str, Tensor], n_heads: int | None) -> tuple[AttentionSource, ...]:
    shapes = shapes_of(weights)
    if any(".lora_A." in name for name in shapes):
        raise InvalidInputError(
            "the checkpoint holds LoRA adapters, whose scale it does not tell: pass the model "
            "that they belong to as model=."
        )
    # Which weights are attention's does not depend on the number of heads.
    sources = sources_from_names(shapes, 1 if n_heads is None else n_heads)
    if not sources:
        names = sorted(shapes, key=natural_order)
        some = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        raise InvalidInputError(
            f"no attention weights were found among the {len(names)} saved weights, which have "
            f"the names {some}: if attention is among them, pass the model as model=, with "
            "layouts= if its attention modules are your own."
        )
    if n_heads is None:
        raise InvalidInputError(
            f"n_heads is not known: the saved weights of {len(sources)} attention layers do not "
            "tell it, and no config.json beside them does. Pass n_heads=, or a model of the "
            "architecture as model=."
        )
    return sources


def _heads_from_config(checkpoints: Sequence[Checkpoint]) -> int | None:
    paths = [Path(path) for path in checkpoints if not isinstance(path, Mapping)]
    folders = [path if path.is_dir() else path.parent for path in paths]
    for file in (folder / name for folder in folders for name in _CONFIGS):
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SavedFileError(f"{file} is not JSON ({error}): pass n_heads=.") from error
        # Breadth first: a model's own entry comes before those of its parts.
        sections = [content]
        for section in sections:
            if isinstance(section, dict):
                for key in _HEADS_KEYS:
                    if isinstance(section.get(key), int):
                        return int(section[key])
                sections += section.values()
    return None


def _steps_from_names(checkpoints: Sequence[Any]) -> list[int]:
    numbers = []
    for checkpoint in checkpoints:
        if isinstance(checkpoint, Mapping):
            break
        path = Path(checkpoint)
        # The number is in the file's name, or in the folder's where the file is a plain "model".
        for name in (path.stem, path.parent.name):
            found = re.findall(r"\d+", name)
            if found:
                numbers.append(int(found[-1]))
                break
    if len(numbers) < len(checkpoints) or len(set(numbers)) < len(numbers):
        return list(range(len(checkpoints)))
    if numbers != sorted(numbers):
        raise InvalidInputError(
            f"checkpoints must come in the order of training, but the numbers in their names, "
            f"{numbers}, do not grow (shells and glob sort by letters): sort them, or give steps=."
        )
    return numbers
