"""Arithmetic that does not depend on what the caller has set for training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """No gradients, no autocast, no reduced-precision products, whatever the caller has set."""
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        _full_precision(),
    ):
        yield


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32.

    torch 2.9 has a setting per backend, which `set_float32_matmul_precision` must not be mixed
    with: once a caller has used it, reading the older one raises.
    """
    backends: list[Any] = [
        torch.backends.cuda.matmul,
        getattr(torch.backends.mkldnn, "matmul", None),
    ]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):
        older = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(older)
        return
    before = [backend.fp32_precision for backend in backends]
    # What a backend does not set itself it takes from the setting of all: it is left to it again.
    shared = getattr(torch.backends, "fp32_precision", None)
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = "none" if value == shared else value
