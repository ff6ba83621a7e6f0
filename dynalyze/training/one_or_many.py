"""Training runs of heads and transformers with product weights: one, or many at once."""

from dynalyze.training.assemble import run_all
from dynalyze.training.keywords import called_with
from dynalyze.training.options import ManyTrainings, OneTraining
from dynalyze.training.result import TrainingRun


@called_with(OneTraining)
def train(given: OneTraining) -> TrainingRun:
    """Train the product weights of a model from a small initialization.

    Only the weights that enter as products train. In a torchrun job (see
    `dynalyze.training.distributed`) every rank calls it with the same arguments, which are
    compared; the samples of each step are divided among the ranks.

    Diagonal heads in float64 on the CPU are trained by kernels of the library's own where these
    know optimizer and loss, everything else by PyTorch; both make the same steps up to rounding,
    and ``configuration["engine"]`` of the run says which did. The guide to PyTorch has the rule.

    Parameters
    ----------
    model : TorchModel, AttentionHead, DiagonalTransformer, DiagonalHead or FullHead
        What is trained; any module that declares ``products`` will do. The model itself is not
        changed: the weights at the end are in the run.
    data : pair (X, y), torch Dataset or DataLoader
        Read to the end and kept on the device.
    lr : float
        Learning rate; step k is at flow time t = lr × k, or lr/(1 − β) × k with momentum β.
    steps, until : int, float
        Number of optimizer steps, or flow time at which to end; exactly one of the two.
    init : Initialization, optional
        Weights α (u0, v0), with one entry per entry of the parameters. By default the model's own.
    optimizer : {"gd", "sgd", "adam"}
        Full-batch gradient descent; gradient descent on random batches; Adam on random batches,
        or on all samples without `batch_size`.
    optimizer_options : mapping, optional
        Further arguments of torch.optim.SGD or torch.optim.Adam.
    batch_size : int, optional
        Samples per step of ``"sgd"`` and ``"adam"``; an epoch is one random order of all.
    loss : {"squared", "mse"} or callable
        As for `TorchModel.bind`. A checkpoint knows a callable by its code and the values that it
        refers to, or, if it has an attribute ``identity``, by that string alone.
    recording : Recording, optional
        When to record; by default densely at jumps.
    rng : numpy.random.Generator or int, optional
        Source of the batches' order. By default a seed is drawn, on rank 0, and kept in the
        checkpoint and in ``configuration["seeds"]``.
    precision : {"float64", "float32"}
        Of weights, gradients and samples; records are in float64. On most GPUs float32 is many
        times as fast. At about ten points of the run its gradients are compared with those of
        float64: `message` and ``configuration["gradient_errors"]`` tell the differences.
    device : str or torch.device, optional
        By default the model's own.
    checkpoint : str or path-like, optional
        Folder of checkpoints. If it holds some of the same run, the run goes on from the latest,
        bit for bit as if it had not been interrupted; Ctrl-C saves one and returns. One process
        at a time may use it.
    checkpoint_every : int
        Steps between two checkpoints.
    keep_checkpoints : int
        How many of the latest are kept.
    max_seconds : float, optional
        Wall-clock limit.
    callback : callable, optional
        ``callback(step, losses)`` at every check of the recording; True ends the run.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    TrainingRun

    Raises
    ------
    InvalidInputError
        For arguments that do not fit or differ between the ranks, for a checkpoint of another
        run, or if the loss is not finite at the start.
    SavedFileError
        If a checkpoint is damaged.

    Warns
    -----
    LearningRateWarning
        If the run diverged, or the loss rose at more than one step in a hundred of full-batch
        gradient descent.

    Examples
    --------
    >>> import numpy as np
    >>> from dynalyze.flow.initialization import Initialization
    >>> from dynalyze.training import DiagonalHead, train
    >>> X = np.random.default_rng(0).standard_normal((20, 3, 2))
    >>> init = Initialization.gaussian(4, log10_alpha=-4, rng=1)
    >>> run = train(DiagonalHead(2), (X, 0.5 * X), init=init, lr=0.1, until=20.0)
    >>> run.success
    True
    """
    return run_all(given)[0]


@called_with(ManyTrainings)
def train_many(given: ManyTrainings) -> tuple[TrainingRun, ...]:
    """Train from many initializations at once (scales, seeds), on one device.

    The runs are those of `train`, one by one, up to rounding; a run that diverges, or whose loss
    is not finite at the start, leaves the others alone.

    Parameters
    ----------
    model, data
        As for `train`.
    inits : sequence of Initialization
        One for each run.
    rngs : sequence of numpy.random.Generator or int, optional
        One for each run: sources of the batches' order.
    **options
        All others as for `train`.

    Returns
    -------
    tuple of TrainingRun
        In the order of `inits`.

    Raises
    ------
    InvalidInputError
        If there is no run, `rngs` is of another length, no run's loss is finite at the start, or
        for the other reasons of `train`.
    """
    return run_all(given)
