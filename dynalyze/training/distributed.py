"""Many processes or machines by torchrun: the samples are divided, everything else is the same.

Inside `process_group`, `predict_stages` of a torch model and `train` work on this rank's share of
the samples and sum field, Hessian columns and gradients over the ranks. Every rank calls them
with the same arguments and receives the same results.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from dynalyze._core.collectives import world
from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError

# What `process_group` chose, within its block.
_CHOSEN: ContextVar[torch.device | None] = ContextVar("device of the process group", default=None)
_FROM_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Process:
    """One process among those of a torchrun job."""

    rank: int
    size: int
    device: torch.device  # for `device=` of models and runs: a GPU of this machine, or the CPU

    @property
    def is_first(self) -> bool:
        """Whether this is the process that should print and write."""
        return self.rank == 0


@contextmanager
def process_group(*, device: str = "auto") -> Iterator[Process]:
    """Join the processes that torchrun started; started without torchrun, be the only one.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        ``"cuda"`` takes one GPU per process, and sums by NCCL on it and by gloo on the CPU, where
        models are that were not moved; ``"cpu"`` takes gloo alone; ``"auto"`` takes GPUs where
        this machine has one for each of its processes.

    Yields
    ------
    Process

    Raises
    ------
    InvalidInputError
        If `device` is unknown, or there are fewer GPUs than processes on this machine.

    Examples
    --------
    In ``stages.py``, started by ``torchrun --nproc-per-node 2 stages.py``::

        with process_group() as process:
            model = TorchModel(module, products, device=process.device)
            prediction = predict_stages(model, data)
            if process.is_first:
                print(prediction)
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidInputError(f'device={device!r} is not known: choose "auto", "cpu" or "cuda"')
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count()
    if device == "cuda" and gpus < local_size:
        raise InvalidInputError(
            f"device='cuda': {local_size} processes on this machine and {gpus} GPUs; start one "
            'process per GPU, or choose device="cpu"'
        )
    on_gpu = device == "cuda" or (device == "auto" and gpus >= local_size)
    place = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    chosen = _CHOSEN.set(place)
    try:
        if all(name in os.environ for name in _FROM_TORCHRUN):
            with _joined(place) as process:
                yield process
        else:
            yield Process(0, 1, place)
    finally:
        _CHOSEN.reset(chosen)


def default_device() -> torch.device:
    """Where this process computes: what `process_group` chose, or a GPU of its own, or the CPU."""
    chosen = _CHOSEN.get()
    if chosen is not None:
        return chosen
    on_gpu = torch.cuda.is_available()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        on_gpu = on_gpu and "nccl" in torch.distributed.get_backend_config()
    if not on_gpu:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def _joined(place: torch.device) -> Iterator[Process]:
    """Join torchrun's processes, with a backend for tensors at `place` and on the CPU."""
    if place.type == "cuda":
        torch.cuda.set_device(place)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    try:
        yield Process(*world(), place)
        # Leaving together, with nothing of the group alive, keeps gloo's threads from aborting.
        torch.distributed.barrier()
    finally:
        gc.collect()
        torch.distributed.destroy_process_group()
