"""An objective that counts how often it is evaluated, and lets Ctrl-C in between."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import ParamSpec, TypeVar

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze._core.interrupts import deliver, evaluate
from dynalyze.models.least_squares import HessianMinimizer, SupportMinimizer
from dynalyze.models.protocol import CheckedObjective, Objective

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Stats:
    """Work that a result took."""

    nfev: int  # evaluations of the loss, of the field, or of both at once
    nhev: int  # evaluations of Hessian columns
    nhcol: int  # Hessian columns, over all evaluations
    seconds: float  # wall-clock time

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.nfev} gradients, {self.nhcol} Hessian columns in {self.nhev} calls, "
            f"{self.seconds:.2f} s"
        )


class CountedObjective(CheckedObjective):
    """Objective that passes every call on and counts it, so that work can be compared.

    Before each call a Ctrl-C that `dynalyze._core.interrupts` holds is delivered.

    Parameters
    ----------
    objective : Objective
        What is evaluated.

    Attributes
    ----------
    compiled : bool
        Whether the calls run kernels of the library, which no signal may end.
    nfev : int
        Evaluations of the loss, of the field g, or of both at once.
    nhev : int
        Calls for Hessian columns.
    nhcol : int
        Hessian columns evaluated, over all calls.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.product_names = objective.product_names
        self.compiled: bool = getattr(objective, "compiled", False)
        self.is_quadratic: bool = getattr(objective, "is_quadratic", False)
        self.field_units: FloatArray | None = getattr(objective, "field_units", None)
        self.field_rounding: Callable[[FloatArray], FloatArray] | None = getattr(
            objective, "field_rounding", None
        )
        self.nfev = 0
        self.nhev = 0
        self.nhcol = 0

    def support_minimizer(self) -> SupportMinimizer:
        """Minimum of a quadratic loss on supports; evaluations of this objective are counted."""
        own = getattr(self.objective, "support_minimizer", None)
        return own() if own else HessianMinimizer(self.hessian_columns, self.field, self.n_products)

    def value(self, theta: FloatArray) -> float:
        """Loss L(θ); θ has shape (p,)."""
        self.nfev += 1
        return self._evaluate(self.objective.value, theta)

    def field(self, theta: FloatArray) -> FloatArray:
        """Field g(θ) of eq. (4), shape (p,)."""
        self.nfev += 1
        return self._evaluate(self.objective.field, theta)

    def value_and_field(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Return L(θ) and g(θ) together, counted once."""
        self.nfev += 1
        return self._evaluate(self.objective.value_and_field, theta)

    def hessian_columns(self, theta: FloatArray, indices: IntArray) -> FloatArray:
        """Columns ∂²L/∂θ∂θ_i for i in `indices`; shape (p, len(indices))."""
        self.nhev += 1
        self.nhcol += len(indices)
        return self._evaluate(self.objective.hessian_columns, theta, indices)

    def stats(self, seconds: float) -> Stats:
        """What was counted so far, which took so long."""
        return Stats(self.nfev, self.nhev, self.nhcol, seconds)

    def _evaluate(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if not self.compiled:
            return evaluate(call, *args, **kwargs)
        deliver()
        return call(*args, **kwargs)


def counted(objective: Objective) -> CountedObjective:
    """Return an objective that counts: the given one where it does already."""
    return objective if isinstance(objective, CountedObjective) else CountedObjective(objective)
