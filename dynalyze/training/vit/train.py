"""Training a vision transformer while its attention spectra are tracked."""

import operator
import os
from collections.abc import Callable

from dynalyze._core.collectives import all_reduce, every_rank
from dynalyze._core.interrupts import held, interruptible
from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.training.distributed import default_device
from dynalyze.training.loop import Extent, run_loop, told_of_late_interrupts
from dynalyze.training.vit.data import digits
from dynalyze.training.vit.images import VisionData
from dynalyze.training.vit.loop import VisionLoop
from dynalyze.training.vit.model import ViTShape
from dynalyze.training.vit.options import ViTOptions
from dynalyze.training.vit.result import ViTRun


@held()
@interruptible()
def train_vit(
    data: VisionData | None = None,
    shape: ViTShape | None = None,
    options: ViTOptions | None = None,
    *,
    scale: float = 1.0,
    seed: int = 0,
    track_every: int = 50,
    n_values: int | None = 10,
    spectrum: str = "leading",
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    keep_checkpoints: int = 2,
    max_seconds: float | None = None,
    callback: Callable[[int, float], bool | None] | None = None,
    progress: bool = False,
) -> ViTRun:
    """Train a vision transformer as the paper does, tracking Δ(W_K W_Qᵀ) and Δ(W_V W_Oᵀ).

    Inside `dynalyze.training.distributed.process_group`, under torchrun, every process calls it
    with the same arguments; the batches are divided, gradients averaged by DDP, and rank 0 tracks
    and writes. Every random choice is a function of the seed and the step, so that a run continued
    from a checkpoint ends with the same weights and records as one that was never interrupted.

    Parameters
    ----------
    data : VisionData, optional
        Images, by `digits` (the default), `cifar` or `image_folder`.
    shape : ViTShape, optional
        Sizes of the model; by default ``ViTShape.for_images``.
    options : ViTOptions, optional
        Optimizer, schedule, precision; the paper's by default.
    scale : float
        Factor on the initial values of all layers but the token embedding.
    seed : int
        Seed of initial weights, order of the images and augmentation.
    track_every, n_values, spectrum
        See `dynalyze.spectra.track`; steps are the optimizer's.
    device : str or torch.device, optional
        By default what `process_group` chose; without it this process's GPU if there is one, else
        the CPU.
    checkpoint : path, optional
        Folder for checkpoints; a run that finds one there goes on from it. One process at a time
        (or one torchrun job) may use it.
    checkpoint_every : int
        Steps between checkpoints.
    keep_checkpoints : int
        How many of the latest are kept.
    max_seconds : float, optional
        Stop, with a checkpoint, after so much wall-clock time of this call.
    callback : callable, optional
        ``callback(step, loss)`` after every step (on a GPU this waits for it); return True to stop.
    progress : bool
        Show a progress bar on rank 0.

    Returns
    -------
    ViTRun
        The same on every rank.

    Raises
    ------
    InvalidInputError
        If an argument is out of range or differs between the processes, the shape does not fit the
        images, or the checkpoint folder holds another run.
    SavedFileError
        If a checkpoint is damaged.
    """
    with every_rank():
        data = digits() if data is None else data
        shape = _fitted(data, shape)
        options = ViTOptions() if options is None else options
        place = default_device() if device is None else torch.device(device)
        extent = Extent(
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            keep_checkpoints=keep_checkpoints,
            max_seconds=max_seconds,
            callback=callback and (lambda step, loss: callback(step, float(all_reduce(loss)))),
            progress=progress,
        )
    loop = run_loop(
        lambda found: VisionLoop(
            data, shape, options, scale=float(scale), seed=operator.index(seed), device=place,
            track={"every": track_every, "n_values": n_values, "spectrum": spectrum},
            watched=callback is not None,
        ),
        extent,
    )  # fmt: skip
    return told_of_late_interrupts([loop.result()])[0]


def _fitted(data: VisionData, shape: ViTShape | None) -> ViTShape:
    _, height, width = data.train.shape
    if height != width or data.test.shape != data.train.shape:
        raise InvalidInputError(
            f"images must be square and of one size, got {data.train.shape} and {data.test.shape}: "
            "crop or resize them."
        )
    if shape is None:
        shape = ViTShape.for_images(data.train.shape, data.n_classes)
    expected = (shape.n_channels, shape.image_size, shape.image_size)
    if data.train.shape != expected or shape.n_classes != data.n_classes:
        raise InvalidInputError(
            f"the shape is for images {expected} of {shape.n_classes} classes, and {data.name} has "
            f"images {data.train.shape} of {data.n_classes} classes: leave shape out, or give "
            "ViTShape.for_images(data.train.shape, data.n_classes)."
        )
    return shape
