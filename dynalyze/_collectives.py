"""Sums over the processes of a torchrun job: each rank holds a share of the samples.

Every function is the identity where no process group is initialized, so the code that calls
them is the same for one process and for many.
"""

from dynalyze._torch import torch


def world() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without a process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def share(n_samples: int) -> slice:
    """Samples of this rank: contiguous shares that differ in length by at most one."""
    rank, size = world()
    return slice(n_samples * rank // size, n_samples * (rank + 1) // size)


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` over all ranks, in place; every rank receives the same bits."""
    if world()[1] > 1:
        torch.distributed.all_reduce(values)
    return values
