"""Where a PyTorch model computes: the device, its memory, and a private copy of the module."""

import copy
import re

from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError

# Measured: passes of 1 GiB take three times as long per sample, those below 16 MiB longer too.
_CPU_BUDGET = 2**26
# Not every library under PyTorch reports a lack of memory as `torch.OutOfMemoryError`.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT)_(STATUS_)?ALLOC_FAILED"
    r"|can't allocate memory|not enough memory",
    re.IGNORECASE,
)
_OF_THE_DEVICE = re.compile(r"CUDA (driver )?error|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT)_|cuDNN e")
_PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def private_copy(
    module: torch.nn.Module, device: torch.device, dtype: torch.dtype = torch.float64
) -> torch.nn.Module:
    """Copy of a module on `device`: in `dtype`, nothing to be trained, nothing in place.

    Complex parameters and buffers become complex numbers of that precision.

    Raises
    ------
    InvalidInputError
        If the module cannot be copied, or is compiled.
    """
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule) or hasattr(part, "_orig_mod"):
            raise InvalidInputError(
                f"module=<{type(part).__name__}> is compiled by torch.jit or torch.compile, and "
                "its weights cannot be replaced: give the module that it was made of"
            )
    # Results that a module keeps, as the old weight_norm keeps its weight, refuse to be copied.
    kept = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        private = copy.deepcopy(module, dict[int, object](kept))
    except (TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise InvalidInputError(
            f"module=<{type(module).__name__}> cannot be copied, {error}: take out what "
            "copy.deepcopy refuses (locks, open files, tensors kept from a forward pass)"
        ) from error
    private.requires_grad_(False)
    private._apply(  # type: ignore[no-untyped-call]
        lambda tensor: converted(tensor, device, dtype)
    )
    for part in private.modules():
        if hasattr(part, "inplace"):
            setattr(part, "inplace", False)  # noqa: B010  (overwriting defeats batched derivatives)
    return private


def converted(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` on `device`: real numbers in `dtype`, complex ones in its complex form."""
    if tensor.is_complex():
        return tensor.to(device, _COMPLEX[dtype])
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def type_named(precision: str) -> torch.dtype:
    """Type of numbers that `precision` names."""
    if precision not in _PRECISIONS:
        raise InvalidInputError(
            f"precision={precision!r} is not known: choose 'float64' or 'float32'"
        )
    return _PRECISIONS[precision]


def usable_device(device: str | torch.device) -> torch.device:
    """Return the device that was named.

    Raises
    ------
    InvalidInputError
        If there is no such device, or it has no float64.
    """
    try:
        usable = torch.device(device)
    except RuntimeError as error:
        raise InvalidInputError(f"device={device!r} is not a torch device: {error}") from error
    if usable.type not in ("cpu", "cuda"):
        raise InvalidInputError(
            f"device={str(usable)!r} has no float64: use 'cpu' or a CUDA device"
        )
    if usable.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidInputError(
                f"device={str(usable)!r}: no CUDA device is available; use 'cpu'"
            )
        count = torch.cuda.device_count()
        if usable.index not in (None, *range(count)):
            raise InvalidInputError(
                f"device={str(usable)!r}: there are {count} CUDA devices, counted from 0"
            )
    return usable


def budgets(device: torch.device, memory_budget: int | None, data_bytes: int) -> tuple[bool, int]:
    """Return whether the data are kept on the device, and the bytes that one pass may take.

    With a `memory_budget` of the caller's, data up to that size are kept there. Without, a pass
    takes 64 MiB on a CPU, near its caches; on a GPU the data may take half of the free memory,
    and a pass half of what then remains.
    """
    if memory_budget is not None:
        return data_bytes <= memory_budget, memory_budget
    if device.type != "cuda":
        return True, _CPU_BUDGET
    free = int(torch.cuda.mem_get_info(device)[0])
    keep = data_bytes <= free // 2
    return keep, (free - data_bytes * keep) // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's lack of memory is behind an error, whichever library reports it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


def is_device_error(error: BaseException) -> bool:
    """Whether the device itself failed: nothing that follows on it can be trusted."""
    accelerator_error = getattr(torch, "AcceleratorError", ())  # since torch 2.8
    return isinstance(error, accelerator_error) or (
        isinstance(error, RuntimeError) and _OF_THE_DEVICE.search(str(error)) is not None
    )
