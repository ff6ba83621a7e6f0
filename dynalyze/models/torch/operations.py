"""What a forward pass does with θ: kinks, random numbers and low precision, by its operations."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dynalyze._core.pytorch import torch

# ATen's names, in-place forms without their underscore. Not twice differentiable everywhere.
_NON_SMOOTH = frozenset(
    {
        *("relu", "leaky_relu", "_prelu_kernel", "rrelu_with_noise", "threshold", "hardtanh"),
        *("hardswish", "hardsigmoid", "hardshrink", "softshrink", "elu", "celu", "abs", "sign"),
        *("clamp", "clamp_min", "clamp_max", "maximum", "minimum", "fmax", "fmin", "max", "min"),
        *("amax", "amin", "aminmax", "max_pool2d_with_indices", "max_pool3d_with_indices"),
        *("adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "cummax"),
        *("cummin", "sort", "topk", "kthvalue", "median", "nanmedian", "mode", "floor", "ceil"),
        *("round", "trunc", "frac", "fmod", "remainder", "heaviside", "huber_loss", "sgn", "dist"),
        *("smooth_l1_loss", "linalg_vector_norm", "norm", "_cdist_forward", "_euclidean_dist"),
    }
)
_SHOWN = {"_prelu_kernel": "prelu", "rrelu_with_noise": "rrelu"}
_READ = frozenset({"_local_scalar_dense", "equal"})  # item(), bool(), if
_CHECKS = frozenset({"isnan", "isinf", "isposinf", "isneginf"})  # the same at all finite θ
_NOT_NUMBERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow θ through the operations that are carried out while the mode is active.

    Attributes
    ----------
    non_smooth : set of str
        Operations on what depends on θ that are not twice differentiable everywhere. A mask or an
        index that depends on θ makes one of what it is applied to: ``where``, ``gather``, the
        product in ``z * (z > 0)``. On data or with a fixed mask the same is smooth in θ.
    random : set of str
        Operations that draw random numbers.
    precisions : set of torch.dtype
        Types of the floating-point and complex results that depend on θ.
    outside : set of str
        Names of those tensors among `others` that were used: weights in which θ is not put.
    """

    def __init__(
        self, theta: torch.Tensor, others: Mapping[str, torch.Tensor] = MappingProxyType({})
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outside: set[str] = set()
        self._others = {
            storage._cdata: name
            for name, tensor in others.items()
            if (storage := _storage(tensor)) is not None
        }
        self.non_smooth: set[str] = set()
        self.random: set[str] = set()
        self.precisions: set[torch.dtype] = set()
        # By storage, so that views and writes in place are followed; held, so that none is reused.
        self._depends: dict[int, torch.UntypedStorage] = {}
        self._mark(theta)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: the import of torch's compiler, seconds long, is not needed."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func._schema.name).partition("::")[2].rstrip("_") or str(func)
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random.add(name)
        given = list(_tensors((args, kwargs)))
        of_theta = [t for t in given if self._is_marked(t)]
        for storage in map(_storage, given) if self._others else ():
            if storage is not None and storage._cdata in self._others:
                self.outside.add(self._others[storage._cdata])
        result = func(*args, **kwargs)
        if of_theta and name not in _CHECKS:
            results = list(_tensors(result))
            kinks = name in _NON_SMOOTH and any(t.is_floating_point() for t in of_theta)
            chosen = any(t.dtype in _NOT_NUMBERS for t in of_theta) and any(
                t.is_floating_point() for t in results
            )
            if name in _READ:
                self.non_smooth.add("a decision by numbers that depend on θ")
            elif kinks:
                self.non_smooth.add(_SHOWN.get(name, name))
            elif chosen:
                self.non_smooth.add(f"{name} with a mask or index of θ")
            for tensor in results:
                self._mark(tensor)
                if tensor.is_floating_point() or tensor.is_complex():
                    self.precisions.add(tensor.dtype)
        return result

    def _mark(self, tensor: torch.Tensor) -> None:
        storage = _storage(tensor)
        if storage is not None:
            self._depends[storage._cdata] = storage

    def _is_marked(self, tensor: torch.Tensor) -> bool:
        storage = _storage(tensor)
        return storage is not None and storage._cdata in self._depends


def operations_of(evaluate: Callable[[torch.Tensor], object], theta: torch.Tensor) -> Operations:
    """Operations of one evaluation at `theta`."""
    with Operations(theta) as operations:
        evaluate(theta)
    return operations


class ProducedBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the tensors that operations return, each storage once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: dict[int, torch.UntypedStorage] = {}

    @property
    def total(self) -> int:
        """Sum over the storages."""
        return sum(storage.nbytes() for storage in self._held.values())

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if (storage := _storage(tensor)) is not None:
                self._held[storage._cdata] = storage
        return result


def _tensors(values: object) -> Iterable[torch.Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return None
