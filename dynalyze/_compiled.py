"""Compile with Numba and keep the result on disk, where there is a folder that can be written."""

import functools
from collections.abc import Callable
from typing import Any

import numba
from numba.core import config

from dynalyze._warn import warn
from dynalyze.errors import KernelCacheWarning

_SETTINGS: Any = config  # filled from the environment, which its types do not tell


def njit(
    *, cache: bool = False, always: bool = False, **options: Any
) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` that does without its cache, with one warning, where there is no folder for it.

    Numba keeps compiled code beside the source, or in the user's cache folder, or in the folder
    that NUMBA_CACHE_DIR names, and refuses to define a function where none can be written: in a
    read-only container, the package could not even be imported.

    Parameters
    ----------
    cache : bool
        Whether to keep the compiled code.
    always : bool
        Whether to compile under NUMBA_DISABLE_JIT too: functions that use intrinsics, which have
        no plain-Python form, and what they call.
    **options
        Of `numba.njit`.

    Warns
    -----
    KernelCacheWarning
        Once, if no folder can be written.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        disabled, _SETTINGS.DISABLE_JIT = (
            _SETTINGS.DISABLE_JIT,
            _SETTINGS.DISABLE_JIT and not always,
        )
        try:
            dispatcher = numba.njit(**options)(function)
        finally:
            _SETTINGS.DISABLE_JIT = disabled
        in_a_file = not function.__code__.co_filename.startswith("<")
        # Without the JIT the dispatcher is the function itself.
        if cache and in_a_file and hasattr(dispatcher, "enable_caching"):
            try:
                dispatcher.enable_caching()
                cached = dispatcher._cache
                cached.save_overload = _if_it_can(cached.save_overload)
            except (RuntimeError, OSError):  # "no locator available"
                _warn_once()
        return dispatcher

    return compiled


def _if_it_can(save: Callable[..., None]) -> Callable[..., None]:
    """Let a full disk cost the cache alone, not the result of the call that compiled."""

    def saved(*arguments: Any) -> None:
        try:
            save(*arguments)
        except OSError:
            _warn_once()

    return saved


@functools.cache
def _warn_once() -> None:
    warn(
        "compiled code cannot be kept, and is compiled again in every process, which takes "
        "seconds: neither the package's folder nor the user's cache folder can be written; set "
        "the environment variable NUMBA_CACHE_DIR to a folder that can be",
        KernelCacheWarning,
    )
