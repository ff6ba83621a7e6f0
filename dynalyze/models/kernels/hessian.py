"""Exact Hessian columns of the attention head's loss, in vectors of samples.

With the symbols of `gradient`, D here without ω, G = X diag(q)² Xᵀ, e_ab = D_ab − Σ_c A_ac D_ac
and W = 2 q ⊙ M − y, the derivative along p_k is

    Ȧ_ab = A_ab x_ak (x_bk − M_ak),   Ṁ = Ȧ X,   Ḋ = Ȧ G
    Ė_ab = Ȧ_ab e_ab + A_ab (Ḋ_ab − Σ_c (Ȧ_ac e_ac + A_ac Ḋ_ac))
    ∂²L/∂p_j∂p_k = ω Σ_ab Ė_ab x_aj x_bj,   ∂²L/∂q_i∂p_k = ω Σ_a W_ai Ṁ_ai

and along q_k

    ∂²L/∂p_j∂q_k = ω Σ_ab A_ab (x_bk − M_ak) W_ak x_aj x_bj,   ∂²L/∂q_k² = ω Σ_a M_ak².

Everything but A, M, D and G, which are the same for all columns, is needed for the chosen
columns only. A column in p costs about three quarters of a gradient, one in q a fifth.
"""

from typing import Any

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.models.kernels.gradient import mirror, softmax_rows
from dynalyze.models.kernels.products import contraction, gram, lower_contraction, lower_gram
from dynalyze.models.kernels.vectors import kernel, matrix, splat, vectors


@kernel
def transpose(xT: Any, x: Any) -> None:
    """xT = Xᵀ."""
    for a in range(x.shape[0]):
        for i in range(x.shape[1]):
            xT[i, a] = x[a, i]


@kernel
def residual_terms(W: Any, r: Any, squares: Any, M: Any, y: Any, q: Any, omega: Any) -> None:
    """W = 2 q ⊙ M − y and r = q ⊙ (q ⊙ M − y); adds ω Σ_a M_ai² to squares[i]."""
    for a in range(M.shape[0]):
        for i in range(M.shape[1]):
            output = q[i] * M[a, i]
            residual = output - y[a, i]
            W[a, i] = output + residual
            r[a, i] = q[i] * residual
            squares[i] = omega * M[a, i] * M[a, i] + squares[i]


@kernel
def subtract_means(D: Any, A: Any) -> None:
    """Replace D_ab by e_ab."""
    for a in range(A.shape[0]):
        mean = splat(0.0)
        for b in range(A.shape[0]):
            mean = A[a, b] * D[a, b] + mean
        for b in range(A.shape[0]):
            D[a, b] = D[a, b] - mean


@kernel
def weights_along(out: Any, A: Any, factor: Any, x: Any, M: Any, k: int, omega: Any) -> None:
    """out_ab = ω A_ab factor_ak (x_bk − M_ak); with the factor x this is ω Ȧ along p_k."""
    for a in range(A.shape[0]):
        common = omega * factor[a, k]
        mean = M[a, k]
        for b in range(A.shape[0]):
            out[a, b] = common * A[a, b] * (x[b, k] - mean)


@kernel
def logit_gradient_along(D_dot: Any, A_dot: Any, A: Any, e: Any) -> None:
    """Replace Ḋ by Ė."""
    for a in range(A.shape[0]):
        mean = splat(0.0)
        for b in range(A.shape[0]):
            mean = A_dot[a, b] * e[a, b] + mean
            mean = A[a, b] * D_dot[a, b] + mean
        for b in range(A.shape[0]):
            D_dot[a, b] = A[a, b] * (D_dot[a, b] - mean) + A_dot[a, b] * e[a, b]


@kernel
def fold(E: Any) -> None:
    """Add the entries above the diagonal to those below it."""
    for a in range(E.shape[0]):
        for b in range(a):
            E[a, b] = E[a, b] + E[b, a]


@kernel
def hessian_columns(
    X: FloatArray,
    y: FloatArray,
    weight: FloatArray,
    theta: FloatArray,
    p_columns: IntArray,
    q_columns: IntArray,
    bounds: IntArray,
    out: FloatArray,
) -> None:
    """Hessian columns, summed over the samples of each of some chunks.

    Parameters
    ----------
    X, y, weight, theta, bounds
        As in `loss_and_gradient`.
    p_columns, q_columns : ndarray of int
        Columns wanted in p and in q, the latter counted from 0. Where they are all d columns in
        p, in order, entries above the diagonal of H_pp are left out.
    out : ndarray, shape (n_chunks, 2 n_p + n_q + 1, d, LANES)
        To it are added, for each chunk and lane, two rows for each of `p_columns`, the p part and
        the q part of that column; one for each of `q_columns`, its p part; and the diagonal of
        H_qq, which is all of it.
    """
    _, n, d, _ = X.shape
    n_p, n_q = len(p_columns), len(q_columns)
    tokens, targets, weights = vectors(X), vectors(y), vectors(weight)
    results, products = vectors(out), matrix(3, d)
    for i in range(d):
        products[0, i], products[1, i] = splat(theta[i]), splat(theta[d + i])
        products[2, i] = products[1, i] * products[1, i]
    p, q, q_squared = products[0], products[1], products[2]
    A, e, G, A_dot, D_dot = matrix(n, n), matrix(n, n), matrix(n, n), matrix(n, n), matrix(n, n)
    M, W, r, xT = matrix(n, d), matrix(n, d), matrix(n, d), matrix(d, n)
    for chunk in range(len(out)):
        sums = results[chunk]
        for j in range(bounds[chunk], bounds[chunk + 1]):
            x, omega = tokens[j], weights[j]
            lower_gram(A, x, p)
            mirror(A)
            softmax_rows(A)
            transpose(xT, x)
            gram(M, A, xT)
            residual_terms(W, r, sums[2 * n_p + n_q], M, targets[j], q, omega)
            gram(e, r, x)
            subtract_means(e, A)
            lower_gram(G, x, q_squared)
            mirror(G)
            for k in range(n_p):
                weights_along(A_dot, A, x, x, M, p_columns[k], omega)
                contraction(sums[2 * k + 1], W, A_dot, x)
                gram(D_dot, A_dot, G)
                logit_gradient_along(D_dot, A_dot, A, e)
                fold(D_dot)
                start = p_columns[k] if n_p == d else 0
                lower_contraction(sums[2 * k], x, D_dot, x, start)
            for k in range(n_q):
                weights_along(D_dot, A, W, x, M, q_columns[k], omega)
                fold(D_dot)
                lower_contraction(sums[2 * n_p + k], x, D_dot, x, 0)
