"""Linear-time walks over SymPy expressions: rebuild, hash, and refuse what is not smooth.

An expression is a graph with shared nodes. SymPy's own `free_symbols`, `xreplace` and `srepr`
walk it as a tree, which takes exponential time on nested models; these walks visit a node once.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping

import sympy as sp

from dynalyze.errors import InvalidInputError

# Functions that are continuous or not, but not twice continuously differentiable.
_NON_SMOOTH = (
    sp.Abs,
    sp.sign,
    sp.Heaviside,
    sp.DiracDelta,
    sp.Max,
    sp.Min,
    sp.Piecewise,
    sp.floor,
    sp.ceiling,
    sp.Mod,
    sp.frac,
    sp.arg,
    sp.re,
    sp.im,
)


def postorder(expressions: Iterable[sp.Basic]) -> Iterator[sp.Basic]:
    """Yield every distinct node of `expressions`, arguments before the node that uses them."""
    seen: set[sp.Basic] = set()
    for root in expressions:
        stack = [(root, False)]
        while stack:
            node, expanded = stack.pop()
            if node in seen:
                continue
            if expanded:
                seen.add(node)
                yield node
            else:
                stack.append((node, True))
                stack.extend((arg, False) for arg in node.args if arg not in seen)


def free_symbols(expressions: Iterable[sp.Basic]) -> set[sp.Symbol]:
    """All symbols in `expressions`."""
    return {node for node in postorder(expressions) if isinstance(node, sp.Symbol)}


def rebuild(
    expressions: Iterable[sp.Basic], symbols: Mapping[sp.Basic, sp.Basic]
) -> list[sp.Basic]:
    """Return `expressions` with `symbols` exchanged, evaluating every node again.

    Evaluation matters: with real symbols √(x²) becomes |x|, and is then seen to be not smooth.
    """
    expressions = list(expressions)
    new: dict[sp.Basic, sp.Basic] = {}
    for node in postorder(expressions):
        if node in symbols:
            new[node] = symbols[node]
        elif node.args:
            new[node] = node.func(*(new[arg] for arg in node.args))
        else:
            new[node] = node
    return [new[expression] for expression in expressions]


def digest(expressions: Iterable[sp.Basic]) -> str:
    """Return a hash of the expressions that is the same in every process."""
    expressions = list(expressions)
    digests: dict[sp.Basic, str] = {}
    for node in postorder(expressions):
        parts = [digests[arg] for arg in node.args]
        if isinstance(node, sp.Add | sp.Mul):
            parts.sort()  # the order of their arguments is not part of what they mean
        text = type(node).__name__ + "(" + ",".join(parts) + ")"
        if not node.args:
            text += sp.srepr(node)
        digests[node] = hashlib.sha256(text.encode()).hexdigest()
    return hashlib.sha256("".join(digests[e] for e in expressions).encode()).hexdigest()


def refuse_unusable(
    expressions: Iterable[sp.Basic], smooth_in: Iterable[sp.Symbol], *, parameter: str
) -> None:
    """Raise unless the expressions are real, finite and smooth in the symbols `smooth_in`.

    Parameters
    ----------
    expressions : iterable of sympy expressions
        What to look at, with real symbols.
    smooth_in : iterable of Symbol
        Symbols in which they must be twice continuously differentiable; in others (the inputs,
        the targets) anything goes.
    parameter : str
        Name of the argument, for the message.

    Raises
    ------
    InvalidInputError
        Naming the offending subexpression.
    """
    depends: set[sp.Basic] = set(smooth_in)
    for node in postorder(expressions):
        if node in (sp.I, sp.zoo, sp.nan, sp.oo, -sp.oo):
            raise InvalidInputError(
                f"{parameter} contains {node}: it must be a real, finite expression"
            )
        if isinstance(node, sp.Derivative | sp.Integral | sp.core.function.AppliedUndef):
            raise InvalidInputError(
                f"{parameter} contains {node}, which has no formula to compute: write it out "
                "(for derivatives and integrals, call doit() first)"
            )
        if any(arg in depends for arg in node.args):
            depends.add(node)
            if isinstance(node, _NON_SMOOTH):
                raise InvalidInputError(
                    f"{parameter} contains {node}, which is not smooth in "
                    f"{_named(node, smooth_in)}: Definition 3.1 needs a model that is twice "
                    "continuously differentiable in the products; use a smooth function "
                    "(GELU x·(1 + erf(x/√2))/2 or softplus log(1 + exp(x)) for ReLU, "
                    "sqrt(x**2 + δ**2) for |x|)"
                )


def _named(node: sp.Basic, smooth_in: Iterable[sp.Symbol]) -> str:
    found = free_symbols([node]) & set(smooth_in)
    return ", ".join(sorted(str(symbol) for symbol in found))


def degree(expression: sp.Basic, unknowns: Iterable[sp.Symbol]) -> float:
    """Bound on the total degree in the unknowns; infinite where it may be no polynomial in them.

    It is the degree itself but where terms cancel.
    """
    degrees: dict[sp.Basic, float] = {}
    inside = set(unknowns)
    for node in postorder([expression]):
        parts = [degrees[arg] for arg in node.args]
        if not any(parts):
            degrees[node] = float(node in inside)
        elif isinstance(node, sp.Add):
            degrees[node] = max(parts)
        elif isinstance(node, sp.Mul):
            degrees[node] = sum(parts)
        elif isinstance(node, sp.Pow) and node.exp.is_Integer and node.exp > 0:
            degrees[node] = parts[0] * int(node.exp)
        else:
            degrees[node] = math.inf
    return degrees[expression]
