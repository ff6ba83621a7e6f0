"""What a forward pass does with θ: kinks, random numbers and low precision, by its operations."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch.overrides import TorchFunctionMode
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
        *("copysign", "nextafter", "hypot", "floor_divide", "_pdist_forward", "multi_margin_loss"),
        *("multilabel_margin_loss_forward",),
    }
)
_SHOWN = {"_prelu_kernel": "prelu", "rrelu_with_noise": "rrelu"}
_READ = frozenset({"_local_scalar_dense", "equal"})  # item(), bool(), if
_READ_PAST_OPERATIONS = frozenset({"tolist", "numpy", "__array__", "__dlpack__"})
_DECISION = "a decision by numbers that depend on θ"
_CHECKS = frozenset({"isnan", "isinf", "isposinf", "isneginf"})  # the same at all finite θ
_NOT_NUMBERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass
class _Kink:
    name: str  # of the operation
    tensor: torch.Tensor  # held, so that its id is not given to another
    used: bool = False  # by an operation that computes
    seen: bool = False  # by a view, which has the kink instead

    @property
    def acts(self) -> bool:
        """Whether something was computed with it, or it is what came out."""
        return self.used or not self.seen


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow θ through the operations that are carried out while the mode is active.

    Attributes
    ----------
    non_smooth : set of str
        Operations on what depends on θ that are not twice differentiable everywhere. A mask or an
        index that depends on θ makes one of what it is applied to: ``where``, ``gather``, the
        product in ``z * (z > 0)``. On data or with a fixed mask the same is smooth in θ, and so it
        is on one side of ``detach()``, as in ``z - z.max().detach()``: either nothing depends on
        it, or the derivative is not that of the function, which finite differences show.
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
        self._decided = False
        self._kinks: dict[int, _Kink] = {}  # by the id of the tensor that has it
        self._detached: dict[int, torch.Tensor] = {}  # by id: nothing is differentiated through
        self._reads = _Reads(self)
        self.random: set[str] = set()
        self.precisions: set[torch.dtype] = set()
        # By storage, so that views and writes in place are followed; held, so that none is reused.
        self._depends: dict[int, torch.UntypedStorage] = {}
        self._mark(theta)

    @property
    def non_smooth(self) -> set[str]:
        """Names, for the user; see the class."""
        names = {kink.name for kink in self._kinks.values() if kink.acts}
        return names | ({_DECISION} if self._decided else set())

    def __enter__(self) -> "Operations":
        self._reads.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._reads.__exit__(*error)  # type: ignore[no-untyped-call]

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
        for tensor in given:
            if id(tensor) in self._kinks and not func.is_view:
                self._kinks[id(tensor)].used = True
        if of_theta and name not in _CHECKS:
            self._follow(name, func, given, of_theta, list(_tensors(result)), kwargs)
        return result

    def _follow(
        self,
        name: str,
        func: Any,
        given: Sequence[torch.Tensor],
        of_theta: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Note what an operation on tensors that depend on θ makes of its results."""
        numbers = [t for t in results if t.is_floating_point()]
        differentiated = [t for t in of_theta if id(t) not in self._detached]
        kinks = name in _NON_SMOOTH or kwargs.get("rounding_mode")
        kink = None
        if name in _READ:
            self._decided = True
        elif kinks and any(t.is_floating_point() for t in differentiated):
            kink = _SHOWN.get(name, name)
        elif numbers and any(t.dtype in _NOT_NUMBERS for t in of_theta):
            kink = f"{name} with a mask or index of θ"
        if kink is not None:
            for tensor in numbers:
                in_place = any(tensor is t for t in given)
                self._kinks[id(tensor)] = _Kink(kink, tensor, used=in_place)
        elif func.is_view:
            for shown in [self._kinks[id(t)] for t in given if id(t) in self._kinks]:
                shown.seen = True
                for tensor in results if name != "detach" else ():
                    self._kinks[id(tensor)] = _Kink(shown.name, tensor)
        if name == "detach" or not differentiated:
            self._detached.update((id(t), t) for t in numbers)
        for tensor in results:
            self._mark(tensor)
            if tensor.is_floating_point() or tensor.is_complex():
                self.precisions.add(tensor.dtype)

    def note_decision(self, values: object) -> None:
        """Numbers are taken out of a tensor by a way that is no operation."""
        self._decided |= any(self._is_marked(tensor) for tensor in _tensors(values))

    def _mark(self, tensor: torch.Tensor) -> None:
        storage = _storage(tensor)
        if storage is not None:
            self._depends[storage._cdata] = storage

    def _is_marked(self, tensor: torch.Tensor) -> bool:
        storage = _storage(tensor)
        return storage is not None and storage._cdata in self._depends


class _Reads(TorchFunctionMode):
    """See numbers of θ being read by what is no operation, as ``tolist()`` and ``numpy()``."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _READ_PAST_OPERATIONS:
            self._operations.note_decision(args)
        return func(*args, **(kwargs or {}))


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
