"""Worked models: problems whose stages come out in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sympy as sp

from dynalyze._core.status import Status
from dynalyze.errors import InvalidInputError
from dynalyze.symbolic.problem import ExpectedLoss, mean_loss
from dynalyze.symbolic.result import SymbolicStages


def diagonal_linear(
    sigma: Any, correlation: Sequence[Any], second_moment: Any | None = None
) -> ExpectedLoss:
    """Diagonal linear network f = ⟨x, u ⊙ v⟩ with squared loss ½E(y − f)².

    Parameters
    ----------
    sigma : matrix, shape (p, p)
        Moment matrix E[xxᵀ], symmetric; exact numbers or expressions.
    correlation : sequence, length p
        E[xy].
    second_moment : optional
        E[y²], which only shifts the loss; by default the symbol ``Eyy``.

    Raises
    ------
    InvalidInputError
        If `sigma` is not square and symmetric, or of another size than `correlation`.
    """
    matrix, r = sp.Matrix(sigma), sp.Matrix(list(correlation))
    if matrix.shape != (r.rows, r.rows) or matrix != matrix.T:
        raise InvalidInputError(
            f"sigma has shape {matrix.shape} with a correlation of length {r.rows}: give a "
            "symmetric matrix of as many rows"
        )
    y2 = sp.Symbol("Eyy", positive=True) if second_moment is None else sp.sympify(second_moment)
    theta = sp.Matrix(sp.symbols(f"theta:{r.rows}", real=True))
    loss = (y2 + (theta.T * matrix * theta)[0]) / 2 - (r.T * theta)[0]
    return ExpectedLoss(sp.expand(loss), tuple(theta))


def orthogonal_stages(
    scales: Sequence[Any],
    correlation: Sequence[Any],
    order: Sequence[int],
    second_moment: Any | None = None,
) -> SymbolicStages:
    """Stages of the diagonal linear network with E[xxᵀ] = diag(λ), for signs of any kind.

    Coordinates do not interact: T = 1/|r_i|, and θ_i jumps to r_i/λ_i.

    Parameters
    ----------
    scales : sequence of positive expressions, length p
        λ_i = E[x_i²].
    correlation : sequence, length p
        r_i = E[x_i y], real and not zero.
    order : sequence of int
        Coordinates by descending |r_i|; the result holds where that is their order.
    second_moment : optional
        E[y²]; by default the symbol ``Eyy``.

    Raises
    ------
    InvalidInputError
        If `order` is no permutation of the coordinates.
    """
    problem = diagonal_linear(sp.diag(*scales), correlation, second_moment)
    lam, r = [sp.sympify(e) for e in scales], [sp.sympify(e) for e in correlation]
    p = len(r)
    if sorted(order) != list(range(p)):
        raise InvalidInputError(f"order={list(order)}: give a permutation of 0 … {p - 1}")
    times = tuple(1 / sp.Abs(r[i]) for i in order)
    theta, b, losses = [(sp.S.Zero,) * p], [(sp.S.One,) * p], [problem.at(problem.loss, [0] * p)]
    for k, i in enumerate(order):
        done = order[: k + 1]
        theta.append(tuple(r[j] / lam[j] if j in done else sp.S.Zero for j in range(p)))
        b.append(tuple(1 - sp.sign(r[j]) if j in done else 1 - r[j] * times[k] for j in range(p)))
        losses.append(losses[-1] - r[i] ** 2 / (2 * lam[i]))
    ordered = [sp.Gt(sp.Abs(r[i]), sp.Abs(r[j])) for i, j in pairwise(order)]
    ordered.append(sp.Gt(sp.Abs(r[order[-1]]), 0))
    return SymbolicStages(
        problem.products,
        times,
        tuple(order),
        tuple(sp.sign(r[i]) for i in order),
        tuple(theta),
        tuple(b),
        tuple(losses),
        ((),) * p,
        Status.CONVERGED,
        "No coordinate outside the support grows any more.",
        tuple(condition for condition in ordered if condition != sp.true),
        ("the sign-constrained least-squares solution, exact",) * p,
    )


def attention_head(X: Sequence[Any], y: Sequence[Any]) -> ExpectedLoss:
    """Attention head of eq. (1) with diagonal weights and squared loss, on given samples.

    Parameters
    ----------
    X, y : nested sequences, shape (n_samples, n_tokens, d)
        Inputs and targets, exact numbers or expressions in parameters.

    Returns
    -------
    ExpectedLoss
        Products ``kq0 … vo0 …``: w_K ⊙ w_Q first, then w_V ⊙ w_O, as in
        `dynalyze.models.AttentionHead`.

    Raises
    ------
    InvalidInputError
        If the samples are not of one shape, or `y` does not match them.
    """
    samples = [sp.Matrix(x) for x in X]
    shapes = sorted({sample.shape for sample in samples})
    if len(shapes) != 1:
        raise InvalidInputError(
            f"X has samples of shapes {', '.join(map(str, shapes)) or 'none'}: give at least one, "
            "and all of one shape (n_tokens, d)"
        )
    n_tokens, d = samples[0].shape
    h, inputs, products = attention_head_formula(n_tokens, d)
    flat = [list(sample) for sample in samples]
    return mean_loss(h, inputs, products, flat, [list(sp.Matrix(target)) for target in y])


def attention_head_formula(
    n_tokens: int, d: int
) -> tuple[list[sp.Expr], tuple[sp.Symbol, ...], tuple[sp.Symbol, ...]]:
    """Formula of the diagonal attention head, eq. (1), token by token.

    Parameters
    ----------
    n_tokens, d : int
        Number of tokens and their dimension.

    Returns
    -------
    outputs : list of sympy expressions, length n_tokens d
        smax(X W_K W_Qᵀ Xᵀ) X W_V W_Oᵀ, row by row; the softmax is written as
        1/(1 + Σ exp(a_j − a_i)), which does not overflow.
    inputs, products : tuples of Symbol
        ``x{token}_{entry}`` and ``kq0 … vo0 …``, for `dynalyze.models.SymbolicModel`.
    """
    x = sp.Matrix(n_tokens, d, lambda i, j: sp.Symbol(f"x{i}_{j}", real=True))
    kq, vo = sp.symbols(f"kq:{d}", real=True), sp.symbols(f"vo:{d}", real=True)
    logits = x * sp.diag(*kq) * x.T
    outputs = []
    for i in range(n_tokens):
        weights = [
            1 / sp.Add(*(sp.exp(sp.expand(logits[i, m] - logits[i, j])) for m in range(n_tokens)))
            for j in range(n_tokens)
        ]
        mixed = [sum(weights[j] * x[j, k] for j in range(n_tokens)) for k in range(d)]
        outputs += [vo[k] * mixed[k] for k in range(d)]
    return outputs, tuple(x), (*kq, *vo)


@dataclass(frozen=True)
class ScalarProduct:
    """One product θ = uv with L = (λ/2)(θ − a)², solved for all times and any α.

    With w = (u + v)/√|c| = e^z, c = u(0)² − v(0)², the flow (4) is the Riccati equation

        d(w²)/dt = −(λ|c|/2) (w² − w₊)(w² − w₋),   w± = (2a ± √(4a² + c²))/|c|.

    Parameters
    ----------
    target : sympy expression
        a, real and not zero.
    c : sympy expression
        |u(0)² − v(0)²|, positive: of order α².
    start : sympy expression
        θ(0) = u(0) v(0), of order α².
    curvature : sympy expression
        λ, positive.

    Notes
    -----
    SymPy factors numbers under a root, which fails for hundreds of digits. For an α so small keep
    symbols for `c` and `start`, and give their values to ``evalf(subs=..., maxn=...)``.
    """

    target: sp.Expr
    c: sp.Expr
    start: sp.Expr
    curvature: sp.Expr = sp.S.One

    @property
    def problem(self) -> ExpectedLoss:
        """The loss, for `stages`."""
        theta = sp.Symbol("theta", real=True)
        return ExpectedLoss(self.curvature * (theta - self.target) ** 2 / 2, (theta,))

    @property
    def rate(self) -> sp.Expr:
        """λ√(4a² + c²), the rate at which the last part of the way decays."""
        return self.curvature * sp.sqrt(4 * self.target**2 + self.c**2)

    def theta(self, t: sp.Expr) -> sp.Expr:
        """θ at flow time t."""
        upper, lower = self._roots()
        ratio = self._ratio(self.start) * sp.exp(-self.rate * t)
        squared = (upper - lower * ratio) / (1 - ratio)
        return self.c * (squared - 1 / squared) / 4

    def crossing_time(self, theta: sp.Expr) -> sp.Expr:
        """Flow time at which the product is θ, between its start and its target."""
        return sp.log(self._ratio(self.start) / self._ratio(theta)) / self.rate

    def _roots(self) -> tuple[sp.Expr, sp.Expr]:
        root = sp.sqrt(4 * self.target**2 + self.c**2)
        return (2 * self.target + root) / self.c, (2 * self.target - root) / self.c

    def _ratio(self, theta: sp.Expr) -> sp.Expr:
        """(w² − w₊)/(w² − w₋) at θ, which decays exponentially."""
        upper, lower = self._roots()
        squared = (2 * theta + sp.sqrt(4 * theta**2 + self.c**2)) / self.c
        return (squared - upper) / (squared - lower)
