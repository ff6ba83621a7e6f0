"""SymPy's solver in a process of its own, so that a time limit can be kept."""

import pickle
import subprocess
import sys
from collections.abc import Sequence

import sympy as sp

_CHILD = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from dynalyze.symbolic.solver import solve_here
equations, unknowns = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps(solve_here(equations, unknowns)))
"""


def solve(
    equations: Sequence[sp.Expr], unknowns: Sequence[sp.Symbol], max_seconds: float | None
) -> list[dict[sp.Symbol, sp.Expr]] | str:
    """Every solution that SymPy finds of equations = 0 within `max_seconds`, if not None.

    Returns
    -------
    list of dict, or str
        At least one solution, or why there is none: the time is up, or SymPy cannot solve them.
    """
    payload = pickle.dumps(sys.path) + pickle.dumps((list(equations), list(unknowns)))
    try:
        child = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=payload,
            capture_output=True,
            timeout=max_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"SymPy's solve did not end within max_seconds={max_seconds:g} s"
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        return f"SymPy's solve failed: {lines[-1] if lines else 'no message'}"
    solutions: list[dict[sp.Symbol, sp.Expr]] = pickle.loads(child.stdout)
    return solutions or "SymPy's solve found no solution"


def solve_here(
    equations: Sequence[sp.Expr], unknowns: Sequence[sp.Symbol]
) -> list[dict[sp.Symbol, sp.Expr]]:
    """Isolated solutions without zeros, in this process and with no time limit.

    An unknown that occurs in exponentials alone, exp(q x) with rational q, is exchanged for exp(x).
    Polynomial equations with rational coefficients are then solved by elimination, exactly, with
    roots of any degree; the rest is left to `sympy.solve`.
    """
    reduced, targets = _polynomial_form(equations, unknowns)
    try:
        found = _eliminate(reduced, targets)
    except (sp.PolynomialError, NotImplementedError):
        found = sp.solve(reduced, targets, dict=True)
    solutions = []
    for solution in found:
        if set(solution) != set(targets):
            continue  # a curve of solutions: not a strict minimum
        solutions.append(
            {
                x: solution[target] if x == target else sp.log(solution[target])
                for x, target in zip(unknowns, targets, strict=True)
            }
        )
    return solutions


def _polynomial_form(
    equations: Sequence[sp.Expr], unknowns: Sequence[sp.Symbol]
) -> tuple[list[sp.Expr], list[sp.Symbol]]:
    """Numerators of the equations, and the unknowns or their exponentials in them."""
    exponentials = {x: sp.Dummy(f"exp({x})", positive=True) for x in unknowns}
    free = dict(exponentials)
    for x in unknowns:
        elsewhere = {x: sp.Dummy(f"exp({x})", positive=True)}
        if any(_without_exponentials(e, elsewhere).has(x) for e in equations):
            del free[x]
    targets = [free.get(x, x) for x in unknowns]
    reduced = []
    for equation in equations:
        numerator = sp.numer(sp.together(_without_exponentials(equation, free)))
        # on the support no product vanishes, and no exponential ever does
        factors = [f for f in sp.Mul.make_args(sp.factor(numerator)) if f not in targets]
        reduced.append(sp.Mul(*factors))
    return reduced, targets


def _without_exponentials(equation: sp.Expr, exponentials: dict[sp.Symbol, sp.Symbol]) -> sp.Expr:
    def power(argument: sp.Expr) -> sp.Expr:
        result = sp.S.One
        for term in sp.Add.make_args(sp.expand(argument)):
            coefficient, factor = term.as_coeff_Mul()
            if factor in exponentials and coefficient.is_Rational:
                result *= exponentials[factor] ** coefficient
            else:
                result *= sp.exp(term)
        return result

    return equation.replace(sp.exp, power)


def _eliminate(
    equations: Sequence[sp.Expr], unknowns: Sequence[sp.Symbol]
) -> list[dict[sp.Symbol, sp.Expr]]:
    """Real solutions of polynomial equations with rational coefficients, by elimination.

    A lexicographic Gröbner basis of a finite set of solutions in general position consists of one
    polynomial in the last unknown, and of one for each other unknown that is linear in it.

    Raises
    ------
    PolynomialError, NotImplementedError
        If the equations are not of this kind.
    """
    if any(e.free_symbols - set(unknowns) for e in equations):
        raise NotImplementedError("there are parameters")
    inverse = sp.Dummy("inverse")
    saturated = [*equations, 1 - inverse * sp.Mul(*unknowns)]  # no unknown vanishes
    for last in reversed(unknowns):
        others = [x for x in unknowns if x != last]
        order = [inverse, *others, last]
        basis = sp.groebner(saturated, *order, order="lex", domain="QQ")
        linear = [polynomial for polynomial in basis.polys if _is_linear(polynomial, last)]
        if len(linear) != len(order) - 1 or len(basis.polys) != len(order):
            continue
        eliminant = sp.Poly(basis.polys[-1].as_expr(), last, domain="QQ")
        solutions = []
        for root in set(eliminant.real_roots()):
            solution = {last: root}
            for x, polynomial in zip(others, linear[1:], strict=True):
                slope = polynomial.coeff_monomial(x)
                solution[x] = x - polynomial.as_expr() / slope
            solutions.append(
                {x: sp.expand(value).subs(last, root) for x, value in solution.items()}
            )
        return solutions
    raise NotImplementedError("the solutions are not in general position")


def _is_linear(polynomial: sp.Poly, last: sp.Symbol) -> bool:
    """Whether the leading term is another unknown than `last`, to the first power."""
    leading = polynomial.LM(order="lex").exponents
    return sum(leading) == 1 and polynomial.gens[leading.index(1)] != last
