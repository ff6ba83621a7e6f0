"""Sets of images as a training loop reads them: arrays in memory, or files decoded as needed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze._core.pytorch import torch
from dynalyze.errors import SavedFileError
from dynalyze.models.torch.data import fingerprint
from dynalyze.training.batches import Batch

_IGNORED = -100  # label that PyTorch's cross_entropy leaves out, and no class


class Images(Protocol):
    """Labelled images of one size.

    An attribute ``identity``, a string, tells a checkpoint which images they are; without it they
    are known by their other attributes.
    """

    @property
    def labels(self) -> IntArray:
        """Class of each image, (n,)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""

    def load(self, indices: IntArray, rng: np.random.Generator | None, part: slice) -> torch.Tensor:
        """Images of ``indices[part]``, uint8 of shape (B, C, H, W); augmented if `rng` is given.

        What `rng` gives is drawn for all `indices`, so that an image of the part becomes the same
        whatever the part is.
        """


@dataclass(frozen=True)
class VisionData:
    """Images to train on and to test with."""

    name: str
    train: Images
    test: Images
    n_classes: int
    mean: FloatArray  # (C,), of the training pixels, which are 0 … 1
    deviation: FloatArray  # (C,), standard deviation
    augment: bool  # whether training images are augmented


@dataclass(frozen=True)
class ArrayImages:
    """Images held in memory; augmented by a shifted crop and a reflection."""

    images: torch.Tensor  # (n, C, H, W), uint8
    labels: IntArray  # (n,)
    padding: int = 4  # largest shift, in pixels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def identity(self) -> str:
        """Hash of images, labels and padding, by which a checkpoint knows them."""
        parts = self.images, torch.from_numpy(self.labels), torch.tensor(self.padding)
        return fingerprint(parts)

    def load(self, indices: IntArray, rng: np.random.Generator | None, part: slice) -> torch.Tensor:
        """Images of ``indices[part]``; augmented if `rng` is given."""
        chosen = self.images[torch.from_numpy(indices[part])]
        if rng is None:
            return chosen
        p = self.padding
        shifts = torch.from_numpy(rng.integers(0, 2 * p + 1, (2, len(indices)))[:, part])
        reflected = torch.from_numpy((rng.random(len(indices)) < 0.5)[part])
        padded = torch.nn.functional.pad(chosen, (p, p, p, p))
        _, height, width = self.shape
        rows = shifts[0][:, None] + torch.arange(height)
        columns = shifts[1][:, None] + torch.arange(width)
        columns = torch.where(reflected[:, None], columns.flip(1), columns)
        sample = torch.arange(len(chosen))[:, None, None]
        # Advanced indices around a slice put the channels last.
        return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class FileImages:
    """Images decoded from files by Pillow: a centred crop, or a random one to train on."""

    files: tuple[Path, ...]
    labels: IntArray  # (n,)
    size: int  # height and width of a crop
    n_workers: int = 8

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return 3, self.size, self.size

    @property
    def identity(self) -> str:
        """Hash of the files' names and sizes, the labels and the size of the crop."""
        files = [(f"{file.parent.name}/{file.name}", file.stat().st_size) for file in self.files]
        names = np.frombuffer(repr((files, self.size)).encode(), dtype=np.uint8)
        return fingerprint([torch.tensor(names), torch.from_numpy(self.labels)])

    def load(self, indices: IntArray, rng: np.random.Generator | None, part: slice) -> torch.Tensor:
        """Images of ``indices[part]``; augmented if `rng` is given."""
        children = [None] * len(indices) if rng is None else rng.spawn(len(indices))
        files = [self.files[i] for i in indices[part]]
        with ThreadPoolExecutor(self.n_workers) as pool:
            arrays = list(pool.map(self._decode, files, children[part]))
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def _decode(
        self, file: Path, rng: np.random.Generator | None
    ) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise SavedFileError(
                f"{file} cannot be decoded as an image ({error}): it is truncated or damaged. "
                "Restore it, or take it out of the folder."
            ) from error
        box = _centre(image.size, self.size) if rng is None else _random_crop(image.size, rng)
        cut = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        array = np.asarray(cut, dtype=np.uint8)
        if rng is not None and rng.random() < 0.5:
            array = array[:, ::-1]
        return array


Box = tuple[float, float, float, float]


def _centre(extent: tuple[int, int], size: int) -> Box:
    """Box of the crop after the shorter side was scaled to 256 / 224 of `size`."""
    width, height = extent
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_crop(extent: tuple[int, int], rng: np.random.Generator) -> Box:
    """Box of 8 to 100% of the area and an aspect of 3/4 to 4/3, as is usual for ImageNet."""
    width, height = extent
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * width * height
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = float(np.sqrt(area * aspect)), float(np.sqrt(area / aspect))
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return _centre(extent, min(extent))


def epoch_order(n_images: int, seed: int, epoch: int) -> IntArray:
    """Random order of an epoch, a function of the seed and the epoch alone."""
    return np.random.default_rng([seed, epoch, 0]).permutation(n_images)


def batches(
    images: Images,
    order: IntArray,
    batch_size: int,
    *,
    first: int = 0,
    seed: Sequence[int] | None = None,
    rank: int = 0,
    n_ranks: int = 1,
) -> Iterator[Batch]:
    """Batches `first`, first + 1, … of an epoch, each read while the one before is used.

    Their inputs are images, uint8 of shape (B, C, H, W), and their targets labels, (B,).

    Parameters
    ----------
    images : Images
        What to read.
    order : ndarray, shape (n,)
        Indices in the order of the epoch; the last batch may be shorter.
    batch_size : int
        Images per step over all ranks.
    first : int
        First batch wanted.
    seed : sequence of int, optional
        Seed of the augmentation of this epoch; None: no augmentation. What a batch becomes does
        not depend on the batches before it, nor on the number of ranks.
    rank, n_ranks : int
        This rank gets a contiguous share of each batch.
    """

    def read(number: int) -> Batch:
        chosen = order[number * batch_size : (number + 1) * batch_size]
        size = len(chosen)
        mine = slice(size * rank // n_ranks, size * (rank + 1) // n_ranks)
        empty = mine.start == mine.stop
        if empty:
            mine = slice(0, 1)  # every rank takes part in every step
        rng = None if seed is None else np.random.default_rng([*seed, number])
        labels = torch.from_numpy(images.labels[chosen[mine]])
        if empty:
            labels = torch.full_like(labels, _IGNORED)
        return Batch(images.load(chosen, rng, mine), labels, size)

    n_batches = -(-len(order) // batch_size)
    with ThreadPoolExecutor(1) as ahead:
        waiting: Future[Batch] | None = None
        for number in range(first, n_batches):
            current = waiting if waiting is not None else ahead.submit(read, number)
            waiting = ahead.submit(read, number + 1) if number + 1 < n_batches else None
            yield current.result()
