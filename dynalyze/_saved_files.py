"""The one file format of saved results: arrays beside a JSON stamp, in a NumPy ``.npz`` archive.

The stamp tells what the file holds, which version wrote it, when, and from what configuration,
so that a result can be traced years later and a foreign file is refused instead of misread.
"""

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import dynalyze
from dynalyze.errors import SavedFileError

FORMAT = 1
_STAMP = "stamp.json"


def write_saved(
    path: str | os.PathLike[str],
    kind: str,
    arrays: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """Write a result to `path`, which either ends up complete or as it was before.

    Parameters
    ----------
    path : str or path-like
        File to write, used as it is: no suffix is added.
    kind : str
        What is saved, such as ``"trajectory"``; `read_saved` asks for it.
    arrays : mapping of str to array_like
        Arrays of numbers, booleans or strings, kept bit for bit.
    metadata : mapping
        Anything else, as far as JSON can hold it.
    """
    target = Path(path)
    stored: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in stored.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects, which only pickle could save")
    stamp = {
        "format": FORMAT,
        "kind": kind,
        "dynalyze_version": dynalyze.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dtypes": {name: array.dtype.str for name, array in stored.items()},
        "metadata": dict(metadata),
    }
    stored[_STAMP] = np.array(json.dumps(stamp, ensure_ascii=False))
    # The temporary file lies in the same folder, so that the rename is atomic.
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **stored)
        # mkstemp makes files private to their owner; a saved result follows the umask.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_saved(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Read a result that `write_saved` wrote.

    Parameters
    ----------
    path : str or path-like
        File to read.
    kind : str
        What it must hold.

    Returns
    -------
    arrays : dict of str to ndarray
        The arrays.
    stamp : dict
        ``format``, ``kind``, ``dynalyze_version``, ``created`` (UTC, ISO 8601), ``dtypes`` and
        ``metadata``, the mapping given to `write_saved` after a round trip through JSON.

    Raises
    ------
    SavedFileError
        If the file is truncated, not one of ours, of another kind or of a newer format.
    FileNotFoundError
        If there is no such file.
    """
    try:
        # np.load leaves a file open that it opened itself and cannot read.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        stamp = json.loads(str(arrays.pop(_STAMP)[()]))
        found, version = stamp["format"], stamp["dynalyze_version"]
    except FileNotFoundError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        # NumPy's answer to a file of no format that it knows is to load it as a pickle, unsafely.
        text = "not an npz archive" if "pickle" in str(error) else str(error)
        raise SavedFileError(
            f"{path} cannot be read as a saved {kind}: it is truncated, or was not written by "
            f"dynalyze ({type(error).__name__}: {text}). Save it again, or restore a copy."
        ) from error
    if found > FORMAT:
        raise SavedFileError(
            f"{path} was written by dynalyze {version} in file format {found}; this version, "
            f"{dynalyze.__version__}, reads formats up to {FORMAT}: upgrade dynalyze."
        )
    if stamp["kind"] != kind:
        raise SavedFileError(
            f"{path} holds a saved {stamp['kind']}, not a {kind}: "
            "load it with the class that saved it."
        )
    return arrays, stamp
