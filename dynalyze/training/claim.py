"""One run at a time in a folder of checkpoints."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from dynalyze._core.collectives import every_rank, world
from dynalyze._core.warn import warn
from dynalyze.errors import DynalyzeWarning, InvalidInputError
from dynalyze.training.checkpoints import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    remove_leftovers,
)

_LOCK = ".dynalyze-lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def claimed(folder: str | os.PathLike[str] | None) -> Iterator[Checkpoint | None]:
    """Hold a folder of checkpoints for this run, and read the latest checkpoint in it.

    Rank 0 holds it, every rank reads. What a killed run left half written is removed.

    Yields
    ------
    Checkpoint or None
        None if the folder holds none, or `folder` is None.

    Raises
    ------
    InvalidInputError
        If another process trains in the folder, it cannot be made, or the ranks of a torchrun
        job do not find the same checkpoint.
    SavedFileError
        If the checkpoint is damaged.
    """
    with ExitStack() as stack:
        with every_rank() as stated:
            found = None
            if folder is not None:
                place = Path(folder)
                if world()[0] == 0:
                    stack.enter_context(_lock(place))
                    remove_leftovers(place)
                if latest_checkpoint(place) is not None:
                    found = load_checkpoint(place)
            stated["checkpoint"] = folder is not None
            stated["latest checkpoint"] = found and [found.path.name, found.digest]
        yield found


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock a folder, which is made if need be; the system unlocks it when the process dies."""
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except BlockingIOError as error:
        raise InvalidInputError(
            f"checkpoint={folder} is in use by {_owner(path)}, which trains there: wait for its "
            "end, or give another folder"
        ) from error
    except OSError as error:
        raise InvalidInputError(
            f"checkpoint={folder} cannot be used as a folder for checkpoints ({error}): give one "
            "that can be written"
        ) from error
    with file:
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _take(file, path)
            # The run before may have removed the file after it was opened here.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                file.truncate(0)
                return file
        except FileNotFoundError:  # removed between two looks
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _take(file: IO[str], path: Path) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warn(
            f"{path.parent} lies on a file system without locks ({error}): see to it that no other "
            "process trains in it",
            DynalyzeWarning,
        )


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
