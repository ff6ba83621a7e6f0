"""Dense output in one form for every integrator: piecewise Chebyshev interpolants of z(t).

Each accepted step is sampled at Chebyshev–Lobatto nodes as soon as it is made, at the lowest
of the degrees 1, 2, 4 and 8 that reproduces it, and in pieces where none does. What is kept is
arrays only, so that it can be saved, and its roots can be found all at once.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.polynomial import chebyshev

from dynalyze._core.arrays import ArrayLike, FloatArray, IntArray
from dynalyze.errors import InvalidInputError
from dynalyze.flow.steppers.protocol import Segment

_DEGREES = (1, 2, 4, 8)
_HIGHEST = _DEGREES[-1]
_MOST_HALVINGS = 40
_CHUNK = 4096  # times evaluated at once, which bounds the memory of one evaluation


@cache
def _nodes(degree: int) -> FloatArray:
    """Chebyshev–Lobatto nodes on [−1, 1], ascending; shape (degree + 1,)."""
    return np.asarray(-np.cos(np.pi * np.arange(degree + 1) / degree))


def _lagrange(degree: int, x: FloatArray) -> FloatArray:
    """Lagrange polynomials of the nodes at points x, barycentric; shape (len(x), degree + 1)."""
    weights = np.where(np.arange(degree + 1) % 2, -1.0, 1.0)
    weights[[0, -1]] /= 2
    distance = x[:, None] - _nodes(degree)
    hit = distance == 0
    terms = weights / np.where(hit, 1.0, distance)
    basis: FloatArray = terms / terms.sum(axis=1, keepdims=True)
    on_node = hit.any(axis=1)
    basis[on_node] = hit[on_node]
    return basis


@cache
def _residuals() -> FloatArray:
    """Matrix from values at the nodes of the highest degree to the errors of lower ones.

    Shape (3 · 9, 9): the interpolants of degrees 1, 2 and 4 at all nodes, minus the values.
    """
    blocks = []
    for degree in _DEGREES[:-1]:
        block = -np.eye(_HIGHEST + 1)
        block[:, :: _HIGHEST // degree] += _lagrange(degree, _nodes(_HIGHEST))
        blocks.append(block)
    return np.concatenate(blocks)


@cache
def _between() -> FloatArray:
    """Interpolant of the highest degree at those nodes of twice the degree that it lacks."""
    return _lagrange(_HIGHEST, _nodes(2 * _HIGHEST)[1::2])


@cache
def _coefficients_of_values(degree: int) -> FloatArray:
    """Matrix from values at the nodes to Chebyshev coefficients, (degree + 1, degree + 1)."""
    return np.asarray(np.linalg.inv(chebyshev.chebvander(_nodes(degree), degree)), dtype=float)


@dataclass(frozen=True, eq=False)
class DenseOutput:
    """Log coordinates z(t) as polynomials on consecutive intervals of flow time."""

    breaks: FloatArray  # (m + 1,), flow times at which the pieces join
    degrees: IntArray  # (m,), degree of each piece
    node_values: FloatArray  # (Σ (degree + 1), p), z at the nodes of each piece in turn

    def check(self) -> None:
        """Raise ValueError unless the three arrays fit together, as those of a damaged file."""
        if not (np.diff(self.breaks) > 0).all() or not np.isin(self.degrees, _DEGREES).all():
            raise ValueError("the pieces of the dense output are out of order")
        if len(self.node_values) != (self._offsets[-1] or 1):
            raise ValueError("the dense output lacks values at its nodes")

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
        p = self.node_values.shape[1]
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
            return np.broadcast_to(self.node_values[0], (len(times), self.node_values.shape[1]))
        pieces = np.searchsorted(self.breaks, times, side="right") - 1
        pieces = np.clip(pieces, 0, len(self.degrees) - 1)
        left, right = self.breaks[pieces], self.breaks[pieces + 1]
        x = ((times - left) - (right - times)) / (right - left)
        z = np.empty((len(times), self.node_values.shape[1]))
        for degree in np.unique(self.degrees[pieces]):
            mask = self.degrees[pieces] == degree
            rows = self._offsets[pieces[mask]][:, None] + np.arange(degree + 1)
            z[mask] = np.einsum("kn,knp->kp", _lagrange(degree, x[mask]), self.node_values[rows])
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
            values = self.node_values[rows]  # (pieces, degree + 1, p)
            low, high = values.min(axis=1), values.max(axis=1)
            # An interpolant leaves the range of its node values by (Λ − 1)/2 of that range at
            # most, where the Lebesgue constant Λ of these nodes is below 2.
            margin = (high - low) / 2 if degree > 1 else 0.0
            low, high = low - margin, high + margin
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
    coefficients = _coefficients_of_values(len(values) - 1) @ values
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
        pending = [(self._breaks[-1], t_end, 0)]
        while pending:
            left, right, halvings = pending.pop()
            times = _times(left, right, _HIGHEST)
            values = segment.z(times)
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
            kept = values[:: _HIGHEST // degree].copy()
            # The dense output of multistep methods misses the step's start by a local error.
            kept[0] = self._last
            self._last = kept[-1]
            self._breaks.append(right)
            self._degrees.append(degree)
            self._values.append(kept)
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
            values = [self._start.node_values, *values]
        return DenseOutput(breaks, degrees, np.concatenate(values or [self._first[None]]))


def _times(left: float, right: float, degree: int) -> FloatArray:
    times = left + (right - left) * (_nodes(degree) + 1) / 2
    times[-1] = right
    return times
