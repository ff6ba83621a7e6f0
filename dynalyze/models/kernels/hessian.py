"""Exact Hessian columns of the attention head's loss, in vectors of samples.

With the symbols of `gradient`, D here without ω, G = X diag(q)² Xᵀ, e_ab = D_ab − Σ_c A_ac D_ac
and W = 2 q ⊙ M − y, the derivative along p_k is

    Ȧ_ab = A_ab x_ak (x_bk − M_ak),   Ṁ = Ȧ X,   Ḋ = Ȧ G
    Ė_ab = Ȧ_ab e_ab + A_ab (Ḋ_ab − Σ_c (Ȧ_ac e_ac + A_ac Ḋ_ac))
    ∂²L/∂p_j∂p_k = ω Σ_ab Ė_ab x_aj x_bj,   ∂²L/∂q_i∂p_k = ω Σ_a W_ai Ṁ_ai

and along q_k

    ∂²L/∂p_j∂q_k = ω Σ_ab A_ab (x_bk − M_ak) W_ak x_aj x_bj,   ∂²L/∂q_k² = ω Σ_a M_ak².

Everything but A, M, D and G, which are the same for all columns, is needed for the chosen
columns only. A column in p costs about three quarters of a gradient, one in q a fifth. Where
there are at least as many tokens as features, Ḋ = (Ṁ diag(q)²) Xᵀ takes the place of Ȧ G, and all
columns in p together cost less by sums over pairs of features: with the covariances under the
weights of token a

    C_jk = Σ_b A_ab x_bj x_bk − M_aj M_ak,   and   Ṁ_ai = x_ak C_ki,   E_ab = ω A_ab e_ab,
    ∂²L/∂p_j∂p_k = Σ_a x_aj x_ak (ω Σ_i C_ji q_i² C_ki
                                  + Σ_b E_ab (x_bj x_bk − M_aj x_bk − M_ak x_bj)).

As the rows of E sum to 0, x_b and M_a may be taken from any point c: here from the mean of the
tokens, without which little would be left of digits where features are far from 0. The terms
without M are Σ_ab E_ab z_a z_b, with half as many terms when E is folded, where z_a is
(x_aj − c_j)(x_ak − c_k), and Σ_a z_a (c_j U_ak + c_k U_aj), where U = Eᵀ (X − c / 2).
"""

from typing import Any

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.models.kernels.gradient import softmax_rows
from dynalyze.models.kernels.products import contraction, gram, scaled_gram
from dynalyze.models.kernels.vectors import kernel, matrix, part, splat, vectors


@part
def transpose(xT: Any, x: Any, shift: Any) -> None:
    """xT_ia = x_ai − shift_i."""
    for a in range(x.shape[0]):
        for i in range(x.shape[1]):
            xT[i, a] = x[a, i] - shift[i]


@part
def token_mean(c: Any, half: Any, x: Any) -> None:
    """c_i = mean over the tokens of x_ai, and its half."""
    share = splat(1.0 / x.shape[0])
    for i in range(x.shape[1]):
        c[i] = splat(0.0)
    for a in range(x.shape[0]):
        for i in range(x.shape[1]):
            c[i] = share * x[a, i] + c[i]
    for i in range(x.shape[1]):
        half[i] = splat(0.5) * c[i]


@part
def residual_terms(W: Any, r: Any, squares: Any, M: Any, y: Any, q: Any, omega: Any) -> None:
    """W = 2 q ⊙ M − y and r = q ⊙ (q ⊙ M − y); adds ω Σ_a M_ai² to squares[i]."""
    for a in range(M.shape[0]):
        for i in range(M.shape[1]):
            output = q[i] * M[a, i]
            residual = output - y[a, i]
            W[a, i] = output + residual
            r[a, i] = q[i] * residual
            squares[i] = omega * M[a, i] * M[a, i] + squares[i]


