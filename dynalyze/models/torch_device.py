"""Where a PyTorch model computes: the device, its memory, and a private copy of the module."""

import copy

from dynalyze._torch import torch
from dynalyze.errors import InvalidInputError

# Measured: passes of 1 GiB take three times as long per sample, those below 16 MiB longer too.
_CPU_BUDGET = 2**26


def private_copy(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Copy of a module on `device`: in float64, nothing to be trained, nothing in place."""
    private = copy.deepcopy(module).to(device=device, dtype=torch.float64).requires_grad_(False)
    for part in private.modules():
        if hasattr(part, "inplace"):
            setattr(part, "inplace", False)  # noqa: B010  (overwriting defeats batched derivatives)
    return private


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
    if usable.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"device={str(usable)!r}: no CUDA device is available; use 'cpu'")
    return usable


def default_budget(device: torch.device) -> int:
    """Bytes that one pass may take: 64 MiB on a CPU, half of the free memory on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return _CPU_BUDGET
