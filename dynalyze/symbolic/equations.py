"""Equations (8)–(10) of arXiv 2306.07042 in symbols: the race between inactive coordinates."""

from collections.abc import Sequence

import sympy as sp

from dynalyze.errors import InvalidInputError
from dynalyze.symbolic.decisions import Decisions, tidy


def time_until_active(b: sp.Expr, g: sp.Expr, sign: int | None = None) -> sp.Expr:
    """Rescaled time until a coordinate is active, eq. (8).

    Parameters
    ----------
    b : sympy expression
        Log-scale of the coordinate, |w| ≈ α^b.
    g : sympy expression
        Field g_i(θ) at the stationary point.
    sign : {-1, 0, 1}, optional
        Sign of g, where it is known.

    Returns
    -------
    sympy expression
        b/g where g > 0, (2 − b)/(−g) where g < 0, ∞ where g = 0, in rescaled time; a Piecewise
        if the sign of g is not known.

    Examples
    --------
    >>> time_until_active(1, sp.Rational(-2, 3))
    3/2
    """
    b, g = sp.sympify(b), sp.sympify(g)
    if sign is None:
        if g.is_positive:
            sign = 1
        elif g.is_negative:
            sign = -1
        elif g.is_zero:
            sign = 0
        else:
            return sp.Piecewise((b / g, g > 0), ((2 - b) / (-g), g < 0), (sp.oo, True))
    if sign == 0:
        return sp.oo
    return tidy(b / g if sign > 0 else (2 - b) / (-g))


def log_scale(b: sp.Expr, g: sp.Expr, elapsed: sp.Expr) -> sp.Expr:
    """Log-scale b − g Δ of an inactive coordinate after a plateau of rescaled length Δ, eq. (10).

    Parameters
    ----------
    b, g : sympy expression
        Log-scale and field at the start of the plateau.
    elapsed : sympy expression
        Length Δ of the plateau in rescaled time.
    """
    return tidy(sp.sympify(b) - sp.sympify(g) * sp.sympify(elapsed))


def activation(
    waits: Sequence[sp.Expr], decisions: Decisions | None = None
) -> tuple[tuple[int, ...], sp.Expr]:
    """Winner of the race, eq. (9).

    Parameters
    ----------
    waits : sequence of sympy expressions
        Times until active Δ(i), ∞ for coordinates that do not take part.
    decisions : Decisions, optional
        Where parameters are compared; by default there may be none.

    Returns
    -------
    winners : tuple of int
        Every coordinate that attains the minimum: one, unless there is a tie; none if all wait
        forever.
    wait : sympy expression
        The minimum, in rescaled time.

    Raises
    ------
    InvalidInputError
        If `waits` is empty, or parameters are compared without a reference point.
    """
    if not waits:
        raise InvalidInputError("waits is empty: give one time until active per coordinate")
    decisions = decisions or Decisions()
    finite = [i for i, wait in enumerate(waits) if wait != sp.oo]
    if not finite:
        return (), sp.oo
    # find the winner at the reference point first, so that only p − 1 comparisons are stated
    best = finite[0]
    for i in finite[1:]:
        if tidy(decisions.at_reference(sp.sympify(waits[i]) - waits[best])).is_negative:
            best = i
    winners = [i for i in finite if i == best or decisions.less(waits[best], waits[i]) == 0]
    return tuple(winners), sp.sympify(waits[best])
