"""Dense output in one form for every integrator: z(t) in pieces, as Bernstein's polynomials.

A step that is a polynomial is kept as it is. Others are sampled at Chebyshev–Lobatto nodes as
soon as they are made, at the lowest of the degrees 1, 2, 4 and 8 that reproduces them, and in
pieces where none does. What is kept is arrays only, so that it can be saved, and its roots can be
found all at once: a polynomial stays between its smallest and its largest coefficient, and the
first and the last are its values at the ends.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from math import comb

import numpy as np
from numpy.polynomial import chebyshev

from dynalyze._core.arrays import ArrayLike, FloatArray, IntArray
from dynalyze.errors import InvalidInputError
from dynalyze.flow.steppers.protocol import Segment

_DEGREES = (1, 2, 4, 8)  # of pieces that are sampled
_HIGHEST = _DEGREES[-1]
_MOST_HALVINGS = 40
_CHUNK = 4096  # times evaluated at once, which bounds the memory of one evaluation


def bernstein(degree: int, x: float | FloatArray) -> FloatArray:
    """Bernstein's polynomials at places x in [0, 1]; shape (*x.shape, degree + 1)."""
    x, k = np.asarray(x)[..., None], np.arange(degree + 1)
    binomials = np.array([comb(degree, i) for i in k], dtype=float)
    values: FloatArray = binomials * x**k * (1 - x) ** (degree - k)
    return values


@cache
def _nodes(degree: int) -> FloatArray:
    """Chebyshev–Lobatto nodes on [0, 1], ascending; shape (degree + 1,)."""
    return np.asarray((1 - np.cos(np.pi * np.arange(degree + 1) / degree)) / 2)


@cache
def _from_values(degree: int) -> FloatArray:
    """Matrix from values at the nodes to Bernstein's coefficients, (degree + 1, degree + 1)."""
    return np.asarray(np.linalg.inv(bernstein(degree, _nodes(degree))))


