"""What is trained: h(x; θ), its loss, its field g(θ) = −∂L/∂θ, and Hessian columns."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dynalyze.errors import MissingDependencyError
from dynalyze.models.linear import DiagonalLinear
from dynalyze.models.protocol import Model, Objective

if TYPE_CHECKING:
    from dynalyze.models.attention_head import AttentionHead
    from dynalyze.models.formula.loss import SymbolicLoss
    from dynalyze.models.formula.model import SymbolicModel
    from dynalyze.models.torch.model import TorchModel
    from dynalyze.models.torch.transformer import DiagonalTransformer

__all__ = [
    "AttentionHead",
    "DiagonalLinear",
    "DiagonalTransformer",
    "Model",
    "Objective",
    "SymbolicLoss",
    "SymbolicModel",
    "TorchModel",
]

# Numba, SymPy and torch take up to a second to import: the first use of what needs them loads them.
_LOADED_ON_USE = {
    "AttentionHead": "attention_head",
    "DiagonalTransformer": "torch.transformer",
    "SymbolicLoss": "formula.loss",
    "SymbolicModel": "formula.model",
    "TorchModel": "torch.model",
}


def __getattr__(name: str) -> Any:
    if name in _LOADED_ON_USE:
        try:
            return getattr(import_module(f"{__name__}.{_LOADED_ON_USE[name]}"), name)
        except MissingDependencyError as error:
            return _stand_in(name, str(error))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _stand_in(name: str, message: str) -> type:
    """A class that says what is missing when it is used.

    An error already on access would break `hasattr`, and ``from dynalyze.models import *``.
    """

    def refuse(*_arguments: object, **_options: object) -> None:
        raise MissingDependencyError(message)

    return type(name, (), {"__init__": refuse, "__module__": __name__})
