"""The one place that imports torch, for the modules that need it."""

from dynalyze.errors import MissingDependencyError

try:
    import torch
except ImportError as error:
    raise MissingDependencyError(
        'PyTorch models and training runs need torch: pip install "dynalyze[torch]"'
    ) from error

__all__ = ["torch"]
