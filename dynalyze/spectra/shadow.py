"""A stand-in for a module, to be called with other weights while the module stays untouched."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (list, dict, set, OrderedDict)


def shadow(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy of a module in evaluation mode without hooks, gradients or adapters of peft.

    Parameters are shared as long as they keep their type, so that the copy costs no memory, and
    are replaced in the copy only; buffers are copied, since a forward pass may write to them.

    Parameters
    ----------
    module : torch.nn.Module
        What to copy; nothing of it is changed, now or when the copy is called.
    dtype : torch.dtype, optional
        Type that real floating-point weights are converted to. Weights on the meta device come
        back as ones on the CPU.
    """
    made: dict[int, nn.Module] = {}

    def weight(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        value = value.detach()
        if value.is_meta:
            value = torch.ones(value.shape, dtype=value.dtype)
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    def copy_of(original: nn.Module) -> nn.Module:
        if id(original) in made:
            return made[id(original)]
        kind = type(original)
        parametrized = original._modules.get("parametrizations")
        if parametrized is not None:
            kind = nn.utils.parametrize.type_before_parametrizations(original)
        new: nn.Module = object.__new__(kind)
        made[id(original)] = new
        state = new.__dict__
        for name, value in original.__dict__.items():
            if isinstance(value, MethodType) and value.__self__ is original:
                state[name] = MethodType(value.__func__, new)
            elif "_hooks" in name and isinstance(value, dict):
                state[name] = type(value)()
            elif name != "forward":  # a wrapper around the original's, such as accelerate's
                state[name] = copy.copy(value) if type(value) in _CONTAINERS else value
        state["training"] = False
        state["_compiled_call_impl"] = None
        state["_parameters"] = {n: weight(p) for n, p in original._parameters.items()}
        state["_buffers"] = {n: _copied(weight(b)) for n, b in original._buffers.items()}
        children = {n: m for n, m in original._modules.items() if m is not parametrized}
        state["_modules"] = {n: None if m is None else copy_of(m) for n, m in children.items()}
        if parametrized is not None:
            for name in parametrized._modules:
                state["_parameters"][name] = weight(getattr(original, name))
        if hasattr(original, "lora_A"):
            state["_disable_adapters"], state["merged_adapters"] = True, []
        return new

    return copy_of(module)


def _copied(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace the weight of a dotted name in a shadow."""
    path, _, leaf = name.rpartition(".")
    holder = module.get_submodule(path)
    if leaf in holder._parameters:
        holder._parameters[leaf] = value  # type: ignore[assignment]
    elif leaf in holder._buffers:
        holder._buffers[leaf] = value
    else:
        holder.__dict__[leaf] = value


def first_output(result: Any) -> Tensor | None:
    """First floating-point tensor in what a module returned."""
    if isinstance(result, Tensor):
        return result if result.is_floating_point() else None
    values = result.values() if isinstance(result, dict) else result
    for value in values if isinstance(values, tuple | list | type({}.values())) else ():
        found = first_output(value)
        if found is not None:
            return found
    return None


def converted(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Copy of nested arguments with every tensor changed; other objects are copied."""
    if isinstance(value, Tensor):
        return change(value.detach())
    if type(value) in (tuple, list):
        return type(value)(converted(v, change) for v in value)
    if type(value) is dict:
        return {k: converted(v, change) for k, v in value.items()}
    return copy.deepcopy(value)
