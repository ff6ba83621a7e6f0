"""Sums and agreement over the processes of a torchrun job: each rank holds a share of the samples.

Every function does nothing where no process group is initialized, so the code that calls them is
the same for one process and for many.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError

_Value = TypeVar("_Value")
_SHOWN = 80  # characters of a value in a message


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


def of_first_rank(value: _Value) -> _Value:
    """The `value` of rank 0, on every rank."""
    values = [value]
    if world()[1] > 1:
        torch.distributed.broadcast_object_list(values)
    return values[0]


@contextmanager
def every_rank() -> Iterator[dict[str, Any]]:
    """Raise an error of one rank on all of them, and one where what they state differs.

    Without it the other ranks would wait for the one that failed, or go on with samples of
    another data set. Blocks may be nested; within one, no other collective is allowed.

    Yields
    ------
    dict of str to object
        For statements that must be the same on every rank, made of what JSON can hold.

    Raises
    ------
    InvalidInputError
        If another rank raised an error, or the statements differ; the message says which.
    """
    stated: dict[str, Any] = {}
    _, size = world()
    failure: Exception | None = None
    try:
        yield stated
    except Exception as error:
        if size == 1 or hasattr(error, "_known_to_every_rank"):
            raise
        failure = error
    if size == 1:
        return
    everyone: list[Any] = [None] * size
    text = None if failure is None else f"{type(failure).__name__}: {failure}"
    torch.distributed.all_gather_object(everyone, (text, stated))
    try:
        if failure is not None:
            raise failure
        for other, (message, _) in enumerate(everyone):
            if message is not None:
                raise InvalidInputError(f"process {other} of {size} failed: {message}")
        for other, (_, theirs) in enumerate(everyone):
            found = first_difference(everyone[0][1], theirs)
            if found is not None:
                name, first, second = found
                raise InvalidInputError(
                    f"{name} is {first} in process 0 and {second} in process {other} of {size}: "
                    "every process must give the same arguments and data, drawn from the same "
                    "seed (rng=), and a checkpoint folder that all machines share"
                )
    except Exception as error:
        # A block around this one must not tell the others a second time.
        error._known_to_every_rank = True  # type: ignore[attr-defined]
        raise


def first_difference(before: Any, now: Any, name: str = "") -> tuple[str, str, str] | None:
    """Where two nested values of JSON differ first: the entry's name, and both values as text."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        pairs = [(str(k), before.get(k), now.get(k)) for k in dict.fromkeys([*before, *now])]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(before, now, strict=True))]
    elif before == now:
        return None
    else:
        return name, _shortened(before), _shortened(now)
    for key, a, b in pairs:
        found = first_difference(a, b, f"{name}.{key}" if name else key)
        if found is not None:
            return found
    return None


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
