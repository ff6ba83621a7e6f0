"""Files of saved weights, safetensors and PyTorch, read weight by weight."""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dynalyze.errors import InvalidInputError, MissingDependencyError, SavedFileError
from dynalyze.spectra.sources import Lookup, StoredWeight

_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt", "model.pth")
_NESTED = ("state_dict", "model_state_dict", "model")


Checkpoint: TypeAlias = str | os.PathLike[str] | Mapping[str, Tensor]


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


def open_checkpoint(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Weights of a checkpoint by name: a safetensors or PyTorch file, or a folder with one.

    What is a mapping of names to weights already comes back as it is.

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
    if isinstance(checkpoint, Mapping):
        return checkpoint
    path = Path(checkpoint)
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
        remedy = "name the files themselves" if found else "name a folder or file that has some"
        raise FileNotFoundError(
            f"{folder} holds {len(found) or 'no'} files of weights (one of {', '.join(_FILES)} is "
            f"looked for first): {remedy}."
        )
    return found[0]


def _open_sharded(index: Path) -> StoredWeights:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SavedFileError(
            f"{index} is not an index of sharded weights ({error!r}): restore a copy, or name "
            "the file of weights itself."
        ) from error
    return _open_safetensors(index, [index.parent / name for name in sorted(names)])


def _open_safetensors(path: Path, files: Sequence[Path]) -> StoredWeights:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependencyError(
            f'reading {path} needs safetensors: pip install "dynalyze[torch]".'
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
    try:
        # Only files in the zip format, which torch.save has written since 1.6, can be mapped.
        mapped = zipfile.is_zipfile(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # an unpickler raises anything on a file that is none
        raise SavedFileError(
            f"{path} cannot be read as PyTorch weights ({type(error).__name__}): it is truncated, "
            "or holds objects other than tensors. Save model.state_dict()."
        ) from error
    for key in _NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise SavedFileError(
            f"{path} holds a {type(state).__name__}, not weights by name: save model.state_dict()."
        )
    weights = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise SavedFileError(f"{path} holds no tensors: save model.state_dict().")
    return weights


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of stored weights by name, without reading them from disk."""
    if isinstance(weights, StoredWeights):
        return weights.shapes
    return {name: tuple(weight.shape) for name, weight in weights.items()}


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
        f"{missing[0]!r}: its architecture is another one, or its weights have other names. "
        "Give checkpoints of one training, or the model that they are of."
    )


def stored_in_use(stored: Mapping[str, Tensor], weights: Mapping[str, StoredWeight]) -> Lookup:
    """Stored weights by name with their adapters added, where `stored` holds those as well.

    Where it holds none, as where a tracker kept its start, the weights are as they were in use.

    Raises
    ------
    InvalidInputError
        If weights are missing.
    """
    names = [name for weight in weights.values() for name in weight.parameter_names()]
    try:
        lookup = stored_lookup(stored, names)
    except InvalidInputError:
        if len(names) == len(weights):
            raise
        return stored_lookup(stored, list(weights))
    return lambda name: weights[name].in_use(lookup)
