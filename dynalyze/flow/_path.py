"""Paths of the surrogate flow: what ends one, what it consists of, and its pieces as segments."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dynalyze._typing import FloatArray

FAILED = -1
REACHED_END = 1
NEWCOMER = 2  # a passive coordinate has reached its threshold
ERROR_LIMIT = 3  # the predicted error has reached its target
PAUSED = 4  # many steps were made: time for a look from outside


class Limits(NamedTuple):
    """When to stop before the end time.

    With m nodes x the remainder is known up to an error of about E_m ∏ (s − x_i). Its integral
    along the path is the error of the predictor; with the path's end as the newest of the m
    nodes, that of the step once the field is known there.
    """

    free: bool  # False: nothing but the end time stops
    nodes: FloatArray  # (n,), x, newest first
    sizes: FloatArray  # (M + 1,), E_m for m = 1 … M
    target: float  # largest error of the step, in z
    predictor_target: float  # largest error of the predictor, in z
    thresholds: FloatArray  # (p,), log|θ| of newcomers, ∞ where it does not matter


def no_limits(nodes: FloatArray, most: int) -> Limits:
    """Limits of a path that goes to its end time, with integrals for up to `most` nodes."""
    return Limits(False, nodes, np.zeros(most + 1), 1.0, 1.0, np.zeros(0))


class Path(NamedTuple):
    """A solution of the surrogate flow."""

    status: int  # one of the constants of this module
    t: FloatArray  # (n + 1,), inner steps
    y: FloatArray  # (n + 1, p + 1), z and s
    rates: FloatArray  # (n + 1, p), dz/dt
    quadratic: FloatArray  # (n, p + 1), coefficients of the dense output
    cubic: FloatArray  # (n, p + 1)
    plain: FloatArray  # (M + 1,), ∫ ω dt, ω = ∏_{i < m−1} (s − x_i)
    moment: FloatArray  # (M + 1,), ∫ ω s dt
    best: int  # m of the smallest predicted error
    step: float  # inner step to go on with


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


def pieces(path: Path, origin: FloatArray) -> Iterator[Piece]:
    """Pieces of a path whose z counts from an origin, in turn."""
    t, z = path.t.tolist(), origin + path.y[:, :-1]
    for i in range(len(t) - 1):
        bend = path.quadratic[i, :-1], path.cubic[i, :-1]
        yield Piece(t[i], t[i + 1], z[i], z[i + 1], *bend, path.rates[i + 1])