@part
def subtract_means(D: Any, A: Any) -> None:
    """Replace D_ab by e_ab."""
    for a in range(A.shape[0]):
        mean = splat(0.0)
        for b in range(A.shape[0]):
            mean = A[a, b] * D[a, b] + mean
        for b in range(A.shape[0]):
            D[a, b] = D[a, b] - mean


@part
def weights_along(out: Any, A: Any, factor: Any, x: Any, M: Any, k: int, omega: Any) -> None:
    """out_ab = ω A_ab factor_ak (x_bk − M_ak); with the factor x this is ω Ȧ along p_k."""
    for a in range(A.shape[0]):
        common = omega * factor[a, k]
        mean = M[a, k]
        for b in range(A.shape[0]):
            out[a, b] = common * A[a, b] * (x[b, k] - mean)


@part
def logit_gradient_along(D_dot: Any, A_dot: Any, A: Any, e: Any) -> None:
    """Replace Ḋ by Ė."""
    for a in range(A.shape[0]):
        mean = splat(0.0)
        for b in range(A.shape[0]):
            mean = A_dot[a, b] * e[a, b] + mean
            mean = A[a, b] * D_dot[a, b] + mean
        for b in range(A.shape[0]):
            D_dot[a, b] = A[a, b] * (D_dot[a, b] - mean) + A_dot[a, b] * e[a, b]


@part
def fold(E: Any) -> None:
    """Replace each entry off the diagonal by its sum with the one across it."""
    for a in range(E.shape[0]):
        for b in range(a):
            folded = E[a, b] + E[b, a]
            E[a, b] = folded
            E[b, a] = folded


@part
def unfold(U: Any, E: Any, EX: Any, x: Any, half: Any) -> None:
    """Replace U, the product of the folded E and X − c / 2, by that of Eᵀ."""
    # That of E itself is EX, as the rows of E sum to 0.
    for a in range(x.shape[0]):
        for i in range(x.shape[1]):
            U[a, i] = E[a, a] * (x[a, i] - half[i]) + U[a, i] - EX[a, i]


@part
def outputs_along(sums: Any, M_dot: Any, W: Any, q_squared: Any) -> None:
    """Add Σ_a W_ai Ṁ_ai to sums[i], and multiply the columns of Ṁ by q_i²."""
    for a in range(W.shape[0]):
        for i in range(W.shape[1]):
            sums[i] = W[a, i] * M_dot[a, i] + sums[i]
            M_dot[a, i] = q_squared[i] * M_dot[a, i]


@part
def logit_gradient(E: Any, A: Any, e: Any, omega: Any) -> None:
    """E_ab = ω A_ab e_ab."""
    for a in range(A.shape[0]):
        for b in range(A.shape[0]):
            E[a, b] = omega * A[a, b] * e[a, b]


@part
def pairs(z: Any, x: Any, c: Any, k: int) -> None:
    """z_ai = (x_ak − c_k) (x_ai − c_i) for i ≥ k."""
    for a in range(x.shape[0]):
        for i in range(k, x.shape[1]):
            z[a, i] = (x[a, k] - c[k]) * (x[a, i] - c[i])


@part
def append_mean(xT: Any, row: Any, A: Any, M: Any, a: int) -> None:
    """Make row the weights of token a, with its mean as one more token, of weight −1."""
    n = A.shape[0]
    for b in range(n):
        row[b] = A[a, b]
    row[n] = splat(-1.0)
    for i in range(xT.shape[0]):
        xT[i, n] = M[a, i]


@part
def add_token(
    sums: Any,
    C: Any,
    CqqC: Any,
    x: Any,
    c: Any,
    M: Any,
    EX: Any,
    U: Any,
    W: Any,
    omega: Any,
    a: int,
) -> None:
    """Add what token a brings to all columns in p, but for Σ_b E_ab z_a z_b; M is taken from c."""
    for k in range(x.shape[1]):
        common = omega * x[a, k]
        for i in range(x.shape[1]):
            sums[2 * k + 1, i] = common * W[a, i] * C[k, i] + sums[2 * k + 1, i]
        x_k, c_k, M_k, EX_k, U_k = x[a, k], c[k], M[a, k], EX[a, k], U[a, k]
        for i in range(k, x.shape[1]):
            bracket = omega * CqqC[k, i] - M_k * EX[a, i] - EX_k * M[a, i]
            rest = (x_k - c_k) * (x[a, i] - c[i]) * (c_k * U[a, i] + U_k * c[i])
            sums[2 * k, i] = x_k * x[a, i] * bracket + rest + sums[2 * k, i]