@cache
def _residuals() -> FloatArray:
    """Matrix from values at the nodes of the highest degree to the errors of lower ones.

    Shape (3 · 9, 9): the interpolants of degrees 1, 2 and 4 at all nodes, minus the values.
    """
    blocks = []
    for degree in _DEGREES[:-1]:
        block = -np.eye(_HIGHEST + 1)
        interpolant = bernstein(degree, _nodes(_HIGHEST)) @ _from_values(degree)
        block[:, :: _HIGHEST // degree] += interpolant
        blocks.append(block)
    return np.concatenate(blocks)


@cache
def _between() -> FloatArray:
    """Interpolant of the highest degree at those nodes of twice the degree that it lacks."""
    return bernstein(_HIGHEST, _nodes(2 * _HIGHEST)[1::2]) @ _from_values(_HIGHEST)


@cache
def _to_chebyshev(degree: int) -> FloatArray:
    """Matrix from Bernstein's coefficients to Chebyshev's, (degree + 1, degree + 1)."""
    nodes = _nodes(degree)
    return np.asarray(
        np.linalg.solve(chebyshev.chebvander(2 * nodes - 1, degree), bernstein(degree, nodes))
    )


@dataclass(frozen=True, eq=False)
class DenseOutput:
    """Log coordinates z(t) as polynomials on consecutive intervals of flow time."""

    breaks: FloatArray  # (m + 1,), flow times at which the pieces join
    degrees: IntArray  # (m,), degree of each piece
    coefficients: FloatArray  # (Σ (degree + 1), p), Bernstein's of each piece in turn

    def check(self) -> None:
        """Raise ValueError unless the three arrays fit together, as those of a damaged file."""
        if not (np.diff(self.breaks) > 0).all() or not (self.degrees >= 1).all():
            raise ValueError("the pieces of the dense output are out of order")
        if len(self.coefficients) != (self._offsets[-1] or 1):
            raise ValueError("the dense output lacks coefficients")

    @cached_property
    def _offsets(self) -> IntArray:
        return np.concatenate([[0], np.cumsum(self.degrees + 1)])

    def __call__(self, t: ArrayLike) -> FloatArray:
        """Log coordinates at flow times `t` of any shape; shape (*t.shape, p).

        Raises
        ------
        InvalidInputError
            If a time lies outside the intervals.
        """
        times = self.inside(t)
        p = self.coefficients.shape[1]
        flat = times.ravel()
        z = np.empty((flat.size, p))
        for start in range(0, flat.size, _CHUNK):
            z[start : start + _CHUNK] = self._evaluate(flat[start : start + _CHUNK])
        return z.reshape((*times.shape, p))

    def inside(self, t: ArrayLike) -> FloatArray:
        """Flow times `t` as an array, those beyond an end by rounding moved to it.

        Raises
        ------
        InvalidInputError
            If a time lies outside the intervals.
        """
        times = np.asarray(t, dtype=float)
        first, last = self.breaks[0], self.breaks[-1]
        slack = 1e-12 * (abs(first) + abs(last))
        outside = ~((times >= first - slack) & (times <= last + slack))
        if np.any(outside):
            raise InvalidInputError(
                f"t={times[outside].flat[0]} is outside the flow times {first} … {last} that the "
                "run covers: run it for longer, or ask for a time within"
            )
        return np.clip(times, first, last)

    def _evaluate(self, times: FloatArray) -> FloatArray:
        if len(self.degrees) == 0:
            return np.broadcast_to(self.coefficients[0], (len(times), self.coefficients.shape[1]))
        pieces = np.searchsorted(self.breaks, times, side="right") - 1
        pieces = np.clip(pieces, 0, len(self.degrees) - 1)
        left, right = self.breaks[pieces], self.breaks[pieces + 1]
        x = (times - left) / (right - left)
        z = np.empty((len(times), self.coefficients.shape[1]))
        for degree in np.unique(self.degrees[pieces]):
            mask = self.degrees[pieces] == degree
            rows = self._offsets[pieces[mask]][:, None] + np.arange(degree + 1)
            z[mask] = np.einsum("kn,knp->kp", bernstein(degree, x[mask]), self.coefficients[rows])
        return z

    def crossings(self, level: FloatArray) -> tuple[FloatArray, IntArray, IntArray]:
        """Every crossing of |z_i| with a level, several within one piece included.

        Parameters
        ----------
        level : ndarray, shape (p,)
            Positive level of |z_i| for each coordinate.

        Returns
        -------
        t : ndarray, shape (n,)
            Flow times, ascending.
        coordinate : ndarray of int, shape (n,)
            Which coordinate crosses.
        direction : ndarray of int, shape (n,)
            +1 where |z_i| grows beyond the level, −1 where it falls below.
        """
        found: list[tuple[float, int, int]] = []
        for degree in np.unique(self.degrees):
            pieces = np.flatnonzero(self.degrees == degree)
            rows = self._offsets[pieces][:, None] + np.arange(degree + 1)
            values = self.coefficients[rows]  # (pieces, degree + 1, p)
            low, high = values.min(axis=1), values.max(axis=1)
            near = ((low <= level) & (high >= level)) | ((low <= -level) & (high >= -level))
            for row, i in np.argwhere(near):
                piece = pieces[row]
                left, right = self.breaks[piece], self.breaks[piece + 1]
                for x, direction in _piece_crossings(values[row, :, i], level[i]):
                    t = left + (right - left) * (x + 1) / 2
                    found.append((t, int(i), direction))
        found.sort()
        return (
            np.array([t for t, _, _ in found], dtype=float),
            np.array([i for _, i, _ in found], dtype=np.int64),
            np.array([sign for _, _, sign in found], dtype=np.int64),
        )


def _piece_crossings(values: FloatArray, level: float) -> list[tuple[float, int]]:
    """Places x in [−1, 1] and directions at which |polynomial| crosses a level.

    Whether the level is exceeded is asked at both ends, where neighbouring pieces agree to the
    last bit, and between the roots. So a crossing at a joint is found once, and a root that
    only touches the level not at all.
    """
    coefficients = _to_chebyshev(len(values) - 1) @ values
    size = np.max(np.abs(values)) + level
    roots: list[float] = []
    for target in (level, -level):
        shifted = coefficients.copy()
        shifted[0] -= target
        all_roots = chebyshev.chebroots(chebyshev.chebtrim(shifted, 1e-15 * size))
        real = np.abs(np.imag(all_roots)) < 1e-6
        roots += list(np.real(all_roots[real]))
    joints = [-1.0, *sorted(x for x in roots if -1 < x < 1), 1.0]
    middles = (np.array(joints[1:]) + np.array(joints[:-1])) / 2
    at_middles = np.abs(chebyshev.chebval(middles, coefficients))
    above = np.abs(np.concatenate([values[:1], at_middles, values[-1:]])) >= level
    return [
        (x, 1 if after else -1)
        for x, before, after in zip(joints, above[:-1], above[1:], strict=True)
        if before != after
    ]


class DenseOutputBuilder:
    """Collects accepted steps into a `DenseOutput`.

    Parameters
    ----------
    t : float
        Flow time of the start.
    z : ndarray, shape (p,)
        Log coordinates there.
    tol : float
        Largest error of the interpolants against the integrator's own dense output, absolute.
    start : DenseOutput, optional
        What came before, which is continued.
    """

    def __init__(
        self, t: float, z: FloatArray, *, tol: float, start: DenseOutput | None = None
    ) -> None:
        self._start = start
        self._tol = tol
        self._first = self._last = z
        self._breaks = [t]
        self._degrees: list[int] = []
        self._values: list[FloatArray] = []

    def add(self, segment: Segment, t_end: float) -> FloatArray:
        """Append a step up to flow time `t_end`, and return z there, shape (p,)."""
        coefficients = getattr(segment, "coefficients", None)
        if coefficients is not None and (segment.t_start, segment.t_end) == (
            self._breaks[-1],
            t_end,
        ):
            return self._append(t_end, np.array(coefficients))  # the step keeps its own
        pending = [(self._breaks[-1], t_end, 0)]
        while pending:
            left, right, halvings = pending.pop()
            values = segment.z(_times(left, right, _HIGHEST))
            tol = max(self._tol, 1e-14 * float(np.abs(values).max()))
            degree = self._lowest_degree(values, tol)
            if degree == _HIGHEST and halvings < _MOST_HALVINGS:
                between = segment.z(_times(left, right, 2 * _HIGHEST)[1::2])
                error = np.max(np.abs(_between() @ values - between))
                middle = (left + right) / 2
                # Not a number is a failure for `simulate` to report, not a reason to halve.
                if error > tol and left < middle < right:
                    pending += [(middle, right, halvings + 1), (left, middle, halvings + 1)]
                    continue
            kept = values[:: _HIGHEST // degree]
            coefficients = kept[0] + _from_values(degree) @ (kept - kept[0])
            coefficients[-1] = kept[-1]  # to the last bit
            self._append(right, coefficients)
        return self._last

    def _append(self, t_end: float, coefficients: FloatArray) -> FloatArray:
        # The dense output of multistep methods misses the step's start by a local error.
        coefficients[0] = self._last
        self._last = coefficients[-1]
        self._breaks.append(t_end)
        self._degrees.append(len(coefficients) - 1)
        self._values.append(coefficients)
        return self._last

    @staticmethod
    def _lowest_degree(values: FloatArray, tol: float) -> int:
        errors = np.abs(_residuals() @ values).reshape(len(_DEGREES) - 1, -1).max(axis=1)
        sufficient = np.flatnonzero(errors <= tol)
        return _DEGREES[sufficient[0]] if sufficient.size else _HIGHEST

    def build(self) -> DenseOutput:
        """Return the pieces of all steps so far."""
        breaks, degrees = np.array(self._breaks), np.array(self._degrees, dtype=np.int64)
        values = self._values
        if self._start is not None and len(self._start.degrees):
            breaks = np.concatenate([self._start.breaks[:-1], breaks])
            degrees = np.concatenate([self._start.degrees, degrees])
            values = [self._start.coefficients, *values]
        return DenseOutput(breaks, degrees, np.concatenate(values or [self._first[None]]))


def _times(left: float, right: float, degree: int) -> FloatArray:
    times = left + (right - left) * _nodes(degree)
    times[-1] = right
    return times
