"""Which branch a symbolic recursion takes, and the conditions under which it does."""

from collections.abc import Mapping
from typing import Any

import sympy as sp

from dynalyze.errors import InvalidInputError

_DIGITS = 60
_ZERO = sp.Float(10) ** -45


class Decisions:
    """Signs of expressions, decided exactly, or at a reference point and then recorded.

    An expression without parameters has a sign. One with parameters has the sign that its
    assumptions give it, or else the one that it has at the reference point; in that case the
    inequality is kept, so that a result can state where it holds.

    Parameters
    ----------
    at : mapping of Symbol to number
        The reference point: a value for every parameter whose sign is not assumed.

    Attributes
    ----------
    conditions : list of sympy relations
        What was decided at the reference point, in order.
    """

    def __init__(self, at: Mapping[sp.Symbol, Any] | None = None) -> None:
        self.at: dict[sp.Symbol, sp.Expr] = {}
        for symbol, value in (at or {}).items():
            number = sp.sympify(value)
            if not (isinstance(symbol, sp.Symbol) and number.is_number and number.is_real):
                raise InvalidInputError(
                    f"at={{{symbol}: {value}}}: give real numbers for SymPy symbols"
                )
            self.at[symbol] = (
                sp.nsimplify(number, rational=True) if number.has(sp.Float) else number
            )
        self.conditions: list[sp.Basic] = []

    def at_reference(self, expression: sp.Expr) -> sp.Expr:
        """Return `expression` at the reference point; a number.

        Raises
        ------
        InvalidInputError
            If the reference point does not fix a parameter of it.
        """
        value = expression.subs(self.at)
        if value.free_symbols:
            missing = ", ".join(sorted(str(symbol) for symbol in value.free_symbols))
            raise InvalidInputError(
                f"the stages depend on the value of {missing}: name a reference point, such as "
                f"at={{{missing.split(', ')[0]}: 1, ...}}, whose branch to follow"
            )
        return value

    def sign(self, expression: sp.Expr) -> int:
        """Sign of `expression`, −1, 0 or 1."""
        if not expression.free_symbols:
            return _sign_of_number(expression)
        if expression.is_positive:
            return 1
        if expression.is_negative:
            return -1
        if expression.is_zero:
            return 0
        sign = _sign_of_number(self.at_reference(expression))
        self._record(expression, sign)
        return sign

    def less(self, left: sp.Expr, right: sp.Expr) -> int:
        """Return −1 if left < right, 0 if they are equal, 1 if left > right."""
        if left == right:
            return 0
        if sp.oo in (left, right):
            return -1 if right == sp.oo else 1
        difference = tidy(left - right)
        if not difference.free_symbols or difference == 0:
            return _sign_of_number(difference)
        sign = _sign_of_number(self.at_reference(difference))
        relation = (sp.Eq, sp.Gt, sp.Lt)[sign]
        self._append(relation(left, right))
        return sign

    def _record(self, expression: sp.Expr, sign: int) -> None:
        # a factor of known sign says nothing
        factors = [f for f in sp.Mul.make_args(sp.factor(expression)) if not f.is_positive]
        kept: sp.Expr = sp.Mul(*factors)
        self._append((sp.Eq, sp.Gt, sp.Lt)[sign](kept, 0))

    def _append(self, relation: sp.Basic) -> None:
        if relation not in (sp.true, *self.conditions):
            self.conditions.append(relation)


def _sign_of_number(value: sp.Expr) -> int:
    if value.is_Rational or value.is_infinite:
        return int(sp.sign(value))
    number = sp.re(value.evalf(_DIGITS))
    if abs(number) < _ZERO:
        # What 45 digits cannot tell from 0 is taken to be 0.
        return 0
    return 1 if number > 0 else -1


def tidy(expression: sp.Expr) -> sp.Expr:
    """Return `expression` in a form in which equal rational functions are equal."""
    expression = sp.sympify(expression)
    if expression.is_Number or expression.is_Symbol:
        return expression
    roots = expression.atoms(sp.CRootOf)
    if len(roots) == 1 and not expression.free_symbols:
        return _reduced(expression, *roots)
    if expression.is_rational_function(*expression.free_symbols):
        expression = sp.cancel(expression)
    factored = sp.factor(expression)
    # factor splits log(x y); the real logarithms that arise here may be joined again
    return sp.logcombine(factored, force=True) if factored.has(sp.log) else factored


def _reduced(expression: sp.Expr, root: sp.CRootOf) -> sp.Expr:
    """Write a rational function of an algebraic number as a polynomial of least degree in it."""
    x = sp.Dummy("x")
    minimal = sp.Poly(root.poly.as_expr(root.poly.gen), root.poly.gen, domain="QQ").replace(
        root.poly.gen, x
    )
    numerator, denominator = sp.fraction(sp.together(expression.subs(root, x)))
    try:
        top, bottom = (sp.Poly(part, x, domain="QQ") for part in (numerator, denominator))
    except (sp.PolynomialError, sp.CoercionFailed):
        return expression  # the root is within another function
    return (top * sp.invert(bottom, minimal)).rem(minimal).as_expr().subs(x, root)