@part
def add_all_columns(
    sums: Any, x: Any, xT: Any, A: Any, e: Any, W: Any, q_squared: Any, omega: Any
) -> None:
    """Add to all columns in p what the samples x bring, by sums over pairs of features."""
    n, d = x.shape
    E, C, CqqC = matrix(n, n), matrix(d, d), matrix(d, d)
    M, EX, U, z = matrix(n, d), matrix(n, d), matrix(n, d), matrix(n, d)
    rows = matrix(3, max(d, n + 1))
    row, c, half = rows[0, : n + 1], rows[1, :d], rows[2, :d]
    token_mean(c, half, x)
    logit_gradient(E, A, e, omega)
    transpose(xT, x, c)
    gram(M, A, xT)
    gram(EX, E, xT)
    fold(E)
    transpose(xT, x, half)
    gram(U, E, xT)
    unfold(U, E, EX, x, half)
    transpose(xT, x, c)
    for a in range(n):
        append_mean(xT, row, A, M, a)
        scaled_gram(C, xT, row)
        scaled_gram(CqqC, C, q_squared)
        add_token(sums, C, CqqC, x, c, M, EX, U, W, omega, a)
    for k in range(d):
        pairs(z, x, c, k)
        contraction(sums[2 * k], z, E, z, True, k)


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
    long = n >= d
    all_at_once = long and n_p == d
    tokens, targets, weights = vectors(X), vectors(y), vectors(weight)
    results, products = vectors(out), matrix(4, d)
    for i in range(d):
        products[0, i], products[1, i] = splat(theta[i]), splat(theta[d + i])
        products[2, i], products[3, i] = products[1, i] * products[1, i], splat(0.0)
    p, q, q_squared, origin = products[0], products[1], products[2], products[3]
    A, e, G, A_dot, D_dot = matrix(n, n), matrix(n, n), matrix(n, n), matrix(n, n), matrix(n, n)
    M, W, r, xT, M_dot = matrix(n, d), matrix(n, d), matrix(n, d), matrix(d, n + 1), matrix(n, d)
    for chunk in range(len(out)):
        sums = results[chunk]
        for j in range(bounds[chunk], bounds[chunk + 1]):
            x, omega = tokens[j], weights[j]
            scaled_gram(A, x, p)
            softmax_rows(A)
            transpose(xT, x, origin)
            gram(M, A, xT)
            residual_terms(W, r, sums[2 * n_p + n_q], M, targets[j], q, omega)
            gram(e, r, x)
            subtract_means(e, A)
            if all_at_once:
                add_all_columns(sums, x, xT, A, e, W, q_squared, omega)
            elif not long:
                scaled_gram(G, x, q_squared)
            for k in range(0 if all_at_once else n_p):
                weights_along(A_dot, A, x, x, M, p_columns[k], omega)
                if long:
                    gram(M_dot, A_dot, xT)
                    outputs_along(sums[2 * k + 1], M_dot, W, q_squared)
                    gram(D_dot, M_dot, x)
                else:
                    contraction(sums[2 * k + 1], W, A_dot, x, False, 0)
                    gram(D_dot, A_dot, G)
                logit_gradient_along(D_dot, A_dot, A, e)
                fold(D_dot)
                start = p_columns[k] if n_p == d else 0
                contraction(sums[2 * k], x, D_dot, x, True, start)
            for k in range(n_q):
                weights_along(D_dot, A, W, x, M, q_columns[k], omega)
                fold(D_dot)
                contraction(sums[2 * n_p + k], x, D_dot, x, True, 0)
