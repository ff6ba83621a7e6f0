"""Spread compiled chunks of work over threads, whatever the number of threads, alike.

A pool of Python threads with kernels that release the interpreter lock, and not
`numba.prange`: nothing is compiled a second time, a busy core delays one chunk instead of the
whole call, and results cannot depend on the number of threads, because each chunk writes its
own part and the caller adds the parts in order.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Lock

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = Lock()


def available_threads() -> int:
    """Return the number of processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def run_chunks(task: Callable[[int, int], None], n_chunks: int, threads: int) -> None:
    """Call ``task(chunk, worker)`` for every chunk; return when all are done.

    Parameters
    ----------
    task : callable
        Takes the chunk's number and the worker's, 0 ≤ worker < threads; no two calls with
        the same worker run at the same time, so each worker can own a workspace.
    n_chunks, threads : int
        Numbers of chunks and of threads, the calling one included.
    """
    threads = min(threads, n_chunks)
    if threads <= 1:
        for chunk in range(n_chunks):
            task(chunk, 0)
        return
    # next() on a count is atomic under the interpreter lock
    chunks = count()

    def work(worker: int) -> None:
        while (chunk := next(chunks)) < n_chunks:
            task(chunk, worker)

    helpers = [_pool(threads - 1).submit(work, worker) for worker in range(1, threads)]
    try:
        work(0)
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
