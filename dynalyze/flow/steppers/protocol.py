"""What every integrator offers the code that drives it: one accepted step at a time.

`simulate` and the limit points of the stages drive a `Stepper`; they look for events,
budgets and stationary points between steps, and know nothing of how a step is made.
"""

from typing import Protocol

from dynalyze._core.arrays import FloatArray


class Segment(Protocol):
    """One accepted step, or part of one, with its dense output."""

    @property
    def t_start(self) -> float:
        """Flow time at which it starts."""

    @property
    def t_end(self) -> float:
        """Flow time at which it ends."""

    def z(self, t: float | FloatArray) -> FloatArray:
        """Log coordinates within it: shape (p,), or (len(t), p) for an array of times."""


class Stepper(Protocol):
    """An integrator of dz/dt = g(θ(z)), advanced step by step."""

    @property
    def t(self) -> float:
        """Flow time reached."""

    @property
    def z(self) -> FloatArray:
        """Log coordinates reached, shape (p,)."""

    @property
    def field(self) -> FloatArray:
        """g at the point reached, shape (p,)."""

    @property
    def n_steps(self) -> int:
        """Steps completed; one that has several segments counts when the last is returned."""

    def step(self) -> Segment:
        """Return the next segment: an accepted step, or part of one.

        Raises
        ------
        FlowError
            If no step can be made; the message says why and what to change.
        """
