"""What is trained: h(x; θ), its loss, its field g(θ) = −∂L/∂θ, and Hessian columns."""

from typing import TYPE_CHECKING, Any

from dynalyze.models.attention_head import AttentionHead, AttentionHeadObjective
from dynalyze.models.protocol import Model, Objective

if TYPE_CHECKING:
    from dynalyze.models.symbolic_model import SymbolicLoss, SymbolicModel

__all__ = [
    "AttentionHead",
    "AttentionHeadObjective",
    "Model",
    "Objective",
    "SymbolicLoss",
    "SymbolicModel",
]

_NEEDS_SYMPY = ("SymbolicLoss", "SymbolicModel")


def __getattr__(name: str) -> Any:
    if name in _NEEDS_SYMPY:
        from dynalyze.models import symbolic_model

        return getattr(symbolic_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
