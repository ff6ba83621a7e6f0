"""Spectra after the fact: from saved weights, one checkpoint in memory at a time."""

import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynalyze.errors import InvalidInputError, MissingDependencyError, SavedFileError
from dynalyze.models.data import as_positive_int
from dynalyze.spectra.attention import find_sources, select_layers
from dynalyze.spectra.history import SpectraHistory
from dynalyze.spectra.recognition import Layouts, natural_order, sources_from_names
from dynalyze.spectra.recorder import Recorder, RecordOptions
from dynalyze.spectra.sources import AttentionSource, Lookup

_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt", "model.pth")
_NESTED = ("state_dict", "model_state_dict", "model")
_CONFIGS = ("config.json", "state.json")  # Hugging Face's, and that of our own checkpoints
_NAMED = 4  # weights listed in an error
_HEADS_KEYS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "heads")


class StoredWeights(Mapping[str, Tensor]):
    """Weights of a checkpoint, each read when it is asked for."""

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[int, ...]], files: Mapping[str, Path]
    ):
        self.path = path
        self.shapes = dict(shapes)
        self._files = dict(files)

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def open_checkpoint(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """Weights of a checkpoint by name: a safetensors or PyTorch file, or a folder with one.

    Safetensors files, sharded ones included, are read weight by weight. PyTorch files are read
    with ``weights_only=True`` and mapped from disk; the weights may lie under ``state_dict``,
    ``model_state_dict`` or ``model``.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no weights in the folder.
    SavedFileError
        If the file is truncated, damaged, or holds no weights.
    MissingDependencyError
        If it is a safetensors file and safetensors is not installed.
    """
    path = Path(path)
    if path.is_dir():
        path = _weights_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}.")
    if path.name.endswith(".index.json"):
        return _open_sharded(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path, [path])
    return _open_torch(path)


def _weights_in(folder: Path) -> Path:
    for name in (*_FILES, "model.safetensors.index.json"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pt"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder} holds {len(found)} files of weights (one of {', '.join(_FILES)} is looked "
            "for first): name the file itself."
        )
    return found[0]


def _open_sharded(index: Path) -> StoredWeights:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise SavedFileError(f"{index} is not an index of sharded weights: {error!r}.") from error
    return _open_safetensors(index, [index.parent / name for name in sorted(names)])


def _open_safetensors(path: Path, files: Sequence[Path]) -> StoredWeights:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {path} needs safetensors: pip install 'dynalyze[torch]'."
        ) from error
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    shapes[name] = tuple(opened.get_slice(name).get_shape())
                    places[name] = file
        except (SafetensorError, OSError) as error:
            raise SavedFileError(
                f"{file} cannot be read as safetensors: {error}. It is truncated or damaged; "
                "restore a copy."
            ) from error
    return StoredWeights(path, shapes, places)


def _open_torch(path: Path) -> Mapping[str, Tensor]:
    import pickle

    try:
        # Only files in the zip format, which torch.save has written since 1.6, can be mapped.
        mapped = zipfile.is_zipfile(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise SavedFileError(
            f"{path} cannot be read as PyTorch weights ({type(error).__name__}): it is truncated, "
            "or holds objects other than tensors. Save model.state_dict()."
        ) from error
    for key in _NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise SavedFileError(f"{path} holds a {type(state).__name__}, not weights by name.")
    weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise SavedFileError(f"{path} holds no tensors: save model.state_dict().")
    return weights


def source_names(sources: Sequence[AttentionSource]) -> list[str]:
    """Names of all tensors that the sources are computed from, each once."""
    return list(dict.fromkeys(name for source in sources for name in source.parameter_names()))


def stored_lookup(weights: Mapping[str, Tensor], names: Sequence[str]) -> Lookup:
    """Tensor of each of `names` among stored weights, whose names may have another prefix.

    Raises
    ------
    InvalidInputError
        If weights are missing.
    """
    # Training wrappers prepend a prefix when saving, or the model at hand carries one.
    endings = [key for key in weights if key == names[0] or key.endswith(f".{names[0]}")]
    for prefix in [ending.removesuffix(names[0]) for ending in endings]:
        if all(prefix + name in weights for name in names):
            return lambda name: weights[prefix + name]
    heads = [i for i, letter in enumerate(names[0]) if letter == "."]
    for cut in (names[0][: i + 1] for i in heads):
        if all(name.startswith(cut) and name.removeprefix(cut) in weights for name in names):
            return lambda name: weights[name.removeprefix(cut)]
    missing = [name for name in names if name not in weights]
    where = getattr(weights, "path", "the checkpoint")
    raise InvalidInputError(
        f"{where} lacks {len(missing)} of {len(names)} weights looked for, the first being "
        f"{missing[0]!r}: its architecture is another one, or its weights have other names."
    )


def track_checkpoints(
    checkpoints: Iterable[str | os.PathLike[str] | Mapping[str, Tensor]],
    *,
    model: nn.Module | None = None,
    n_heads: int | None = None,
    steps: Sequence[int] | None = None,
    reference: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    n_values: int | None = None,
    spectrum: str = "full",
    n_directions: int = 4,
    rank_tolerance: float = 0.01,
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
        one and it grows, and 0, 1, 2, … otherwise.
    reference : path or state dict, optional
        What the change is measured from; the first checkpoint by default.
    n_values, spectrum, n_directions, rank_tolerance, dtype, layouts, layers
        See `track`; here all singular values are computed and kept by default.

    Raises
    ------
    InvalidInputError
        If no attention is recognised, the number of heads is not known, or the architecture
        changes between checkpoints.
    SavedFileError
        If a checkpoint cannot be read.
    """
    checkpoints = list(checkpoints)
    if not checkpoints:
        raise InvalidInputError("checkpoints is empty: give at least one path.")
    if steps is None:
        steps = _steps_from_names(checkpoints)
    elif len(steps) != len(checkpoints):
        raise InvalidInputError(
            f"steps has {len(steps)} entries for {len(checkpoints)} checkpoints: give one each."
        )
    first = checkpoints[0] if reference is None else reference
    weights = _open(first)
    if model is not None:
        sources = find_sources(model, layouts=layouts, layers=layers)
    else:
        if n_heads is None:
            n_heads = _heads_from_config([first, checkpoints[0]])
        else:
            n_heads = as_positive_int(n_heads, "n_heads")
        sources = select_layers(_sources_of(weights, n_heads), layers)
    names = source_names(sources)
    options = RecordOptions(n_values, spectrum, n_directions, rank_tolerance, dtype)
    recorder = Recorder(sources, stored_lookup(weights, names), options)
    del weights
    for step, checkpoint in zip(steps, checkpoints, strict=True):
        recorder.record(stored_lookup(_open(checkpoint), names), int(step))
    return recorder.history


def _open(checkpoint: str | os.PathLike[str] | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return checkpoint if isinstance(checkpoint, Mapping) else open_checkpoint(checkpoint)


def _sources_of(weights: Mapping[str, Tensor], n_heads: int | None) -> tuple[AttentionSource, ...]:
    shapes = getattr(weights, "shapes", None) or {n: tuple(w.shape) for n, w in weights.items()}
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


def _heads_from_config(
    checkpoints: Sequence[str | os.PathLike[str] | Mapping[str, Tensor]],
) -> int | None:
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
    growing = all(a < b for a, b in pairwise(numbers))
    if len(numbers) == len(checkpoints) and growing:
        return numbers
    return list(range(len(checkpoints)))
