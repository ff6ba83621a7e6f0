"""Write a file completely or not at all, through symbolic links, and only over regular files."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dynalyze.errors import SavedFileError


def writable_target(path: str | os.PathLike[str]) -> Path:
    """Return the file that writing to `path` would change, symbolic links followed.

    Raises
    ------
    SavedFileError
        If it is no regular file or may not be written, or its folder is missing.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise _refusal(path, "there is no such folder; create it first") from None
    except OSError as error:  # a loop of links, a folder that may not be searched, a name too long
        raise _refusal(path, f"{error.strerror}; choose another path") from error
    else:
        if not stat.S_ISREG(mode):
            raise _refusal(path, f"it is {_sort(mode)}, not a regular file; choose another path")
        if not os.access(target, os.W_OK):
            raise _refusal(path, "it is write-protected; remove it, or choose another path")
    return target


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends without an error.

    Until then `path` is as it was. A file that is replaced keeps its permissions, and its owner
    where the process may give files away; a new one follows the umask.

    Parameters
    ----------
    path : str or path-like
        File to write, used as it is; what a symbolic link points to is written, not the link.

    Raises
    ------
    SavedFileError
        If `path` is no regular file, or it cannot be written: no folder, no right, no space.
    """
    target = writable_target(path)
    temporary = None
    try:
        # The temporary file lies in the same folder, so that the rename is atomic.
        handle, temporary = tempfile.mkstemp(prefix=".dynalyze-", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _take_over_rights(temporary, target)
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, SavedFileError):
            reason = f"{error.strerror or error}; make room, or choose another folder"
            raise _refusal(path, reason) from error
        raise


def _take_over_rights(temporary: str, target: Path) -> None:
    try:
        known = target.stat()
    except FileNotFoundError:
        # mkstemp makes files private to their owner; others follow the umask.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        return
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):
            os.chown(temporary, known.st_uid, known.st_gid)
    os.chmod(temporary, stat.S_IMODE(known.st_mode))


def _sort(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


def _refusal(path: str | os.PathLike[str], reason: str) -> SavedFileError:
    return SavedFileError(f"{os.fspath(path)} cannot be written: {reason}")
