"""What every integrator offers the code that drives it: one accepted step at a time.

`simulate` and the limit points of the stages drive a `Stepper`; they look for events,
budgets and stationary points between steps, and know nothing of how a step is made.
"""

from typing import Protocol

from dynalyze._core.arrays import FloatArray
from dynalyze.flow.coordinates import BalancedCoordinates, LogCoordinates
from dynalyze.models.protocol import Objective


class Segment(Protocol):
    """One accepted step, or part of one, with its dense output.

    One that is a polynomial may have `coefficients` of Bernstein's polynomials, (degree + 1, p),
    which are then kept as they are; otherwise z(t) is sampled.
    """

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


class StepperFactory(Protocol):
    """Makes a stepper at a point of the flow: a class whose `__init__` takes this, or a function.

    `simulate` and `predict_stages` take one as their `method`.
    """

    def __call__(
        self,
        objective: Objective,
        chart: LogCoordinates | BalancedCoordinates,
        z: FloatArray,
        *,
        t: float,
        t_bound: float,
        tol: float,
    ) -> Stepper:
        """Return an integrator of dz/dt = g(θ(z)).

        Parameters
        ----------
        objective : Objective
            The loss; `objective.field` is g, and every evaluation of it is counted.
        chart : LogCoordinates or BalancedCoordinates
            `chart.theta` gives the products θ(z).
        z : ndarray, shape (p,)
            Log coordinates at the start; a method of your own gets a copy, to be changed at will.
        t : float
            Flow time of the start.
        t_bound : float
            Flow time beyond which no step needs to go; may be infinite.
        tol : float
            Error of z that one step may make. `simulate` passes its own `tol` on; `predict_stages`
            asks for 1e-4 where jump times are wanted, and else for 1e-3.
        """
