"""What makes a run the same run: its configuration, the code of its functions, its data.

A run goes on from a checkpoint only where all of it is equal. Everything is described by what
JSON can hold, so that it can be kept in the checkpoint, and a difference can be named.
"""

import dis
import functools
import hashlib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynalyze._collectives import first_difference
from dynalyze._torch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.torch_data import fingerprint
from dynalyze.training.checkpoints import Checkpoint, as_json, as_text, random_state

# Known by name: what such a class does changes with its package's version, not with the run.
_LIBRARIES = frozenset(
    {"builtins", "dynalyze", "functools", "math", "numpy", "operator", "scipy", "torch"}
)
# Of the objects that a function refers to: deeper ones count by their class alone.
_DEEPEST = 5
_LONGEST = 10_000  # characters of a description; beyond it its hash has to do
_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module())) - {"training"}


def check_same_run(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Check that a checkpoint is of the run that `identity` describes.

    Raises
    ------
    InvalidInputError
        If it is of another; the message names the first difference.
    """
    found = first_difference(checkpoint.state.get("identity", {}), as_json(identity))
    if found is not None:
        name, before, now = found
        raise InvalidInputError(
            f"the checkpoint {checkpoint.path} is of another run: {name} was {before} and is now "
            f"{now}. Give the same arguments to go on with it, or another folder to begin anew"
        )


def describe(value: Any) -> Any:
    """What `value` is, in terms of JSON: numbers by value, arrays by hash, functions by code.

    The code of a function counts with the values that it refers to. A function or an object with
    an attribute ``identity``, a string, is known by that name alone.
    """
    return _shortened(_described(value, ()))


def describe_module(module: torch.nn.Module) -> Any:
    """What a module is but for its parameters and buffers: classes and settings of its parts."""
    parts = {name: _settings(part, ()) for name, part in module.named_modules()}
    return _shortened({**parts.pop(""), **parts})


def _described(value: Any, inside: tuple[int, ...]) -> Any:
    """Describe `value`, which the objects of the ids `inside` hold."""
    if isinstance(getattr(value, "identity", None), str):
        return value.identity
    for kinds, leaf in _LEAVES:
        if isinstance(value, kinds):
            return leaf(value)
    if len(inside) > _DEEPEST or id(value) in inside:
        return _name(type(value))
    described = functools.partial(_described, inside=(*inside, id(value)))
    for kind, parts in _NODES:
        if isinstance(value, kind):
            return described(parts(value))
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [described(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(described, value), key=str)
    if isinstance(value, torch.nn.Module):
        weights = fingerprint(value.state_dict().values())
        return {**_settings(value, inside), "weights": weights, **described(value._modules)}
    return _settings(value, inside)


def _settings(value: Any, inside: tuple[int, ...]) -> dict[str, Any]:
    held = dict(getattr(value, "__dict__", {}))
    if isinstance(value, torch.nn.Module):
        held = {name: part for name, part in held.items() if name not in _OF_EVERY_MODULE}
    described = {name: _described(part, (*inside, id(value))) for name, part in held.items()}
    return {"class": _class(type(value)), **described}


def _shortened(described: Any) -> Any:
    text = as_text(described)
    return described if len(text) <= _LONGEST else _hashed(text)


def _function(function: types.FunctionType) -> Any:
    if _of_library(function):
        return _name(function)
    return {
        "function": _name(function),
        "code": _code(function.__code__),
        "defaults": [function.__defaults__, function.__kwdefaults__],
        "refers to": dict(_referred(function)),
    }


def _referred(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function finds outside of itself, by name."""
    for name in sorted(_globals(function.__code__)):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            continue


def _globals(code: types.CodeType) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD_GLOBAL")}
    return names.union(*(_globals(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def _code(code: types.CodeType) -> str:
    """Hash of what a code object does, wherever its lines stand."""
    return _hashed(as_text([code.co_code.hex(), code.co_names, _constant(code.co_consts)]))


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return [_constant(part) for part in value]
    # The order of a set of strings is another in every process.
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _class(kind: type) -> str:
    """Name of a class; of one that is no library's with a hash of its methods."""
    if _of_library(kind):
        return _name(kind)
    methods = [
        (base.__name__, name, _code(member.__code__))
        for base in kind.__mro__
        if not _of_library(base)
        for name, member in vars(base).items()
        if isinstance(member, types.FunctionType)
    ]
    return f"{_name(kind)} {_hashed(as_text(sorted(methods)))}"


def _of_library(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "builtins").partition(".")[0] in _LIBRARIES


def _name(thing: Any) -> str:
    """A library's name in full; else without the module, which a script calls ``__main__``."""
    short = getattr(thing, "__name__", None) or type(thing).__name__
    if not _of_library(thing):
        return short
    name = getattr(thing, "__qualname__", None) or short
    module = getattr(thing, "__module__", None)
    return f"{module}.{name}" if module else name


def _hashed(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _real(value: Any) -> float | str:
    return float(value) if np.isfinite(value) else repr(float(value))


def _array(array: Any) -> str:
    content = b"" if array.dtype.hasobject else np.asarray(array).tobytes()
    return _hashed(str((array.shape, array.dtype)).encode() + content)


def _generator(generator: np.random.Generator) -> str:
    state = _hashed(as_text(random_state(generator)))
    return f"{type(generator.bit_generator).__name__} {state}"


# How values are described that hold no others; the first kind that fits counts.
_LEAVES: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (types.NoneType | bool | int | str, lambda value: value),
    (float | np.floating, _real),
    (bytes | complex | torch.dtype | torch.device | Path, str),
    (np.integer | np.bool_, lambda value: value.item()),
    (np.ndarray | np.generic, _array),
    (torch.Tensor, lambda tensor: fingerprint([tensor])),
    (np.random.Generator, _generator),
    (types.ModuleType | types.BuiltinFunctionType | np.ufunc, _name),
    (type, _class),
)
# What else may hold others, and what stands for it.
_NODES: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (types.FunctionType, _function),
    (types.MethodType, lambda method: [method.__func__, method.__self__]),
    (functools.partial, lambda partial: [partial.func, partial.args, partial.keywords]),
)
