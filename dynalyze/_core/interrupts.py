"""Ctrl-C, held while compiled code runs and lists grow, and delivered between them.

Python runs the handler of a signal between any two instructions, also those that turn the result
of a compiled kernel into Python objects: an exception raised there ends as a ``SystemError``, or
as a segmentation fault. So the handler is replaced for the whole of a run, once, by one that only
remembers, and what it remembers is delivered where nothing can be torn:

- `held` is the extent of a run; what is still held when it ends is delivered then.
- `delivering` is the part of it that expects a ``KeyboardInterrupt`` and keeps what was found.
  `deliver`, called between steps and evaluations, raises nowhere else.
- `interruptible` is the part that no kernel of the library runs in, such as an objective in
  Python or PyTorch. One call of it may take minutes: the first Ctrl-C waits for its end, and a
  second one does not.
- `arrived` and `take` ask instead of raising, for loops that end by themselves.

Delivering means calling the handler that was there before, so a handler of the user's own stays
in charge. Ignored signals stay ignored, and other threads than the main one, where Python never
runs handlers, are left alone.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from sys import _getframe
from threading import current_thread, get_ident, main_thread
from types import FrameType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class _Hold:
    """The handler of one run in the main thread, and what it remembers."""

    def __init__(self, before: Callable[[int, FrameType | None], object]) -> None:
        self.before = before
        self.thread = get_ident()
        self.pending = 0  # signals that nothing was told of
        self.delivering = 0  # nested parts that expect a KeyboardInterrupt
        self.interruptible = 0  # nested parts that a second signal may end anywhere

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        self.pending += 1
        if self.pending > 1 and self.interruptible:
            self.deliver()

    def deliver(self) -> None:
        self.pending = 0
        self.before(signal.SIGINT, _getframe(1))


_current: _Hold | None = None


@contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C from here to the end of the block, or of the function it decorates."""
    global _current  # noqa: PLW0603
    before = signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or not callable(before):
        yield
        return
    if before is _current and _current is not None:
        outer_part, _current.interruptible = _current.interruptible, 0
        hold = _current
        try:
            yield
        finally:
            hold.interruptible = outer_part
        return
    outer, hold = _current, _Hold(before)
    _current = hold
    signal.signal(signal.SIGINT, hold)
    try:
        yield
    except KeyboardInterrupt:
        hold.pending = 0  # the one on its way is enough
        raise
    finally:
        hold.interruptible = 0
        _current = outer
        if signal.getsignal(signal.SIGINT) is hold:
            signal.signal(signal.SIGINT, before)
        if hold.pending:
            hold.deliver()


@contextmanager
def delivering() -> Iterator[None]:
    """Let `deliver` raise within the block, or the function it decorates."""
    hold = _of_this_thread()
    if hold is None:
        yield
        return
    hold.delivering += 1
    try:
        deliver()
        yield
    finally:
        hold.delivering -= 1


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a second Ctrl-C end the block, or the function it decorates, anywhere."""
    hold = _of_this_thread()
    if hold is None:
        yield
        return
    hold.interruptible += 1
    try:
        yield
    finally:
        hold.interruptible -= 1


def deliver() -> None:
    """Hand a held Ctrl-C to the handler that was there before, within `delivering`."""
    hold = _current
    if hold is not None and hold.pending and hold.delivering and hold.thread == get_ident():
        hold.deliver()


def arrived() -> bool:
    """Whether a Ctrl-C is held."""
    hold = _of_this_thread()
    return hold is not None and hold.pending > 0


def take() -> bool:
    """Whether a Ctrl-C is held that would raise; it is then dealt with."""
    hold = _of_this_thread()
    if hold is not None and hold.pending:
        try:
            hold.deliver()
        except KeyboardInterrupt:
            return True
    return False


def evaluate(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Deliver what is held, then call code that no kernel of the library runs in."""
    hold = _of_this_thread()
    if hold is None:
        return function(*args, **kwargs)
    deliver()
    hold.interruptible += 1
    try:
        return function(*args, **kwargs)
    except SystemError as error:
        # A second Ctrl-C has met a compiled kernel of the user's own.
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        hold.interruptible -= 1


def _of_this_thread() -> _Hold | None:
    return _current if _current is not None and _current.thread == get_ident() else None
