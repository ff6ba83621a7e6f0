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
    rank_rtol: float = 0.01
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.n_values is not None and not is_whole(self.n_values, 1):
            raise InvalidInputError(f"n_values={self.n_values!r} must be at least 1 or None")
        if self.spectrum not in ("leading", "full"):
            raise InvalidInputError(f"spectrum={self.spectrum!r} must be 'leading' or 'full'")
        if not is_whole(self.n_directions, 0):
            raise InvalidInputError(
                f"n_directions={self.n_directions!r} must be a number, 0 or larger"
            )
        if not (isinstance(self.rank_rtol, Real) and 0 < self.rank_rtol < 1):
            raise InvalidInputError(f"rank_rtol={self.rank_rtol!r} must lie between 0 and 1")
        if self.dtype not in (None, torch.float32, torch.float64):
            raise InvalidInputError(
                f"dtype={self.dtype} must be torch.float32, torch.float64 or None"
            )
