"""How a derivation prints its steps and asserts them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import sympy as sp


def say(*paragraphs: str) -> None:
    """Print paragraphs of markdown."""
    for paragraph in paragraphs:
        print(" ".join(paragraph.split()) + "\n")


def show(*formulas: Any) -> None:
    """Print formulas (SymPy objects, or LaTeX as text), one line each."""
    for formula in formulas:
        text = formula if isinstance(formula, str) else sp.latex(formula)
        print(f"```math\n{text}\n```\n")


def equation(left: Any, right: Any) -> None:
    """Print left = right."""
    sides = [side if isinstance(side, str) else sp.latex(side) for side in (left, right)]
    show(" = ".join(sides))


def prove_zero(statement: str, *expressions: sp.Expr) -> None:
    """Assert that SymPy reduces every expression to 0, and say what that shows."""
    for expression in expressions:
        reduced = sp.simplify(expression)
        if reduced != 0:
            raise AssertionError(f"{statement}: left over {reduced}")
    print(f"- ✓ SymPy: {statement}\n")


def prove(statement: str, *conditions: Any) -> None:
    """Assert conditions that SymPy decides to be true."""
    for condition in conditions:
        if condition not in (True, sp.true):
            raise AssertionError(f"{statement}: {condition}")
    print(f"- ✓ SymPy: {statement}\n")


def hold_against(function: str, found: Any, derived: Any, *, tolerance: float = 1e-12) -> None:
    """Assert that a function of the library gives the derived numbers."""
    found, derived = np.asarray(found, dtype=float), np.asarray(derived, dtype=float)
    np.testing.assert_allclose(found, derived, rtol=tolerance, atol=tolerance)
    print(f"- ✓ `{function}` gives the derived numbers, to {tolerance:.0e}\n")


def numbers(expressions: Iterable[sp.Expr], values: dict[sp.Symbol, Any]) -> list[float]:
    """Return the expressions at exact values, correctly rounded."""
    return [float(sp.N(e.subs(values), 40, maxn=4000)) for e in expressions]
