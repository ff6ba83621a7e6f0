"""What makes a run the same run: its configuration, the code of its functions, its data.

A run goes on from a checkpoint only where all of it is equal. Everything is described by what
JSON can hold, so that it can be kept in the checkpoint, and a difference can be named.
"""

import dis
import functools
import hashlib
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dynalyze._core.collectives import first_difference
from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.torch.data import fingerprint
from dynalyze.training.checkpoints import Checkpoint, as_json, as_text, random_state

# Known by name: what such a class does changes with its package's version, not with the run.
_LIBRARIES = sys.stdlib_module_names | {"dynalyze", "numpy", "scipy", "torch"}
# Of the objects that a function refers to: deeper ones count by their class alone.
_DEEPEST = 5
_LONGEST = 10_000  # characters of a description; beyond it its hash has to do
_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module())) - {"training"}
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


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
        # The keys of hooks count the hooks of the process.
        hooks = {name: list(held[name].values()) for name in HOOKS if held.get(name)}
        held = {name: part for name, part in held.items() if name not in _OF_EVERY_MODULE}
        held.update(hooks)
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
    """What a function finds outside of itself, by name; of modules and objects what it names."""
    names = _names(function.__code__)
    for name in sorted(_globals(function.__code__)):
        if name in function.__globals__:
            yield name, function.__globals__[name]
            yield from _attributes(name, function.__globals__[name], names)
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            yield name, cell.cell_contents
            yield from _attributes(name, cell.cell_contents, names)
        except ValueError:  # not bound yet
            continue


def _attributes(
    path: str, value: Any, names: set[str], depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Attributes of a module, a class or an object, and theirs, that have one of the `names`."""
    if depth > _DEEPEST or (isinstance(value, types.ModuleType | type) and _of_library(value)):
        return
    held = getattr(value, "__dict__", {})
    for name in sorted(names.intersection(held)):
        yield f"{path}.{name}", held[name]
        yield from _attributes(f"{path}.{name}", held[name], names, depth + 1)


def _globals(code: types.CodeType) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD_GLOBAL")}
    return names.union(*(_globals(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inner)


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
    """Name of a class; of one that is no library's with a hash of what its methods do.

    What they refer to counts too, each thing once. Objects count by their class and by the
    attributes that a method names, since others, such as a logger's, change from run to run.
    """
    if _of_library(kind):
        return _name(kind)
    seen: set[int] = set()
    found: list[tuple[str, Any]] = []
    ahead: deque[tuple[str, Any]] = deque([("", kind)])
    while ahead:
        name, thing = ahead.popleft()
        leaf = next((leaf for kinds, leaf in _VALUES if isinstance(thing, kinds)), None)
        if leaf is not None:
            found.append((name, leaf(thing)))
        elif id(thing) not in seen:
            seen.add(id(thing))
            code = isinstance(thing, types.FunctionType | type)
            found.append((name, _name(thing if code else type(thing))))
            if isinstance(thing, types.FunctionType) and not _of_library(thing):
                found.append((name, _code(thing.__code__)))
            if not (code and _of_library(thing)):
                ahead.extend((f"{name}.{part}", value) for part, value in _parts(thing))
    return f"{_name(kind)} {_hashed(as_text(found))}"


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What a class or a function consists of or refers to, and what containers hold."""
    if isinstance(thing, type):
        for base in thing.__mro__:
            for name, member in () if _of_library(base) else sorted(vars(base).items()):
                method = isinstance(member, types.FunctionType) and name != "__init__"
                if method or not name.startswith("__"):  # what __init__ made is in the object
                    yield f"{base.__name__}.{name}", member
    elif isinstance(thing, types.FunctionType):
        yield "defaults", [thing.__defaults__, thing.__kwdefaults__]
        # Of installed packages the code has to do: what it refers to has no end.
        yield from () if "site-packages" in thing.__code__.co_filename else _referred(thing)
    elif isinstance(thing, staticmethod | classmethod | types.MethodType):
        yield "function", thing.__func__
    elif isinstance(thing, functools.partial):
        yield from (("function", thing.func), ("args", thing.args), ("keywords", thing.keywords))
    elif isinstance(thing, property):
        yield "get", thing.fget
    elif isinstance(thing, dict):
        yield from ((str(key), value) for key, value in thing.items())
    elif isinstance(thing, list | tuple):
        yield from ((str(index), value) for index, value in enumerate(thing))


def _of_library(thing: Any) -> bool:
    attribute = "__name__" if isinstance(thing, types.ModuleType) else "__module__"
    return (getattr(thing, attribute, None) or "builtins").partition(".")[0] in _LIBRARIES


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


_Descriptions: TypeAlias = tuple[tuple[Any, Callable[[Any], Any]], ...]
# How values are described that hold no others; the first kind that fits counts.
_VALUES: _Descriptions = (
    (types.NoneType | bool | int | str, lambda value: value),
    (float | np.floating, _real),
    (bytes | complex | torch.dtype | torch.device | Path, str),
    (np.integer | np.bool_, lambda value: value.item()),
    (np.ndarray | np.generic, _array),
    (torch.Tensor, lambda tensor: fingerprint([tensor])),
    (types.ModuleType | types.BuiltinFunctionType | np.ufunc, _name),
)
_LEAVES: _Descriptions = (*_VALUES, (np.random.Generator, _generator), (type, _class))
# What else may hold others, and what stands for it.
_NODES: _Descriptions = (
    (types.FunctionType, _function),
    (types.MethodType, lambda method: [method.__func__, method.__self__]),
    (functools.partial, lambda partial: [partial.func, partial.args, partial.keywords]),
)
