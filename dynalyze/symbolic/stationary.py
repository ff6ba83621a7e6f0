"""The limit point (11) in symbols: which stationary point the flow ψ ends at.

Where the loss is a convex quadratic in the coordinates that may move, the limit point is the
sign-constrained least-squares solution, found exactly. Elsewhere SymPy solves for all
stationary points, and a numerical integration of ψ at the reference point says which of them
the flow reaches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import sympy as sp
from scipy.integrate import LSODA

from dynalyze._core.arrays import BoolArray, FloatArray, IntArray
from dynalyze.errors import NoLimitPointError, UnsolvedBranchError
from dynalyze.symbolic.decisions import Decisions, tidy
from dynalyze.symbolic.least_squares import sign_constrained_least_squares
from dynalyze.symbolic.problem import ExpectedLoss
from dynalyze.symbolic.solver import solve

_START = 1e-7  # ε of eq. (11)
_CLOSE = 1e-6  # a solution this near to the flow's end is the one that it reached
_GONE = 1e-9  # |θ_i| below this, and falling, has left the support
_LARGE = 1e9
_STEPS = 5000


@dataclass(frozen=True)
class LimitPoint:
    """The stationary point that the flow ψ reaches, with how it was told from the others."""

    theta: tuple[sp.Expr, ...]  # (p,)
    n_candidates: int  # stationary points on the same support
    method: str  # "least squares" or "solve"
    distance: float  # from the end of the numerical flow at the reference point; 0 if exact


def limit_point(
    problem: ExpectedLoss,
    theta: Sequence[sp.Expr],
    signs: Sequence[int],
    decisions: Decisions,
    *,
    max_seconds: float | None,
) -> LimitPoint:
    """Limit of the flow from θ plus an infinitesimal new coordinate, eq. (11).

    Parameters
    ----------
    problem : ExpectedLoss
        The loss.
    theta : sequence of sympy expressions, length p
        Stationary point before the new coordinate.
    signs : sequence of int, length p
        Signs of the support and of the new coordinate; 0 elsewhere.
    decisions : Decisions
        Reference point, and the conditions found on the way.
    max_seconds : float or None
        Seconds that SymPy may take to solve for the stationary points; None for no limit.

    Raises
    ------
    NoLimitPointError
        If the flow does not come to rest.
    UnsolvedBranchError
        If SymPy does not find the point where it rests.
    """
    allowed = [i for i, sign in enumerate(signs) if sign]
    off = {x: 0 for x, sign in zip(problem.products, signs, strict=True) if not sign}
    restricted = problem.loss.subs(off)
    quadratic = _quadratic(restricted, [problem.products[i] for i in allowed])
    if quadratic is not None and _positive_definite(quadratic[0], decisions):
        return _least_squares(problem, quadratic, allowed, signs, decisions)
    start = np.array([float(decisions.at_reference(value)) for value in theta])
    new = np.array(signs) * (start == 0)
    end = flow_end(problem, start + _START * new, decisions)
    return _solved(problem, restricted, end, decisions, max_seconds)


def _quadratic(loss: sp.Expr, unknowns: Sequence[sp.Symbol]) -> tuple[sp.Matrix, sp.Matrix] | None:
    """Return Σ and r of L = ½ θᵀΣθ − rᵀθ + const, if that is what the loss is."""
    try:
        polynomial = sp.Poly(loss, *unknowns)
    except sp.PolynomialError:
        return None
    if polynomial.total_degree() > 2:
        return None
    zero = dict.fromkeys(unknowns, 0)
    sigma = sp.hessian(polynomial.as_expr(), unknowns).applyfunc(tidy)
    r = sp.Matrix([tidy(-sp.diff(loss, x).subs(zero)) for x in unknowns])
    return sigma, r


def _positive_definite(sigma: sp.Matrix, decisions: Decisions) -> bool:
    reference = sigma.applyfunc(decisions.at_reference)
    minors = (reference[:k, :k].det() for k in range(1, sigma.rows + 1))
    return all(Decisions().sign(minor) > 0 for minor in minors)


def _least_squares(
    problem: ExpectedLoss,
    quadratic: tuple[sp.Matrix, sp.Matrix],
    allowed: Sequence[int],
    signs: Sequence[int],
    decisions: Decisions,
) -> LimitPoint:
    sigma, r = quadratic
    reference = sign_constrained_least_squares(
        [[_fraction(decisions.at_reference(entry)) for entry in row] for row in sigma.tolist()],
        [_fraction(decisions.at_reference(entry)) for entry in r],
        [signs[i] for i in allowed],
    )
    support = [k for k, value in enumerate(reference) if value]
    solution = sigma.extract(support, support).LUsolve(r.extract(support, [0]))
    theta: list[sp.Expr] = [sp.S.Zero] * len(signs)
    for k, value in zip(support, solution, strict=True):
        theta[allowed[k]] = tidy(value)
    # the Karush–Kuhn–Tucker conditions are exact, and are all that the choice rests on
    for k, i in enumerate(allowed):
        if k in support:
            checked = decisions.sign(theta[i]) == signs[i]
        else:
            slope = r[k] - sum(sigma[k, j] * theta[allowed[j]] for j in support)
            checked = decisions.sign(tidy(slope)) * signs[i] <= 0
        if not checked:
            raise ArithmeticError(f"optimality is violated at {problem.products[i]}")
    return LimitPoint(tuple(theta), 1, "least squares", 0.0)


def _fraction(value: sp.Expr) -> Fraction:
    number = value if value.is_Rational else sp.Rational(value.evalf(60))
    return Fraction(int(number.p), int(number.q))


def _solved(
    problem: ExpectedLoss,
    restricted: sp.Expr,
    end: FloatArray,
    decisions: Decisions,
    max_seconds: float | None,
) -> LimitPoint:
    support = [i for i in range(len(end)) if end[i]]
    unknowns = [problem.products[i] for i in support]
    off = {x: 0 for x, value in zip(problem.products, end, strict=True) if value == 0}
    equations = tuple(tidy(sp.diff(restricted, x).subs(off)) for x in unknowns)
    found = solve(equations, unknowns, max_seconds)
    if isinstance(found, str):
        raise UnsolvedBranchError(found, equations, end)
    distances = [_distance(solution, unknowns, end[support], decisions) for solution in found]
    best = int(np.argmin(distances))
    if distances[best] > _CLOSE:
        raise UnsolvedBranchError(
            f"none of the {len(found)} solutions that SymPy found is where the flow ends; the "
            f"nearest is {distances[best]:.1e} away",
            equations,
            end,
        )
    point: list[sp.Expr] = [sp.S.Zero] * len(end)
    for i, x in zip(support, unknowns, strict=True):
        point[i] = tidy(found[best][x])
        decisions.sign(point[i])
    return LimitPoint(tuple(point), len(found), "solve", distances[best])


def _distance(
    solution: dict[sp.Symbol, sp.Expr],
    unknowns: Sequence[sp.Symbol],
    end: FloatArray,
    decisions: Decisions,
) -> float:
    values = [complex(decisions.at_reference(solution[x]).evalf(30)) for x in unknowns]
    return float(np.max(np.abs(np.array(values) - end)) / (1 + np.max(np.abs(end))))


def flow_end(problem: ExpectedLoss, start: FloatArray, decisions: Decisions) -> FloatArray:
    """Where the balanced flow dθ_i/dt = 2|θ_i| g_i(θ) from `start` rests at the reference point.

    Integrated in log|θ|, then polished by Newton's method on the coordinates that stay.

    Parameters
    ----------
    problem : ExpectedLoss
        The loss.
    start : ndarray, shape (p,)
        Start, 0 for coordinates that do not take part.
    decisions : Decisions
        Its reference point gives the parameters their values.

    Returns
    -------
    ndarray, shape (p,)
        End of the flow, exactly 0 for coordinates that left.

    Raises
    ------
    NoLimitPointError
        If the flow diverges or does not come to rest.
    """
    moving: IntArray = np.flatnonzero(start).astype(np.int64)
    signs = np.sign(start[moving])
    field, hessian = _numeric(problem, moving, decisions)

    def theta_of(log_theta: FloatArray) -> FloatArray:
        return signs * np.exp(np.minimum(log_theta, 300.0))

    def velocity(_: float, log_theta: FloatArray) -> FloatArray:
        with np.errstate(all="ignore"):
            # clipped, so that a trial step of the integrator that overshoots is only rejected
            return np.nan_to_num(2 * signs * field(theta_of(log_theta)), posinf=1e6, neginf=-1e6)

    def jacobian(_: float, log_theta: FloatArray) -> FloatArray:
        theta = theta_of(log_theta)
        with np.errstate(all="ignore"):
            return np.nan_to_num(-2 * signs[:, None] * hessian(theta) * theta)

    flow = LSODA(
        velocity, 0.0, np.log(np.abs(start[moving])), np.inf, jac=jacobian, rtol=1e-10, atol=1e-10
    )
    for step in range(_STEPS):
        flow.step()
        theta = theta_of(flow.y)
        with np.errstate(all="ignore"):
            g = field(theta)
        if flow.status == "failed" or not np.all(np.isfinite(g)) or np.abs(theta).max() > _LARGE:
            raise NoLimitPointError(f"the flow diverges: it gets to {_at(problem, moving, theta)}")
        leaving = (np.abs(theta) < _GONE) & (signs * g < 0)
        if step % 10 == 0:
            polished = _newton(np.where(leaving, 0.0, theta), ~leaving, field, hessian)
            if polished is not None:
                end = np.zeros(len(start))
                end[moving] = polished
                return end
    raise NoLimitPointError(
        f"the flow does not come to rest: at flow time {flow.t:.1e} it is at "
        f"{_at(problem, moving, theta)}, and no strict minimum is near"
    )


def _at(problem: ExpectedLoss, moving: IntArray, theta: FloatArray) -> str:
    values = zip(moving, theta, strict=True)
    return ", ".join(f"{problem.products[i]} = {value:.6g}" for i, value in values)


def _numeric(
    problem: ExpectedLoss, moving: IntArray, decisions: Decisions
) -> tuple[Callable[[FloatArray], FloatArray], Callable[[FloatArray], FloatArray]]:
    """Field and Hessian on the coordinates `moving`, at the reference point."""
    unknowns = [problem.products[i] for i in moving]
    off = dict.fromkeys(set(problem.products) - set(unknowns), 0)
    loss = problem.loss.subs(off).subs(decisions.at)
    decisions.at_reference(loss.subs(dict.fromkeys(unknowns, 1)))  # every parameter has a value
    gradient = [sp.diff(loss, x) for x in unknowns]
    field = sp.lambdify(unknowns, [-entry for entry in gradient], "numpy", cse=True)
    rows = [[sp.diff(entry, x) for x in unknowns] for entry in gradient]
    hessian = sp.lambdify(unknowns, rows, "numpy", cse=True)
    return (lambda x: np.array(field(*x), dtype=float)), (
        lambda x: np.array(hessian(*x), dtype=float)
    )


def _newton(
    theta: FloatArray,
    staying: BoolArray,
    field: Callable[[FloatArray], FloatArray],
    hessian: Callable[[FloatArray], FloatArray],
) -> FloatArray | None:
    """Return the strict minimum within a small Newton step of `theta`, or None if there is none."""
    point = theta.copy()
    on = np.flatnonzero(staying)
    for _ in range(8):
        with np.errstate(all="ignore"):
            H = hessian(point)[np.ix_(on, on)]
        if not (np.all(np.isfinite(H)) and np.all(np.linalg.eigvalsh(H) > 0)):
            return None
        step = np.linalg.solve(H, field(point)[on])
        point[on] += step
        if np.any(np.abs(point - theta)[on] > 1e-3 * np.abs(theta[on])):
            return None
        if np.all(np.abs(step) < 1e-13 * np.abs(point[on])):
            break
    leaves = ~staying
    strict = bool(np.all(np.abs(field(point)[on]) < 1e-8 * (1 + np.abs(H).max())))
    inward = bool(np.all(np.sign(theta[leaves]) * field(point)[leaves] <= 0))
    return point if strict and inward else None
