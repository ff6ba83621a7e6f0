"""Images to train on: handwritten digits, CIFAR's published archives, ImageNet's folders."""

import os
import pickle
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dynalyze._core.arrays import IntArray
from dynalyze._core.pytorch import torch
from dynalyze.datasets import bundled
from dynalyze.errors import InvalidInputError, SavedFileError
from dynalyze.training.vit.images import ArrayImages, FileImages, VisionData

_SIDE, _PIXELS = 32, 3 * 32 * 32
_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}

# Mean and standard deviation of ImageNet's training pixels, as everyone uses them
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def digits() -> VisionData:
    """The bundled digits: 1797 grey images of 8 × 8, every fifth one kept for testing."""
    arrays = bundled("digits")
    images = torch.from_numpy(arrays["images"] * np.uint8(15))[:, None]  # pixels are 0 … 16
    labels = arrays["target"].astype(np.int64)
    test = np.arange(len(labels)) % 5 == 0
    parts = [ArrayImages(images[torch.from_numpy(m)], labels[m]) for m in (~test, test)]
    return _in_memory("digits", parts[0], parts[1], 10, augment=False)


def cifar(path: str | os.PathLike[str], *, augment: bool = True) -> VisionData:
    """CIFAR-10 or CIFAR-100 from the published archive, in the Python or the binary version.

    Parameters
    ----------
    path : str or path-like
        The archive as published (``cifar-10-python.tar.gz``, ``cifar-100-binary.tar.gz``, …), the
        folder that it unpacks to, or the folder around that.
    augment : bool
        Train on crops shifted by up to 4 pixels, half of them reflected.

    Raises
    ------
    SavedFileError
        If a file is truncated or damaged, or holds anything else.
    InvalidInputError
        If there is no CIFAR at `path`.
    """
    files = _cifar_files(Path(path))
    for name, training, testing, n_classes, read in _VERSIONS:
        if testing not in files:
            continue
        missing = [file for file in training if file not in files]
        if missing:
            raise SavedFileError(f"{path} lacks {', '.join(missing)} of {name}: unpack again.")
        *parts, test = [
            ArrayImages(*read(f"{path}: {file}", files[file], n_classes))
            for file in (*training, testing)
        ]
        sizes = [len(part.labels) for part in parts]
        if len(set(sizes)) > 1:
            raise SavedFileError(
                f"{path}: the training batches of {name} hold {sizes} images, and should hold "
                "the same number each: a file is truncated. Unpack again."
            )
        # As published: 10,000 test images, and as many in each of the five batches of
        # CIFAR-10 or five times as many in the one of CIFAR-100.
        if sum(sizes) != 5 * len(test.labels):
            raise SavedFileError(
                f"{path}: {testing} of {name} holds {len(test.labels)} images and the training set "
                f"{sum(sizes)}, which should be five times as many: a file is truncated. Unpack "
                "again."
            )
        train = ArrayImages(
            torch.cat([part.images for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )
        return _in_memory(name, train, test, n_classes, augment=augment)
    raise InvalidInputError(
        f"{path} holds none of the published versions of CIFAR (files data_batch_1 … test_batch, "
        "train and test, or the same ending in .bin): give the archive or the folder it unpacks to."
    )


def image_folder(
    path: str | os.PathLike[str], *, image_size: int = 224, n_workers: int = 8, augment: bool = True
) -> VisionData:
    """Images in folders by class, as ImageNet is kept: ``train/CLASS/*`` and ``val/CLASS/*``.

    Parameters
    ----------
    path : str or path-like
        Folder with ``train`` and ``val`` (or ``test``).
    image_size : int
        Height and width of the crops.
    n_workers : int
        Threads that decode images.
    augment : bool
        Train on random crops, half of them reflected; otherwise on the centred crop.

    Raises
    ------
    InvalidInputError
        If the folders are not there, are empty, or differ in their classes.
    """
    root = Path(path)
    testing = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or testing is None:
        raise InvalidInputError(
            f"{root} must hold the folders train and val (or test), each with a folder per class."
        )
    classes = [
        sorted(d.name for d in part.iterdir() if d.is_dir()) for part in (root / "train", testing)
    ]
    if not classes[0] or classes[0] != classes[1]:
        odd = sorted(set(classes[0]) ^ set(classes[1]))
        raise InvalidInputError(
            f"{root}: train and {testing.name} must hold the same classes, got {len(classes[0])} "
            f"and {len(classes[1])}; not in both: {', '.join(odd[:5]) or 'none'}."
        )
    parts = []
    for folder in (root / "train", testing):
        found = [
            (file, label)
            for label, name in enumerate(classes[0])
            for file in sorted((folder / name).iterdir())
            if file.suffix.lower() in _SUFFIXES
        ]
        if not found:
            raise InvalidInputError(f"{folder} holds no images ({', '.join(sorted(_SUFFIXES))}).")
        names, labels = zip(*found, strict=True)
        parts.append(FileImages(names, np.array(labels, dtype=np.int64), image_size, n_workers))
    mean, deviation = (np.array(values) for values in _IMAGENET)
    return VisionData(root.name, parts[0], parts[1], len(classes[0]), mean, deviation, augment)


def _in_memory(
    name: str, train: ArrayImages, test: ArrayImages, n_classes: int, *, augment: bool
) -> VisionData:
    n_pixels = train.images[:, 0].numel()
    # In whole numbers, which no rounding or order of summation changes
    sums = [
        (int(channel.sum(dtype=torch.int64)), int((channel.int() ** 2).sum(dtype=torch.int64)))
        for channel in train.images.unbind(1)
    ]
    mean = np.array([total / n_pixels for total, _ in sums]) / 255
    square = np.array([total / n_pixels for _, total in sums]) / 255**2
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-12))
    return VisionData(name, train, test, n_classes, mean, deviation, augment)


