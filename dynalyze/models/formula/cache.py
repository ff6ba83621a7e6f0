"""Generated modules on disk, so that a second process neither derives nor compiles again.

Numba can cache only functions that live in a file. The file's name is a hash of everything
that determines its content; Numba keeps the compiled code beside it.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType

from dynalyze._core.warn import warn
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
    module = ModuleType(name)
    sys.modules[name] = module
    try:
        exec(_code(name, generate), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _code(name: str, generate: Callable[[], str]) -> CodeType:
    """Compiled source of a module; Numba keeps its own code beside the file that it names."""
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{name}.py"
        if path.exists():
            return compile(path.read_text(encoding="utf-8"), path, "exec")
        unkept = None
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        unkept = error
    source = generate()
    if unkept is None:
        try:
            _write(path, source)
            return compile(source, path, "exec")
        except OSError as error:
            unkept = error
    warn(
        "generated code cannot be kept, and will be compiled again in every process: its folder "
        f"cannot be written ({unkept}); set XDG_CACHE_HOME to a folder that can be",
        KernelCacheWarning,
    )
    return compile(source, f"<{name}>", "exec")


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
