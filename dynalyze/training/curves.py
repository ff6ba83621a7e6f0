"""Recorded quantities as curves over flow time: interpolation, crossings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dynalyze._core.arrays import ArrayLike, FloatArray, IntArray
from dynalyze.errors import InvalidInputError
from dynalyze.flow.trajectory import per_product


@dataclass(frozen=True, eq=False)
class Curves:
    """Records of quantities that grow and decay exponentially between plateaus.

    Interpolation is linear in coordinates in which they move at a constant rate on a plateau.
    """

    t: FloatArray  # (n_records,), flow time, ascending from 0
    values: FloatArray  # (n_records, p)
    forth: Callable[[FloatArray], FloatArray]  # values to those coordinates, increasing
    back: Callable[[FloatArray], FloatArray]  # inverse of `forth`
    signed: bool  # whether a value may be negative

    def at(self, t: ArrayLike) -> FloatArray:
        """Values at flow times `t`, shape (*t.shape, p)."""
        times = self.inside(t)
        if len(self.t) == 1:
            return np.broadcast_to(self.values[0], (*times.shape, self.values.shape[1])).copy()
        right = np.clip(np.searchsorted(self.t, times, side="right"), 1, len(self.t) - 1)
        start, stop = self.t[right - 1], self.t[right]
        share = ((times - start) / (stop - start))[..., None]
        between = self.back((1 - share) * self._z[right - 1] + share * self._z[right])
        on_record = np.where(share == 0, self.values[right - 1], self.values[right])
        return np.where((share == 0) | (share == 1), on_record, between)

    def crossings(self, threshold: ArrayLike) -> tuple[FloatArray, IntArray, IntArray]:
        """Flow times, coordinates and directions ±1 of every crossing of |value| = threshold."""
        level = self.forth(per_product(threshold, self.values.shape[1]))
        times, coordinates, directions = [], [], []
        for sign in (1, -1) if self.signed else (1,):
            above = sign * self._z > level
            before, after = above[:-1], above[1:]
            record, coordinate = np.nonzero(before != after)
            a = sign * self._z[record, coordinate] - level[coordinate]
            b = sign * self._z[record + 1, coordinate] - level[coordinate]
            times.append(self.t[record] + a / (a - b) * np.diff(self.t)[record])
            coordinates.append(coordinate)
            directions.append(np.where(after[record, coordinate], 1, -1))
        t = np.concatenate(times)
        order = np.argsort(t, kind="stable")
        return (
            t[order],
            np.concatenate(coordinates)[order].astype(np.int64),
            np.concatenate(directions)[order].astype(np.int64),
        )

    def inside(self, t: ArrayLike) -> FloatArray:
        """`t` as an array, once it was seen to lie within the records."""
        times = np.asarray(t, dtype=float)
        last = self.t[-1]
        # A time computed as learning rate × steps may exceed the last by rounding.
        if times.size and not (times.min() >= 0 and times.max() <= last * (1 + 1e-12)):
            raise InvalidInputError(
                f"t ranges over [{times.min():g}, {times.max():g}], and the run over "
                f"[0, {last:g}] in flow time: give times within, or train for longer"
            )
        return np.minimum(times, last)

    @cached_property
    def _z(self) -> FloatArray:
        return self.forth(self.values)


def log_curves(t: FloatArray, singular_values: FloatArray) -> Curves:
    """Curves of singular values, straight in their logarithm on a plateau."""
    tiny = np.finfo(float).tiny

    def forth(values: FloatArray) -> FloatArray:
        return np.log(np.maximum(values, tiny))

    return Curves(t, singular_values, forth, np.exp, signed=False)
