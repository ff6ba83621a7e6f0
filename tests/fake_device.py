"""A CUDA device that is none: tensors keep their values on the CPU, but may not be used there.

Where no card is, the code paths of a GPU run all the same, and what a card would refuse is an
error here too: NumPy's view of a tensor on the device, and operations that mix it with tensors on
the CPU. A card copies an index from the CPU without a word; that is an error here as well, since
it waits for the device. What does wait for it is counted.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_DEVICE = torch.device("cuda", 0)
_WAITING = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select")
_Tensor = torch.Tensor


class FakeDevice:
    """Where each tensor is said to be, by its storage; and what was moved.

    Attributes
    ----------
    copies_to_device, copies_to_host : int
        Tensors that were moved.
    waits : int
        Values asked for while the device works: `.item()`, `bool()`, `torch.equal`, …
    free_bytes : int
        What the device says is free.
    """

    def __init__(self, free_bytes: int) -> None:
        self.copies_to_device = 0
        self.copies_to_host = 0
        self.waits = 0
        self.free_bytes = free_bytes
        self._places: dict[int, tuple[StorageWeakRef, str]] = {}

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return self.place(tensor) == "cuda"

    def place(self, tensor: torch.Tensor) -> str | None:
        """Return "cuda", "cpu", or None for what C++ made for itself, which may go with either."""
        storage = _storage(tensor)
        found = self._places.get(storage._cdata) if storage is not None else None
        return None if found is None or found[0].expired() else found[1]

    def put(self, values: object, place: str, *, anew: bool = True) -> None:
        """Say that every tensor among `values` is at `place`; if not `anew`, where none is said."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor) and (anew or self.place(tensor) is None):
                storage = _storage(tensor)
                if storage is not None:
                    self._places[storage._cdata] = StorageWeakRef(storage), place


@contextmanager
def fake_device(free_bytes: int = 2**30) -> Iterator[FakeDevice]:
    """Within the block `device="cuda"` is a device that computes on the CPU.

    >>> with fake_device() as device:
    ...     there = torch.ones(2, device="cuda")
    ...     assert there in device and there.is_cuda and device.waits == 0
    """
    device = FakeDevice(free_bytes)
    numpy_made = torch.from_numpy

    def from_numpy(array: Any) -> torch.Tensor:
        tensor = numpy_made(array)
        device.put(tensor, "cpu")
        return tensor

    with ExitStack() as stack:
        for owner, name, value in (
            (torch, "from_numpy", from_numpy),
            (torch, "Generator", _Generator),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "set_device", lambda device: None),
            (torch.cuda, "synchronize", lambda device=None: None),
            (torch.cuda, "empty_cache", lambda: None),
            (torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state()),
            (torch.cuda, "mem_get_info", lambda d=None: (device.free_bytes, 2 * device.free_bytes)),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(_Operations(device))
        stack.enter_context(_Calls(device))
        yield device


class _Generator(torch.Generator):
    """Random numbers for the device, drawn on the CPU."""

    def __new__(cls, device: object = "cpu") -> "_Generator":
        return super().__new__(cls)


class _Calls(TorchFunctionMode):
    """Moves, attributes and creation, as Python asks for them."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        there = bool(args) and isinstance(args[0], _Tensor) and args[0] in self.device
        if func in _ATTRIBUTES and there:
            return _ATTRIBUTES[func]
        if func in (_Tensor.numpy, _Tensor.__array__) and there:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first."
            )
        if func is _Tensor.tolist and there:
            self.device.waits += 1
        if func is _Tensor.pin_memory:
            return args[0]
        if func is torch._C._nn._parse_to:  # reads the arguments of Module.to
            return func(*args, **kwargs)
        if func in _MOVES:
            return self._move(func, args, kwargs)
        target = _device_named(kwargs.get("device"))
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        result = func(*args, **kwargs)
        if target == "cuda":
            self.device.put(result, "cuda")
        elif func in (torch.autograd.grad,):
            self.device.put(result, "cuda" if _any(args, self.device) else "cpu", anew=False)
        else:
            self.device.put(result, "cpu", anew=False)
        return result

    def _move(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, *rest = args
        source = "cuda" if tensor in self.device else "cpu"
        target = {_Tensor.cpu: "cpu", _Tensor.cuda: "cuda"}.get(func, source)
        if func is _Tensor.cuda:
            func, rest, kwargs = _Tensor.to, [], {}
        for place in map(_device_named, (*rest, kwargs.pop("device", None))):
            target = place or target
        rest = ["cpu" if _device_named(value) else value for value in rest]
        if rest and isinstance(rest[0], _Tensor):  # tensor.to(other)
            target = "cuda" if rest[0] in self.device else "cpu"
        moved = func(tensor, *rest, **kwargs) if rest or kwargs else tensor
        if target == source:
            self.device.put(moved, target, anew=False)
            return moved
        if target == "cuda":
            self.device.copies_to_device += 1
        else:
            self.device.copies_to_host += 1
        moved = moved.clone()
        self.device.put(moved, target)
        return moved


class _Operations(TorchDispatchMode):
    """Every operation that is carried out, within derivatives and vmap as well."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, _Tensor)]
        there = any(t in self.device for t in tensors)
        if there and name in _WAITING:
            self.device.waits += 1
        if there and name not in ("aten::copy_", "aten::_to_copy"):
            strangers = [t for t in tensors if t.ndim > 0 and self.device.place(t) == "cpu"]
            if strangers:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, cuda:0 and cpu! ({name}, shape {tuple(strangers[0].shape)})"
                )
        result = func(*args, **kwargs)
        if there and name != "aten::copy_":
            self.device.put(result, "cuda", anew=False)
        return result


_ATTRIBUTES: dict[object, object] = {
    _Tensor.device.__get__: _DEVICE,
    _Tensor.is_cuda.__get__: True,
    _Tensor.is_cpu.__get__: False,
    _Tensor.get_device: 0,
}
_MOVES = (_Tensor.to, _Tensor.cpu, _Tensor.cuda)


def _device_named(value: object) -> str | None:
    if isinstance(value, str | torch.device):
        return torch.device(value).type
    return None


def _any(values: object, device: FakeDevice) -> bool:
    return any(isinstance(t, _Tensor) and t in device for t in tree_leaves(values))


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return None
