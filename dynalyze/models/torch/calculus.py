"""Derivatives by PyTorch, whatever the caller has set around them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dynalyze._core.pytorch import torch


def gradient_of(value: torch.Tensor, point: torch.Tensor, *, graph: bool = False) -> torch.Tensor:
    """∂value/∂point, 0 where it does not depend on the point; `graph` lets it be differentiated."""
    if not value.requires_grad:
        return torch.zeros_like(point)
    return torch.autograd.grad(
        value, point, create_graph=graph, allow_unused=True, materialize_grads=True
    )[0]


@contextmanager
def computing(*, derivatives: bool) -> Iterator[None]:
    """Have derivatives, or none, and attention that can be differentiated twice."""
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(derivatives),
        differentiable_attention(),
    ):
        yield


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Have scaled-dot-product attention computed by formulas that differentiate twice.

    The fused kernels have no second derivatives. `torch.nn.attention.sdpa_kernel` does the same, in
    a time that small modules would notice.
    """
    kernels: Any = torch.backends.cuda  # its settings hold on every device
    before = (
        kernels.math_sdp_enabled(),
        kernels.flash_sdp_enabled(),
        kernels.mem_efficient_sdp_enabled(),
        kernels.cudnn_sdp_enabled(),
    )
    try:
        _enable_attention(True, False, False, False)
        yield
    finally:
        _enable_attention(*before)


def _enable_attention(math: bool, flash: bool, efficient: bool, cudnn: bool) -> None:
    torch.backends.cuda.enable_math_sdp(math)
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_mem_efficient_sdp(efficient)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
