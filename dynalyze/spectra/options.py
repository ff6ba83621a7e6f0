"""Options of tracking, shared by `track` and `track_checkpoints`."""

from dataclasses import dataclass
from numbers import Integral, Real

import torch

from dynalyze.errors import InvalidInputError


def is_whole(value: object, least: int) -> bool:
    """Whether a value is an integer of at least `least`."""
    return isinstance(value, Integral) and int(value) >= least


@dataclass(frozen=True)
class RecordOptions:
    """What is computed for each record."""

    n_values: int | None = 10
    spectrum: str = "leading"
    n_directions: int = 4
    rank_tolerance: float = 0.01
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.n_values is not None and not is_whole(self.n_values, 1):
            raise InvalidInputError(f"n_values must be at least 1 or None, got {self.n_values!r}.")
        if self.spectrum not in ("leading", "full"):
            raise InvalidInputError(f"spectrum must be 'leading' or 'full', got {self.spectrum!r}.")
        if not is_whole(self.n_directions, 0):
            raise InvalidInputError(
                f"n_directions must not be negative, got {self.n_directions!r}: give a number."
            )
        if not (isinstance(self.rank_tolerance, Real) and 0 < self.rank_tolerance < 1):
            raise InvalidInputError(
                f"rank_tolerance must lie between 0 and 1, got {self.rank_tolerance!r}."
            )
        if self.dtype not in (None, torch.float32, torch.float64):
            raise InvalidInputError(
                f"dtype must be torch.float32, torch.float64 or None, got {self.dtype}."
            )