def _read_binary(name: str, content: bytes, n_classes: int) -> tuple[torch.Tensor, IntArray]:
    """Records of one label byte (CIFAR-100: coarse, then fine) and 3072 bytes of pixels."""
    record = _PIXELS + (1 if n_classes == 10 else 2)
    if not content or len(content) % record:
        raise SavedFileError(
            f"{name} has {len(content)} bytes, which is no multiple of the {record} of a record: "
            "it is truncated or damaged. Unpack again."
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return _checked(name, rows[:, record - _PIXELS :], rows[:, record - _PIXELS - 1], n_classes)


def _read_python(name: str, content: bytes, n_classes: int) -> tuple[torch.Tensor, IntArray]:
    try:
        batch = _ArraysOnly(BytesIO(content), encoding="bytes").load()
        data = batch[b"data"]
        labels = batch[b"labels" if n_classes == 10 else b"fine_labels"]
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
            raise ValueError("data is no array of bytes")
        return _checked(name, data, np.asarray(labels), n_classes)
    except SavedFileError:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        raise SavedFileError(
            f"{name} cannot be read as a batch of CIFAR ({type(error).__name__}: {error}): it is "
            "truncated, damaged, or something else. Unpack again."
        ) from error


def _checked(name: str, pixels: Any, labels: Any, n_classes: int) -> tuple[torch.Tensor, IntArray]:
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS or len(pixels) != len(labels):
        raise SavedFileError(
            f"{name} holds {len(labels)} labels and pixels of shape {pixels.shape}, not "
            f"({len(labels)}, {_PIXELS}): it is damaged. Unpack again."
        )
    numbers = np.asarray(labels, dtype=np.int64)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < n_classes:
        raise SavedFileError(
            f"{name} holds labels {numbers.min()} … {numbers.max()}, and there are {n_classes} "
            "classes: it is damaged, or of the other CIFAR."
        )
    return torch.tensor(pixels).view(-1, 3, _SIDE, _SIDE), numbers


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries, lists, strings and arrays; refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
            return _encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a batch does not need")


def _empty(kind: Any, shape: Any, code: Any) -> Any:
    return np.ndarray.__new__(np.ndarray, shape, code)


def _encode(text: str, encoding: bytes | str) -> bytes:
    return text.encode("latin1" if encoding in (b"latin1", "latin1") else "ascii")


_Reader: TypeAlias = Callable[[str, bytes, int], tuple[torch.Tensor, IntArray]]
_TEN = tuple(f"data_batch_{i}" for i in range(1, 6))
_VERSIONS: tuple[tuple[str, tuple[str, ...], str, int, _Reader], ...] = (
    ("CIFAR-10", _TEN, "test_batch", 10, _read_python),
    ("CIFAR-10", tuple(f"{name}.bin" for name in _TEN), "test_batch.bin", 10, _read_binary),
    ("CIFAR-100", ("train",), "test", 100, _read_python),
    ("CIFAR-100", ("train.bin",), "test.bin", 100, _read_binary),
)
_FILES = {file for _, training, testing, *_ in _VERSIONS for file in (*training, testing)}
_FOLDERS = "cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary"


def _cifar_files(path: Path) -> dict[str, bytes]:
    """Contents of the published files at `path`; archives are read without unpacking."""
    if path.is_dir():
        inside = next((path / name for name in _FOLDERS if (path / name).is_dir()), path)
        found = (inside / name for name in _FILES)
        return {file.name: file.read_bytes() for file in found if file.is_file()}
    if not path.is_file():
        raise InvalidInputError(
            f"there is no file or folder {path}: give the archive or the folder it unpacks to."
        )
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name, file = Path(member.name).name, archive.extractfile(member)
                if name in _FILES and file is not None:
                    contents[name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SavedFileError(
            f"{path} cannot be read as an archive ({error}): it is truncated or damaged. Download "
            "it again."
        ) from error
    return contents
