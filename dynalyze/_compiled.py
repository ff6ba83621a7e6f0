"""Compile with Numba and keep the result on disk, where there is a folder that can be written."""

import functools
from collections.abc import Callable
from typing import Any

import numba

from dynalyze._warn import warn
from dynalyze.errors import KernelCacheWarning


def njit(*, cache: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` that does without its cache, with one warning, where there is no folder for it.

    Numba keeps compiled code beside the source, or in the user's cache folder, or in the folder
    that NUMBA_CACHE_DIR names, and refuses to define a function where none can be written: in a
    read-only container, the package could not even be imported.

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
        dispatcher = numba.njit(**options)(function)
        if cache and hasattr(dispatcher, "enable_caching"):  # it is plain Python without the JIT
            try:
                dispatcher.enable_caching()
            except (RuntimeError, OSError):  # "no locator available"
                _warn_once()
        return dispatcher

    return compiled


@functools.cache
def _warn_once() -> None:
    warn(
        "compiled code cannot be kept, and is compiled again in every process, which takes "
        "seconds: neither the package's folder nor the user's cache folder can be written; set "
        "the environment variable NUMBA_CACHE_DIR to a folder that can be",
        KernelCacheWarning,
    )
