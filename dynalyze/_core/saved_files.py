"""The one file format of saved results: arrays beside a JSON stamp, in a NumPy ``.npz`` archive.

The stamp tells what the file holds, which version wrote it, when, and from what configuration,
so that a result can be traced years later and a foreign file is refused instead of misread.
A file is read in the order of trust: the archive's directory, the stamp, the header of every
array, and only then, when names, dtypes, shapes and sizes are those of its kind, the contents.
"""

import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dynalyze._core.atomic_file import replacing
from dynalyze._core.saved_schema import DTYPES, Array, Schema
from dynalyze._version import __version__
from dynalyze.errors import SavedFileError

FORMAT = 1
_STAMP = "stamp.json"
_LARGEST_STAMP = 2**28  # bytes
_MOST_DEFLATED = 1032  # bytes that one byte of a deflated stream can stand for, at most
_HEADER = re.compile(
    rb"\{'descr': '([<>|])([a-zA-Z]\d+)', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d+,|\d+(?:, \d+)+)?)\), \} *\n"
)
_CHUNK = 2**24  # bytes unpacked at a time

_Arrays = dict[str, np.ndarray[Any, Any]]
_Result = TypeVar("_Result")


def write_saved(
    path: str | os.PathLike[str],
    schema: Schema,
    arrays: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """Write a result to `path`, which either ends up complete or as it was before.

    Parameters
    ----------
    path : str or path-like
        File to write, used as it is: no suffix is added. Symbolic links are followed.
    schema : Schema
        Kind of the file and what it holds.
    arrays : mapping of str to array_like
        Arrays that the schema names, kept bit for bit.
    metadata : mapping
        Metadata that the schema names, as far as JSON can hold them.

    Raises
    ------
    SavedFileError
        If `path` is no regular file or cannot be written.
    """
    stored: dict[str, Any] = {}
    for name, values in arrays.items():
        declared = schema.array(name)
        dtype = DTYPES[declared.dtype] if isinstance(declared, Array) else None
        array = np.asarray(values)
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects, which only pickle could save")
        stored[name] = array if dtype is None else array.astype(dtype, casting="same_kind")
    stamp = {
        "format": FORMAT,
        "kind": schema.kind,
        "dynalyze_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dtypes": {name: array.dtype.str for name, array in stored.items()},
        "shapes": {name: array.shape for name, array in stored.items()},
        "metadata": dict(metadata),
    }
    stored[_STAMP] = np.array(json.dumps(stamp, ensure_ascii=False))
    with replacing(path) as file:
        np.savez_compressed(file, **stored)


def read_saved(path: str | os.PathLike[str], schema: Schema) -> tuple[_Arrays, dict[str, Any]]:
    """Read a result that `write_saved` wrote.

    Parameters
    ----------
    path : str or path-like
        File to read.
    schema : Schema
        Kind of the file and what it must hold.

    Returns
    -------
    arrays : dict of str to ndarray
        The arrays.
    stamp : dict
        ``format``, ``kind``, ``dynalyze_version``, ``created`` (UTC, ISO 8601), ``dtypes``,
        ``shapes`` and ``metadata``, the mapping given to `write_saved` after a round trip
        through JSON.

    Raises
    ------
    SavedFileError
        If the file is damaged, not one of ours, of another kind or of a newer format.
    FileNotFoundError
        If there is no such file.
    """
    place = Path(path)
    try:
        # A named pipe would keep open() waiting.
        if not stat.S_ISREG(place.stat().st_mode):
            raise ValueError("it is not a regular file")
        with place.open("rb") as file, zipfile.ZipFile(file) as archive:
            size = os.fstat(file.fileno()).st_size
            return _read_archive(archive, size, str(path), schema)
    except (FileNotFoundError, SavedFileError):
        raise
    except Exception as error:  # zipfile, zlib, struct and json raise whatever they meet
        raise _unreadable(path, schema, error) from error


def saved_kind(path: str | os.PathLike[str]) -> str:
    """Kind of result that a file calls itself; "" if it is none of ours."""
    place = Path(path)
    if not place.is_file():
        return ""
    try:
        with zipfile.ZipFile(place) as archive:
            return str(_read_stamp(archive, place.stat().st_size)["kind"])
    except Exception:  # whatever is wrong with it, reading it will say so
        return ""


def load_saved(
    path: str | os.PathLike[str],
    schema: Schema,
    build: Callable[[_Arrays, dict[str, Any]], _Result],
) -> _Result:
    """Return ``build(arrays, metadata)`` of a file, whose objections count as damage of the file.

    Raises
    ------
    SavedFileError
        As `read_saved`, and if `build` fails.
    FileNotFoundError
        If there is no such file.
    """
    arrays, stamp = read_saved(path, schema)
    try:
        return build(arrays, stamp["metadata"])
    except Exception as error:  # whatever a constructor says of parts that do not fit
        raise _unreadable(path, schema, error) from error


def _unreadable(path: str | os.PathLike[str], schema: Schema, error: Exception) -> SavedFileError:
    text = "not an npz archive" if isinstance(error, zipfile.BadZipFile) else str(error)
    return SavedFileError(
        f"{path} cannot be read as a saved {schema.kind}: it is truncated or damaged, or was not "
        f"written by dynalyze ({type(error).__name__}: {text}). Save it again, or restore a copy."
    )


def _read_archive(
    archive: zipfile.ZipFile, file_size: int, path: str, schema: Schema
) -> tuple[_Arrays, dict[str, Any]]:
    stamp = _read_stamp(archive, file_size)
    _check_stamp(stamp, path, schema)
    entries = _entries(archive, file_size)
    del entries[_STAMP]
    for name in entries:  # before even a header of a superfluous entry is unpacked
        schema.array(name)
    layouts = {name: _Layout(archive, entry) for name, entry in entries.items()}
    if stamp["dtypes"] != {name: layout.order + layout.dtype for name, layout in layouts.items()}:
        raise ValueError("its arrays are not those that its stamp names")
    # The shapes are not in the stamps of files from before the first release.
    shapes = {name: list(layout.shape) for name, layout in layouts.items()}
    if stamp.get("shapes", shapes) != shapes:
        raise ValueError("its arrays have other shapes than its stamp says")
    sizes = schema.check_layout(
        {name: (layout.dtype, layout.shape) for name, layout in layouts.items()},
        stamp["metadata"],
    )
    arrays = {}
    for name, layout in layouts.items():
        arrays[name] = layout.unpack(archive)
        schema.check_values(name, arrays[name], sizes)
    return arrays, stamp


def _entries(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """Entries of an archive by name, if their declared sizes are possible."""
    entries: dict[str, zipfile.ZipInfo] = {}
    packed = 0
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name in entries or name == entry.filename:
            raise ValueError(f"the archive's entry {entry.filename!r} is not one of an npz archive")
        entries[name] = entry
        packed += entry.compress_size
        if entry.file_size > _MOST_DEFLATED * entry.compress_size or packed > file_size:
            raise ValueError(f"the size that entry {name!r} declares is impossible")
    return entries


def _read_stamp(archive: zipfile.ZipFile, file_size: int) -> dict[str, Any]:
    layout = _Layout(archive, _entries(archive, file_size)[_STAMP])
    if not layout.dtype.startswith("U") or layout.shape or layout.n_bytes > _LARGEST_STAMP:
        raise ValueError("its stamp is no text")
    encoding = "utf-32-be" if layout.order == ">" else "utf-32-le"
    text = layout.content(archive).tobytes().decode(encoding, errors="surrogatepass")
    stamp = json.loads(text.rstrip("\0"))
    if not isinstance(stamp, dict):
        raise ValueError("its stamp is no JSON object")
    return stamp


def _check_stamp(stamp: Mapping[str, Any], path: str, schema: Schema) -> None:
    found, version, kind = stamp["format"], stamp["dynalyze_version"], stamp["kind"]
    if type(found) is not int or found < 1:
        raise ValueError(f"its stamp names the format {found!r}")
    if found > FORMAT:
        raise SavedFileError(
            f"{path} was written by dynalyze {version} in file format {found}; this version, "
            f"{__version__}, reads formats up to {FORMAT}: upgrade dynalyze."
        )
    if kind != schema.kind:
        raise SavedFileError(
            f"{path} holds a saved {kind}, not a {schema.kind}: "
            "load it with the class that saved it."
        )


class _Layout:
    """Dtype and shape of an entry, as its header has them, and where the contents begin.

    The header is matched with what `numpy.save` writes and not evaluated.
    """

    def __init__(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
        self._entry = entry
        with archive.open(entry) as stream:
            prefix = stream.read(10)
            length = int.from_bytes(prefix[8:10], "little")
            header = _HEADER.fullmatch(stream.read(length))
        if prefix[:8] != b"\x93NUMPY\x01\x00" or header is None:
            raise ValueError(f"the header of entry {entry.filename!r} is damaged")
        self.order = header[1].decode()
        self.dtype = header[2].decode()
        self.shape = tuple(int(n) for n in header[4].decode().split(",") if n)
        self._fortran = header[3] == b"True"
        self._start = 10 + length
        self.n_bytes = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if self._start + self.n_bytes != entry.file_size:
            raise ValueError(
                f"entry {entry.filename!r} declares {entry.file_size - self._start} bytes for "
                f"shape {self.shape} of {self.dtype}"
            )

    def content(self, archive: zipfile.ZipFile) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The entry's bytes behind the header; the archive's checksum is verified."""
        content = np.empty(self.n_bytes, dtype=np.uint8)
        with archive.open(self._entry) as stream:
            stream.read(self._start)
            filled = 0
            while part := stream.read(_CHUNK):
                content[filled : filled + len(part)] = np.frombuffer(part, dtype=np.uint8)
                filled += len(part)
        if filled != self.n_bytes:
            raise ValueError(f"entry {self._entry.filename!r} is truncated")
        return content

    def unpack(self, archive: zipfile.ZipFile) -> np.ndarray[Any, Any]:
        """The array, in the machine's byte order and the order of axes it was saved in."""
        dtype = np.dtype(self.order.replace("|", "") + self.dtype)
        order: Any = "F" if self._fortran else "C"
        array = self.content(archive).view(dtype).reshape(self.shape, order=order)
        return array.astype(dtype.newbyteorder("="), copy=False)
