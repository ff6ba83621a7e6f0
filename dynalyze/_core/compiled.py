"""Compile with Numba and keep the result on disk, where there is a folder that can be written."""

import functools
import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import event

from dynalyze._core.warn import warn
from dynalyze.errors import KernelCacheWarning


def njit(*, cache: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` that does without its cache, with one warning, where there is no folder for it.

    Numba keeps compiled code beside the source, or in the user's cache folder, or in the folder
    that NUMBA_CACHE_DIR names, and refuses to define a function where none can be written: in a
    read-only container, the package could not even be imported. Numba also takes code for current
    while the time and size of the function's own file are the same; here it is while the sources
    are, those of imported modules included, whose functions and constants may be compiled in.

    Parameters
    ----------
    cache : bool
        Whether to keep the compiled code.
    **options
        Of `numba.njit`.

    Warns
    -----
    KernelCacheWarning
        Once, if no folder can be written.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        _functions.add(function)
        dispatcher = numba.njit(**options)(function)
        in_a_file = not function.__code__.co_filename.startswith("<")
        # Without the JIT the dispatcher is the function itself.
        if cache and in_a_file and hasattr(dispatcher, "enable_caching"):
            try:
                dispatcher.enable_caching()
                cached = dispatcher._cache
                cached.save_overload = _if_it_can(cached.save_overload)
                sources = _digest_of_sources(function.__module__)
                if sources is not None:
                    cached._cache_file._source_stamp = sources
                    # What is older is not even unpickled: it may name classes that are gone.
                    cached._cache_file._version += f" {sources}"
            except (RuntimeError, OSError):  # "no locator available"
                _warn_once()
        return dispatcher

    return compiled


_functions: set[Callable[..., Any]] = set()  # that the library compiles


class _Announcement(event.Listener):
    """Tells a user at a terminal, once, why the first use takes seconds."""

    def __init__(self) -> None:
        self._made = False

    def on_start(self, event: event.Event) -> None:
        """Announce that kernels are compiled, if they are the library's."""
        ours = event.data["dispatcher"].py_func in _functions
        if ours and not self._made and sys.stderr is not None and sys.stderr.isatty():
            self._made = True
            print("dynalyze: compiling kernels for this machine, once …", file=sys.stderr)

    def on_end(self, event: event.Event) -> None:
        """Say nothing more."""


event.register("numba:compile", _Announcement())


def _if_it_can(save: Callable[..., None]) -> Callable[..., None]:
    """Let a full disk cost the cache alone, not the result of the call that compiled."""

    def saved(*arguments: Any) -> None:
        try:
            save(*arguments)
        except OSError:
            _warn_once()

    return saved


@functools.cache
def _digest_of_sources(module: str) -> str | None:
    """Hash of a module of this package and of those it imports; None for a generated module."""
    sources: dict[str, str] = {}
    left = [module]
    while left:
        name = left.pop()
        path = Path(__file__).parents[2].joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in sources and path.exists():
            sources[name] = path.read_text(encoding="utf-8")
            if name != __name__:
                left += re.findall(
                    r"^(?:from|import) (dynalyze[\w.]*)", sources[name], re.MULTILINE
                )
    text = "\n".join(f"{name}\n{source}" for name, source in sorted(sources.items()))
    return hashlib.sha256(text.encode()).hexdigest() if module in sources else None


@functools.cache
def _warn_once() -> None:
    warn(
        "compiled code cannot be kept, and is compiled again in every process, which takes "
        "seconds: neither the package's folder nor the user's cache folder can be written; set "
        "the environment variable NUMBA_CACHE_DIR to a folder that can be",
        KernelCacheWarning,
    )
