"""The progress bar of training runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dynalyze._core.collectives import world


@contextmanager
def progress_bar(total: int, *, show: bool, initial: int = 0) -> Iterator[Callable[[int], object]]:
    """Count optimizer steps on standard error; of several processes the first shows it.

    Parameters
    ----------
    total : int
        Steps of the whole run.
    show : bool
        Whether it is wanted.
    initial : int
        Steps made before.

    Yields
    ------
    callable
        To be called with the number of steps made since the last call.
    """
    if not show or world()[0] != 0:
        yield lambda n: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=initial, unit="step") as bar:
        yield bar.update
