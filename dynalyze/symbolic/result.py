"""Stages in symbols, as a result that prints as LaTeX and turns into NumPy functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import sympy as sp

from dynalyze._core.arrays import FloatArray
from dynalyze._core.status import Status
from dynalyze.errors import InvalidInputError
from dynalyze.symbolic.decisions import tidy


class NumericStages(NamedTuple):
    """The stages at one value of the parameters."""

    times: FloatArray  # (K,), rescaled
    theta: FloatArray  # (K+1, p)
    b: FloatArray  # (K+1, p)
    losses: FloatArray  # (K+1,)


@dataclass(frozen=True)
class SymbolicStages:
    """What Algorithm 1 of arXiv 2306.07042 predicts, as expressions.

    Times are rescaled: the flow time of stage k is about ``times[k] * log(1/α)``. The expressions
    hold where every one of `conditions` does; without parameters there are none.
    """

    products: tuple[sp.Symbol, ...]  # (p,)
    times: tuple[sp.Expr, ...]  # (K,) T_1 … T_K of eq. (9)
    coordinates: tuple[int, ...]  # (K,) the coordinate that each stage activates
    signs: tuple[sp.Expr, ...]  # (K,) its sign
    theta: tuple[tuple[sp.Expr, ...], ...]  # (K+1, p) stationary points, θ^0 = 0 first
    b: tuple[tuple[sp.Expr, ...], ...]  # (K+1, p) log-scales of eq. (10)
    losses: tuple[sp.Expr, ...]  # (K+1,)
    departed: tuple[tuple[int, ...], ...]  # (K,) coordinates that left the support
    status: Status
    message: str  # what the status means here, and what to do
    conditions: tuple[sp.Basic, ...] = ()  # relations between parameters
    branches: tuple[str, ...] = ()  # (K,) how each stationary point was told from the others
    equations: tuple[sp.Expr, ...] = ()  # if unsolved: expressions that must vanish next
    next_time: sp.Expr | None = None  # if it ended early: T of the stage not found
    next_coordinates: tuple[int, ...] = ()  # and the coordinates that it would activate

    @property
    def success(self) -> bool:
        """Whether all stages are there: no coordinate outside the support grows any more."""
        return self.status.success

    @property
    def parameters(self) -> tuple[sp.Symbol, ...]:
        """Parameters that the stages depend on, by name."""
        everything = [*self.times, *self.losses, *sum(self.theta, ()), *sum(self.b, ())]
        found: set[sp.Symbol] = set().union(*(sp.sympify(e).free_symbols for e in everything))
        return tuple(sorted(found, key=str))

    def subs(self, values: Mapping[sp.Symbol, Any]) -> "SymbolicStages":
        """Return the stages with parameters replaced.

        Raises
        ------
        InvalidInputError
            If the values violate one of the conditions under which the stages hold.
        """
        exact = {symbol: sp.sympify(value) for symbol, value in values.items()}

        def replace(entry: Any) -> Any:
            if isinstance(entry, tuple):
                return tuple(replace(part) for part in entry)
            return tidy(sp.sympify(entry).subs(exact))

        conditions = []
        for condition in self.conditions:
            replaced = condition.subs(exact)
            if replaced == sp.false:
                raise InvalidInputError(
                    f"at {exact} the condition {condition} does not hold: find the stages again "
                    "with that point as the reference"
                )
            if replaced != sp.true:
                conditions.append(replaced)
        return SymbolicStages(
            self.products,
            replace(self.times),
            self.coordinates,
            replace(self.signs),
            replace(self.theta),
            replace(self.b),
            replace(self.losses),
            self.departed,
            self.status,
            self.message,
            tuple(conditions),
            self.branches,
            replace(self.equations),
            None if self.next_time is None else replace(self.next_time),
            self.next_coordinates,
        )

    def lambdify(
        self, parameters: Sequence[sp.Symbol] | None = None
    ) -> Callable[..., NumericStages]:
        """Return a NumPy function of the parameters, in the order of `parameters`.

        The function does not check `conditions`.

        Parameters
        ----------
        parameters : sequence of Symbol, optional
            By default `self.parameters`.
        """
        arguments = list(self.parameters if parameters is None else parameters)
        missing = set(self.parameters) - set(arguments)
        if missing:
            raise InvalidInputError(
                f"the stages depend on {', '.join(sorted(map(str, missing)))}: add to parameters"
            )
        entries = [list(self.times), [list(row) for row in self.theta]]
        entries += [[list(row) for row in self.b], list(self.losses)]
        function = sp.lambdify(arguments, entries, "numpy", cse=True)

        def evaluate(*values: float) -> NumericStages:
            times, theta, b, losses = (np.array(e, dtype=float) for e in function(*values))
            return NumericStages(times, theta, b, losses)

        return evaluate

    def numeric(self) -> NumericStages:
        """Return the stages in floating point, each entry correctly rounded; no parameters.

        Raises
        ------
        InvalidInputError
            If the stages depend on parameters.
        """
        if self.parameters:
            raise InvalidInputError(
                f"the stages depend on {', '.join(map(str, self.parameters))}: use lambdify() or "
                "subs() first"
            )

        def array(entries: Any) -> FloatArray:
            return np.array(
                [array(e) if isinstance(e, tuple) else float(sp.N(e, 30)) for e in entries]
            )

        return NumericStages(
            array(self.times), array(self.theta), array(self.b), array(self.losses)
        )

    @property
    def algebraic_numbers(self) -> dict[sp.Symbol, sp.CRootOf]:
        """Roots of polynomials that occur in the stages, by the short names in print."""
        everything = [*self.times, *self.losses, *sum(self.theta, ()), *sum(self.b, ())]
        roots = list(dict.fromkeys(r for e in everything for r in sp.ordered(e.atoms(sp.CRootOf))))
        return {sp.Symbol(f"rho_{k}", real=True): root for k, root in enumerate(roots, 1)}

    def latex(self) -> str:
        """Return a table of the stages, in LaTeX."""
        roots = self.algebraic_numbers
        short = {root: name for name, root in roots.items()}

        def cell(expression: sp.Expr) -> str:
            return str(sp.latex(expression.xreplace(short)))

        names = [sp.latex(product) for product in self.products]
        columns = "c" * len(names)
        head = ["k", "T_k", r"\text{activates}", *names, *(f"b_{{{n}}}" for n in names), "L"]
        rows = [rf"\begin{{array}}{{c|c|c|{columns}|{columns}|c}}", " & ".join(head) + r"\\ \hline"]
        for k, (theta, b, loss) in enumerate(zip(self.theta, self.b, self.losses, strict=True)):
            event = ["0", ""]
            if k:
                sign = {1: "+", -1: "-"}.get(self.signs[k - 1]) or sp.latex(self.signs[k - 1])
                gone = "".join(rf",\ {names[i]}\to 0" for i in self.departed[k - 1])
                event = [
                    cell(self.times[k - 1]),
                    rf"{names[self.coordinates[k - 1]]}\ ({sign}){gone}",
                ]
            rows.append(" & ".join([str(k), *event, *map(cell, (*theta, *b, loss))]) + r"\\")
        rows.append(r"\end{array}")
        rows += [rf",\quad {sp.latex(name)} = {_root_latex(r)}" for name, r in roots.items()]
        return "\n".join(rows)

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.latex()}$"

    def __str__(self) -> str:
        roots = self.algebraic_numbers
        short = {root: name for name, root in roots.items()}
        lines = [f"{len(self.times)} stages: {self.status}. {self.message}"]
        for k, time in enumerate(self.times):
            name = self.products[self.coordinates[k]]
            gone = "".join(f", {self.products[i]} leaves" for i in self.departed[k])
            theta = ", ".join(str(value.xreplace(short)) for value in self.theta[k + 1])
            lines.append(
                f"  T_{k + 1} = {time.xreplace(short)}: {name} (sign {self.signs[k]}){gone}; "
                f"θ = ({theta}), L = {self.losses[k + 1].xreplace(short)}"
            )
        lines += [f"  {name} = {root} ≈ {root.evalf(6)}" for name, root in roots.items()]
        if self.conditions:
            lines.append("where " + ", ".join(str(condition) for condition in self.conditions))
        return "\n".join(lines)


def _root_latex(root: sp.CRootOf) -> str:
    x = sp.Symbol("x")
    polynomial = sp.latex(root.poly.as_expr(root.poly.gen).subs(root.poly.gen, x))
    return rf"\text{{the root }} x \approx {root.evalf(6)} \text{{ of }} {polynomial}"
