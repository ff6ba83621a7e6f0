"""What a kind of saved file holds: names, dtypes and shapes of its arrays, types of its metadata.

Each kind declares its `Schema` once, beside the class that is saved. Sizes are given by letters:
in ``{"t": Array("n+1"), "z": Array("n+1", "p")}`` the letters n and p stand for any number, the
same wherever they occur in one file.
"""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

DTYPES = {"float": "f8", "int": "i8", "bool": "b1"}
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


class Array:
    """Declaration of an array.

    Parameters
    ----------
    *shape : str
        Size of each axis: a number, a letter, or a letter plus a number.
    dtype : {"float", "int", "bool"}
        Type of the entries.
    finite : bool
        Whether entries that are infinite or not a number are refused.
    least, below : int or str, optional
        Range of the entries, ``least <= x < below``; a letter stands for a size.
    optional : bool
        Whether the array may be missing.
    """

    def __init__(
        self,
        *shape: str,
        dtype: str = "float",
        finite: bool = False,
        least: int | None = None,
        below: int | str | None = None,
        optional: bool = False,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.finite = finite
        self.least = least
        self.below = below
        self.optional = optional


class AnyNumbers:
    """Declaration of arrays of numbers or booleans of any shape, such as a network's weights.

    It stands behind a name that ends in ``.*``, and so for any number of arrays.
    """


@dataclass(frozen=True)
class ListOf:
    """Declaration of a list in the metadata; `size` as for the axes of `Array`, any for None."""

    item: Any
    size: str | None = None


class Schema(NamedTuple):
    """What a kind of saved file holds.

    The metadata are declared by types (``float`` takes integers and refuses what is not finite),
    unions of types, `ListOf`, and mappings of names to such declarations.
    """

    kind: str  # such as "trajectory"
    arrays: Mapping[str, Array | AnyNumbers]
    metadata: Mapping[str, Any]

    def array(self, name: str) -> Array | AnyNumbers:
        """Declaration of the array of that name.

        Raises
        ------
        ValueError
            If there is none.
        """
        declared = self.arrays.get(name)
        if declared is None and "." in name:
            declared = self.arrays.get(name.partition(".")[0] + ".*")
        if declared is None or name.endswith(".*"):
            raise ValueError(f"it has an entry {name!r}, which no {self.kind} has")
        return declared

    def check_layout(
        self, arrays: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Any
    ) -> dict[str, int]:
        """Hold dtypes, as ``"f8"``, shapes and metadata against the declarations.

        Returns
        -------
        dict of str to int
            The sizes that the letters stand for.

        Raises
        ------
        ValueError
            If something is missing, superfluous, or other than declared.
        """
        sizes: dict[str, int] = {}
        for name, (dtype, shape) in arrays.items():
            declared = self.array(name)
            if isinstance(declared, AnyNumbers):
                if dtype not in _NUMBERS:
                    raise ValueError(f"array {name!r} has dtype {dtype}, which is not numeric")
                continue
            if dtype != DTYPES[declared.dtype]:
                raise ValueError(f"array {name!r} has dtype {dtype}, not {DTYPES[declared.dtype]}")
            if len(shape) != len(declared.shape) or not all(
                _fits(size, n, sizes) for size, n in zip(declared.shape, shape, strict=True)
            ):
                raise ValueError(
                    f"array {name!r} has shape {shape}, not ({', '.join(declared.shape)}) "
                    f"with {sizes}"
                )
        for name, declared in self.arrays.items():
            if isinstance(declared, Array) and not declared.optional and name not in arrays:
                raise ValueError(f"array {name!r} is missing")
        _check_metadata(metadata, self.metadata, "metadata", sizes)
        return sizes

    def check_values(self, name: str, array: Any, sizes: Mapping[str, int]) -> None:
        """Hold the entries of an array against its declaration.

        Raises
        ------
        ValueError
            If an entry is out of the declared range.
        """
        declared = self.array(name)
        if isinstance(declared, AnyNumbers) or not array.size:
            return
        if declared.finite and not np.isfinite(array).all():
            raise ValueError(f"array {name!r} has entries that are not finite")
        if declared.least is not None and array.min() < declared.least:
            raise ValueError(f"array {name!r} has the entry {array.min()}")
        if declared.below is not None:
            below = sizes[declared.below] if isinstance(declared.below, str) else declared.below
            if array.max() >= below:
                raise ValueError(f"array {name!r} has the entry {array.max()}, not below {below}")


def _fits(declared: str, size: int, sizes: dict[str, int]) -> bool:
    """Whether an axis has its declared size; the first axis with a letter sets it."""
    letter, _, more = declared.partition("+")
    if letter.isdigit():
        return size == int(letter)
    return size >= int(more or 0) and sizes.setdefault(letter, size - int(more or 0)) == size - int(
        more or 0
    )


def _check_metadata(value: Any, declared: Any, name: str, sizes: dict[str, int]) -> None:
    if isinstance(declared, Mapping):
        if not isinstance(value, dict) or value.keys() != declared.keys():
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{name} holds {found}, not {sorted(declared)}")
        for key, item in declared.items():
            _check_metadata(value[key], item, key, sizes)
    elif isinstance(declared, ListOf):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} is {value!r:.80}, not a list")
        if declared.size is not None and not _fits(declared.size, len(value), sizes):
            raise ValueError(f"{name} has {len(value)} entries, not {declared.size} with {sizes}")
        for item in value:
            _check_metadata(item, declared.item, name, sizes)
    elif not any(_is_of(value, one) for one in _alternatives(declared)):
        raise ValueError(f"{name} is {value!r:.80}, not of type {_type_name(declared)}")


def _alternatives(declared: Any) -> Sequence[Any]:
    return declared.__args__ if isinstance(declared, types.UnionType) else (declared,)


def _is_of(value: Any, declared: type) -> bool:
    if declared is float:
        return type(value) in (int, float) and math.isfinite(value)
    if declared is int:
        return type(value) is int
    return isinstance(value, declared)


def _type_name(declared: Any) -> str:
    return declared.__name__ if isinstance(declared, type) else str(declared)
