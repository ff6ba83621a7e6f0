"""Derivatives by PyTorch, whatever the caller has set around them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

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


def differentiable_attention() -> AbstractContextManager[None]:
    """Have scaled-dot-product attention computed by formulas that differentiate twice.

    The fused kernels have no second derivatives.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
