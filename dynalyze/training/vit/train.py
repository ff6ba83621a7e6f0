"""Training a vision transformer while its attention spectra are tracked."""

from dynalyze._core.collectives import every_rank
from dynalyze._core.interrupts import held, interruptible
from dynalyze.errors import InvalidInputError
from dynalyze.training.keywords import called_with
from dynalyze.training.loop import run_loop, told_of_late_interrupts
from dynalyze.training.vit.data import digits
from dynalyze.training.vit.images import VisionData
from dynalyze.training.vit.loop import VisionLoop
from dynalyze.training.vit.model import ViTShape
from dynalyze.training.vit.options import VisionTraining, ViTOptions
from dynalyze.training.vit.result import ViTRun


@held()
@interruptible()
@called_with(VisionTraining)
def train_vit(given: VisionTraining) -> ViTRun:
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
        data = digits() if given.data is None else given.data
        shape = _fitted(data, given.shape)
    options = ViTOptions() if given.options is None else given.options
    loop = run_loop(lambda found: VisionLoop(data, shape, options, given), given)
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
