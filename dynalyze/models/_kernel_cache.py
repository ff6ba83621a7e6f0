"""Generated modules on disk, so that a second process neither derives nor compiles again.

Numba can cache only functions that live in a file. The file's name is a hash of everything
that determines its content; Numba keeps the compiled code beside it.
"""

import atexit
import contextlib
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

from dynalyze._warn import warn
from dynalyze.errors import KernelCacheWarning


def cache_folder() -> Path:
    """Return the user's folder for generated code, as XDG_CACHE_HOME or the platform has it."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        root = Path(base)
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path.home() / ".cache"
    return root / "dynalyze" / "kernels"


@cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dynalyze-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _usable_folder() -> Path:
    folder = cache_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Numba asks for the same right when it stores the compiled code
    if os.access(folder, os.W_OK | os.X_OK):
        return folder
    warn(
        f"the cache folder {folder} cannot be written: generated code will be compiled again in "
        "every process; set XDG_CACHE_HOME to a folder that can be",
        KernelCacheWarning,
    )
    return _temporary_folder()


def load_module(key: str, generate: Callable[[], str]) -> ModuleType:
    """Return the module of name `key`, generating its source unless a file of it exists.

    Safe when several processes do the same at once: the source appears under its name whole or
    not at all, and all write the same.

    Parameters
    ----------
    key : str
        What determines the source, as text; hashed.
    generate : callable
        Returns the source; called only when it is not on disk yet.

    Warns
    -----
    KernelCacheWarning
        If the user's cache folder cannot be written.
    """
    name = "dynalyze_" + hashlib.sha256(key.encode()).hexdigest()[:32]
    if name in sys.modules:
        return sys.modules[name]
    path = _usable_folder() / f"{name}.py"
    if not path.exists():
        _write(path, generate())
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import generated code from {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _write(path: Path, source: str) -> None:
    handle, temporary = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(source)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
