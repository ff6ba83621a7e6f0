"""A loss per sample given as a SymPy formula, and checks of symbols that formulas share."""

from collections.abc import Sequence
from typing import Any

import sympy as sp

from dynalyze.errors import InvalidInputError
from dynalyze.models.formula import codegen
from dynalyze.models.formula.expressions import free_symbols, rebuild, refuse_unusable


class SymbolicLoss:
    """A loss per sample ℓ(y, f) given as a SymPy expression.

    Parameters
    ----------
    expression : sympy expression
        ℓ(y, f), twice continuously differentiable in f. The loss of a data set is its mean.
    targets : Symbol or sequence of Symbol
        Symbols of the target's entries, in the order of the columns of y.
    outputs : Symbol or sequence of Symbol
        Symbols of the model's outputs, in the order of h.

    Raises
    ------
    InvalidInputError
        If the expression is not smooth in the outputs (Assumption 2.1 of arXiv 2306.07042), or has
        symbols that are in neither list.

    Notes
    -----
    Losses with exponential tails, such as the logistic loss, have no finite stationary point
    on separable data, and the stages end where that happens.

    Examples
    --------
    >>> import sympy as sp
    >>> y, f = sp.symbols("y f")
    >>> logistic = SymbolicLoss(sp.log(1 + sp.exp(-y * f)), targets=y, outputs=f)
    """

    def __init__(
        self,
        expression: sp.Expr,
        targets: sp.Symbol | Sequence[sp.Symbol],
        outputs: sp.Symbol | Sequence[sp.Symbol],
    ) -> None:
        self.expression = as_expression(expression, "expression")
        self.targets = as_symbols(targets, "targets")
        self.outputs = as_symbols(outputs, "outputs")
        refuse_repeated(self.targets + self.outputs)
        undeclared = free_symbols([self.expression]) - {*self.targets, *self.outputs}
        if undeclared:
            raise InvalidInputError(
                f"the loss has the symbols {names_of(undeclared)}, which are in neither "
                f"targets={self.targets} nor outputs={self.outputs}: add them, or substitute values"
            )
        y = codegen.symbols("y", len(self.targets))
        f = codegen.symbols("f", len(self.outputs))
        named = real_symbols(self.targets + self.outputs)
        (readable,) = rebuild([self.expression], named)
        refuse_unusable([readable], [named[x] for x in self.outputs], parameter="the loss")
        (self.canonical,) = rebuild(
            [self.expression], dict(zip(self.targets + self.outputs, y + f, strict=True))
        )

    def __repr__(self) -> str:
        return f"SymbolicLoss({self.expression}, {self.targets}, {self.outputs})"


def as_expression(value: Any, parameter: str) -> sp.Expr:
    """Return `value` as a SymPy expression, or raise."""
    if isinstance(value, bool) or not isinstance(value, sp.Expr | int | float):
        raise InvalidInputError(
            f"{parameter} is {value!r} of type {type(value).__name__}: give a SymPy expression"
        )
    return sp.sympify(value)


def as_symbols(value: Any, parameter: str) -> tuple[sp.Symbol, ...]:
    """Return one symbol or a sequence of them as a tuple, or raise."""
    if isinstance(value, sp.Symbol):
        return (value,)
    if not isinstance(value, Sequence | sp.MatrixBase | sp.Tuple) or isinstance(value, str):
        raise InvalidInputError(f"{parameter}={value!r}: give a sequence of SymPy symbols")
    for entry in value:
        if not isinstance(entry, sp.Symbol):
            raise InvalidInputError(
                f"{parameter} contains {entry!r}: each entry must be a SymPy Symbol"
            )
    return tuple(value)


def refuse_repeated(found: tuple[sp.Symbol, ...]) -> None:
    """Raise if two symbols have one name."""
    names = [symbol.name for symbol in found]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise InvalidInputError(f"the symbols {names_of(repeated)} are declared more than once")


def names_of(found: Any) -> str:
    """Names of symbols, sorted, for a message."""
    return ", ".join(sorted(str(symbol) for symbol in found))


def real_symbols(found: tuple[sp.Symbol, ...]) -> dict[sp.Basic, sp.Basic]:
    """Real symbols of the same names, for messages that the user can read."""
    return {symbol: sp.Symbol(symbol.name, real=True) for symbol in found}
