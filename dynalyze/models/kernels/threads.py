"""Spread compiled chunks of work over threads, whatever the number of threads, alike.

A pool of Python threads with kernels that release the interpreter lock, and not
`numba.prange`: nothing is compiled a second time, a busy core delays one chunk instead of the
whole call, and results cannot depend on the number of threads, because each chunk writes its
own part and the caller adds the parts in order.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = Lock()


def available_threads() -> int:
    """Return the number of processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def run_chunks(compute: Callable[[int, int], None], n_chunks: int, threads: int) -> None:
    """Call ``compute(first, last)`` on ranges that make up ``range(n_chunks)``; wait for all.

    Parameters
    ----------
    compute : callable
        Computes the chunks ``first, …, last − 1``; called from several threads at a time.
    n_chunks, threads : int
        Numbers of chunks and of threads, the calling one included. With one thread there is
        one call for everything.
    """
    threads = min(threads, n_chunks)
    if threads <= 1:
        compute(0, n_chunks)
        return
    # A thread that is done early takes more; next() is atomic under the interpreter lock.
    size = max(1, n_chunks // (4 * threads))
    starts = iter(range(0, n_chunks, size))

    def work() -> None:
        for first in starts:
            compute(first, min(first + size, n_chunks))

    helpers = [_pool(threads - 1).submit(work) for _ in range(1, threads)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()


def _pool(n_workers: int) -> ThreadPoolExecutor:
    with _pools_lock:
        if n_workers not in _pools:
            _pools[n_workers] = ThreadPoolExecutor(n_workers, thread_name_prefix="dynalyze")
        return _pools[n_workers]


def _forget_pools() -> None:
    """Drop the pools, whose threads do not exist in a forked child."""
    global _pools_lock  # noqa: PLW0603
    _pools_lock = Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
