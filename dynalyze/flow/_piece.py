"""Segments of `SurrogateStepper`: cubic pieces of its path."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynalyze._typing import FloatArray

if TYPE_CHECKING:
    from dynalyze.flow._surrogate_path import Path


@dataclass(frozen=True, eq=False)
class Piece:
    """Segment between two inner steps: a cubic polynomial."""

    t_start: float
    t_end: float
    first: FloatArray  # (p,), z at t_start
    last: FloatArray  # (p,), z at t_end
    quadratic: FloatArray  # (p,)
    cubic: FloatArray  # (p,)
    rates: FloatArray  # (p,), dz/dt at t_end

    def z(self, t: float | FloatArray) -> FloatArray:
        """Log coordinates within the step: shape (p,), or (len(t), p) for an array of times."""
        f = ((np.asarray(t) - self.t_start) / (self.t_end - self.t_start))[..., None]
        bend = self.quadratic + f * self.cubic
        z: FloatArray = (1 - f) * self.first + f * (self.last + (1 - f) * bend)
        return z


def pieces(path: "Path", origin: FloatArray) -> Iterator[Piece]:
    """Pieces of a path whose z counts from an origin, in turn."""
    t, z = path.t.tolist(), origin + path.y[:, :-1]
    for i in range(len(t) - 1):
        bend = path.quadratic[i, :-1], path.cubic[i, :-1]
        yield Piece(t[i], t[i + 1], z[i], z[i + 1], *bend, path.rates[i + 1])
