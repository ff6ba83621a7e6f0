"""Sign-constrained least squares in exact arithmetic: the limit point of a linear network.

For L = ½ θᵀΣθ − rᵀθ the flow ψ of eq. (11) ends at the minimum of L over θ_i of the given signs
(Pesme & Flammarion 2023, arXiv 2304.00488). The active-set method of Lawson and Hanson finds it;
in rational arithmetic it ends after finitely many steps, with the exact active set.
"""

from collections.abc import Sequence
from fractions import Fraction

from dynalyze.errors import InvalidInputError

Matrix = Sequence[Sequence[Fraction]]


def sign_constrained_least_squares(
    sigma: Matrix, r: Sequence[Fraction], signs: Sequence[int]
) -> list[Fraction]:
    """Minimize ½ θᵀΣθ − rᵀθ over θ with signs_i θ_i ≥ 0, and θ_i = 0 where signs_i = 0.

    Parameters
    ----------
    sigma : sequence of rows of Fraction, shape (p, p)
        Symmetric and positive semidefinite, positive definite on the coordinates that may move.
    r : sequence of Fraction, length p
        Correlations.
    signs : sequence of int, length p
        Sign of each coordinate, ±1, or 0 for those held at 0.

    Returns
    -------
    list of Fraction, length p
        The minimum; the Karush–Kuhn–Tucker conditions hold exactly.

    Raises
    ------
    InvalidInputError
        If Σ is singular where it must be inverted: there are duplicated features.
    """
    p = len(r)
    allowed = [i for i in range(p) if signs[i]]
    theta = [Fraction(0)] * p
    passive: list[int] = []
    while True:
        slope = [
            signs[i] * (r[i] - sum((sigma[i][j] * theta[j] for j in passive), Fraction(0)))
            for i in range(p)
        ]
        entering = [i for i in allowed if i not in passive and slope[i] > 0]
        if not entering:
            return theta
        passive.append(max(entering, key=lambda i: slope[i]))
        while True:
            target = _solve(sigma, r, passive)
            blocking = [i for i in passive if signs[i] * target[i] <= 0]
            if not blocking:
                theta = target
                break
            step = min(abs(theta[i]) / abs(theta[i] - target[i]) for i in blocking)
            theta = [x + step * (y - x) for x, y in zip(theta, target, strict=True)]
            passive = [i for i in passive if theta[i] != 0]
            theta = [x if i in passive else Fraction(0) for i, x in enumerate(theta)]


def _solve(sigma: Matrix, r: Sequence[Fraction], passive: Sequence[int]) -> list[Fraction]:
    """Solve Σ θ = r on `passive`, with 0 elsewhere, by Gaussian elimination."""
    rows = [[*(sigma[i][j] for j in passive), r[i]] for i in passive]
    n = len(rows)
    for k in range(n):
        pivot = next((row for row in range(k, n) if rows[row][k] != 0), None)
        if pivot is None:
            raise InvalidInputError(
                f"the moment matrix is singular on coordinates {sorted(passive)}: features that "
                "are learned together are linearly dependent; remove one"
            )
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for row in range(n):
            factor = rows[row][k] / rows[k][k]
            if row != k and factor:
                rows[row] = [x - factor * y for x, y in zip(rows[row], rows[k], strict=True)]
    theta = [Fraction(0)] * len(r)
    for k, i in enumerate(passive):
        theta[i] = rows[k][n] / rows[k][k]
    return theta
