"""The surrogate method as a `Stepper`: its state, and the segments still to be handed out."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.errors import InvalidInputError
from dynalyze.flow.coordinates import Chart
from dynalyze.flow.dense import bernstein
from dynalyze.flow.steppers.protocol import Segment
from dynalyze.flow.steppers.surrogate.method import step
from dynalyze.flow.steppers.surrogate.path import Path
from dynalyze.flow.steppers.surrogate.state import start
from dynalyze.models.protocol import Objective, relative_field_units

_ORDER = 5  # highest number of nodes of the predictor
_SHARE = 0.05  # of tol, for one step: steps add up
_MANY_STEPS = 1e-6  # tol below which that share shrinks, as the number of steps grows ...
_GROWTH = 1 / 8  # ... with this power of 1/tol


class ExponentialChart(Chart, Protocol):
    """A chart of the form θ = e^{up + 2z} − e^{down − 2z}, as all of this library are."""

    def log_amplitudes(self) -> tuple[FloatArray, FloatArray]:
        """Return `up` and `down`, each of shape (p,); −∞ where the term is absent."""


@dataclass(frozen=True, eq=False)
class CubicSegment:
    """Part of a step in which z is a cubic polynomial of the flow time."""

    t_start: float
    t_end: float
    last: FloatArray  # (p,), z at t_end
    field: FloatArray  # (p,), dz/dt there
    coefficients: FloatArray  # (4, p), of Bernstein's polynomials on [t_start, t_end]

    def z(self, t: float | FloatArray) -> FloatArray:
        """Log coordinates within the segment: shape (p,), or (len(t), p) for an array of times."""
        x = (np.asarray(t) - self.t_start) / (self.t_end - self.t_start)
        z: FloatArray = bernstein(3, x) @ self.coefficients
        return z


@dataclass(frozen=True, eq=False)
class LongSegment:
    """Part of a step in which LSODA knows z as counted from the step's start."""

    t_start: float
    t_end: float
    last: FloatArray  # (p,), z at t_end
    field: FloatArray  # (p,), dz/dt there
    origin: tuple[float, FloatArray]  # t and z, (p,), at the step's start
    dense: Callable[[FloatArray], FloatArray]

    def z(self, t: float | FloatArray) -> FloatArray:
        """Log coordinates within the segment: shape (p,), or (len(t), p) for an array of times."""
        start, z = self.origin
        return z + self.dense(np.asarray(t) - start)[:-1].T


def segments(
    path: Path, t: float, t_end: float, z: FloatArray
) -> Iterator[CubicSegment | LongSegment]:
    """Segments of a path from (t, z) to t_end, in turn; none of them is empty."""
    times = t + path.t
    times[-1] = t_end  # to the last bit
    start = 0
    for i, dense in enumerate(path.dense):
        if times[i + 1] > times[start]:
            ends = float(times[start]), float(times[i + 1])
            last, field = z + path.y[i + 1, :-1], path.rates[i + 1]
            if isinstance(dense, np.ndarray):
                yield CubicSegment(*ends, last, field, z + dense[:, :-1])
            else:
                yield LongSegment(*ends, last, field, (t, z), dense)
            start = i + 1


class SurrogateStepper:
    """The library's own integrator of the flow: few gradients, rare Hessians, plateaus in one step.

    It is a multistep method on the arc length that solves the exponentials of the flow exactly. A
    predictor with m nodes makes a method of order m + 1, as for an Adams–Moulton method in PEC
    mode. For linear models a step is exact; on plateaus it goes to where the next coordinate is
    felt, however far that is: the work does not grow with log(1/α). docs/integrator.md has all.

    Parameters
    ----------
    objective : Objective
        The loss.
    chart : ExponentialChart
        The products θ(z).
    z : ndarray, shape (p,)
        Log coordinates at the start.
    t : float, optional
        Flow time of the start.
    t_bound : float, optional
        Flow time not to step beyond.
    tol : float
        Error of z_i where |θ_i| crosses a level: |g_i| times the error of the crossing time.
    order : int, optional
        Highest number m of nodes, 2 to 6.

    Raises
    ------
    FlowError
        If the field is not finite at the start.
    """

    def __init__(
        self,
        objective: Objective,
        chart: ExponentialChart,
        z: FloatArray,
        *,
        t: float = 0.0,
        t_bound: float = np.inf,
        tol: float = 1e-6,
        order: int = _ORDER,
    ) -> None:
        if not 2 <= order <= 6:
            raise InvalidInputError(f"order={order} must be from 2 to 6")
        up, down = chart.log_amplitudes()
        units, z = relative_field_units(objective), np.array(z, dtype=float)
        share = _SHARE * min(1.0, tol / _MANY_STEPS) ** _GROWTH
        self._problem, self._state = start(
            objective, up, down, units, float(t), z, share * tol, order
        )
        self._t_bound = t_bound
        self._ready: deque[CubicSegment | LongSegment] = deque()
        self._t, self._z, self._field = self._state.t, z, self._state.samples[0].field
        self._n_steps = 0

    @property
    def t(self) -> float:
        """Flow time reached."""
        return self._t

    @property
    def z(self) -> FloatArray:
        """Log coordinates reached, shape (p,)."""
        return self._z

    @property
    def field(self) -> FloatArray:
        """g at the point reached to the accuracy of the integration, shape (p,); free."""
        return self._field

    @property
    def n_steps(self) -> int:
        """Steps whose segments were all returned."""
        return self._n_steps

    def step(self) -> Segment:
        """Return the next segment of the path, making a step where none is left.

        Raises
        ------
        FlowError
            If the field is not finite wherever tried, or no step is small enough.
        """
        while not self._ready:
            before = self._state
            self._state, path = step(self._problem, before, self._t_bound)
            self._ready.extend(segments(path, before.t, self._state.t, before.z))
        segment = self._ready.popleft()
        self._n_steps += not self._ready
        self._t, self._z, self._field = segment.t_end, segment.last, segment.field
        return segment
