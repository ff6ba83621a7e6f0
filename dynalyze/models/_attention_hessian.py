"""Exact Hessian columns of the attention head's loss, in vectors of samples.

With the symbols of `_attention_gradient`, G = X diag(q)² Xᵀ, e_ab = D_ab − Σ_c A_ac D_ac and
W = 2 q ⊙ M − y, the derivative along p_k is

    Ȧ_ab = A_ab x_ak (x_bk − M_ak),   Ṁ = Ȧ X,   Ḋ = Ȧ G
    Ė_ab = Ȧ_ab e_ab + A_ab (Ḋ_ab − Σ_c (Ȧ_ac e_ac + A_ac Ḋ_ac))
    ∂²L/∂p_j∂p_k = ω Σ_ab Ė_ab x_aj x_bj,   ∂²L/∂q_i∂p_k = ω Σ_a W_ai Ṁ_ai

and along q_k

    ∂²L/∂p_j∂q_k = ω Σ_ab A_ab (x_bk − M_ak) W_ak x_aj x_bj,   ∂²L/∂q_k² = ω Σ_a M_ak².

Everything but A, M, D and G, which are the same for all columns, is needed for the chosen
columns only. A column in p costs about three quarters of a gradient, one in q a fifth.
"""

from typing import Any

from dynalyze._typing import FloatArray, IntArray
from dynalyze.models._attention_gradient import (
    add_pairs,
    fold,
    n_tiles,
    softmax_rows,
    symmetric_products,
    tile_bounds,
    token_products,
)
from dynalyze.models._vector_math import (
    LANES,
    VECTOR_BYTES,
    address,
    aligned_zeros,
    fma,
    kernel,
    lane_sum,
    load,
    load_splat,
    splat,
    store,
)
from dynalyze.models._vector_tiles import contraction_tile, gram_tile


def hessian_workspace(n_tokens: int, width: int, n_p: int, n_q: int) -> FloatArray:
    """Memory for `hessian_columns`, with `n_p` and `n_q` columns, n_q ≤ `width`."""
    # A, e, G, Ȧ and Ḋ; M, W and q ⊙ r; the columns' sums and the diagonal of H_qq
    size = 5 * n_tokens**2 + 3 * n_tokens * width + (2 * n_p + n_q + 1) * width
    return aligned_zeros(size * LANES)


@kernel
def means(M: int, A: int, x: int, n_tokens: int, width: int, tile: int) -> None:
    """M = A X for one block of samples; all arguments but the sizes are addresses."""
    token = width * VECTOR_BYTES
    row = n_tokens * VECTOR_BYTES
    for i in range(0, width, tile):
        here = i * VECTOR_BYTES
        for part in range(n_tiles(n_tokens)):
            a, n_rows = tile_bounds(n_tokens, part)
            out = (M + a * token + here, token, VECTOR_BYTES)
            left = (A + a * row, row, VECTOR_BYTES)
            right = (x + here, VECTOR_BYTES, token)
            gram_tile(out, left, right, n_tokens, n_rows, tile)


@kernel
def residual_terms(W: int, r: int, M: int, y: int, q: int, n_tokens: int, width: int) -> None:
    """W = 2 q ⊙ M − y and r = q ⊙ (q ⊙ M − y) for one block of samples."""
    for a in range(n_tokens):
        for i in range(width):
            here = (a * width + i) * VECTOR_BYTES
            factor = load_splat(q + 8 * i)
            output = factor * load(M + here)
            residual = output - load(y + here)
            store(W + here, output + residual)
            store(r + here, factor * residual)


@kernel
def center(D: int, A: int, n_tokens: int) -> None:
    """Replace D_ab by e_ab."""
    row = n_tokens * VECTOR_BYTES
    for a in range(n_tokens):
        mean = splat(0.0)
        for b in range(n_tokens):
            here = a * row + b * VECTOR_BYTES
            mean = fma(load(A + here), load(D + here), mean)
        for b in range(n_tokens):
            here = D + a * row + b * VECTOR_BYTES
            store(here, load(here) - mean)


@kernel
def weights_along(
    out: int, A: int, factor: int, x: int, M: int, k: int, omega: Any, n_tokens: int, width: int
) -> None:
    """out_ab = ω A_ab factor_ak (x_bk − M_ak); with the factor x this is ω Ȧ along p_k."""
    row = n_tokens * VECTOR_BYTES
    token = width * VECTOR_BYTES
    here = k * VECTOR_BYTES
    for a in range(n_tokens):
        common = omega * load(factor + a * token + here)
        mean = load(M + a * token + here)
        for b in range(n_tokens):
            at = a * row + b * VECTOR_BYTES
            difference = load(x + b * token + here) - mean
            store(out + at, common * load(A + at) * difference)


@kernel
def logit_gradient_along(D_dot: int, A_dot: int, A: int, e: int, n_tokens: int) -> None:
    """Replace Ḋ by Ė."""
    row = n_tokens * VECTOR_BYTES
    for a in range(n_tokens):
        mean = splat(0.0)
        for b in range(n_tokens):
            at = a * row + b * VECTOR_BYTES
            mean = fma(load(A_dot + at), load(e + at), mean)
            mean = fma(load(A + at), load(D_dot + at), mean)
        for b in range(n_tokens):
            at = a * row + b * VECTOR_BYTES
            own = load(A_dot + at) * load(e + at)
            store(D_dot + at, fma(load(A + at), load(D_dot + at) - mean, own))


@kernel
def add_mean_terms(
    out: int, W: int, A_dot: int, x: int, n_tokens: int, width: int, tile: int
) -> None:
    """Add Σ_a W_ai Ṁ_ai to out[i]."""
    token = width * VECTOR_BYTES
    weights = (A_dot, n_tokens * VECTOR_BYTES, VECTOR_BYTES)
    for i in range(0, width, tile):
        here = i * VECTOR_BYTES
        factors = (W + here, token, VECTOR_BYTES)
        tokens = (x + here, token, VECTOR_BYTES)
        for part in range(n_tiles(n_tokens)):
            a, n_rows = tile_bounds(n_tokens, part)
            contraction_tile(out + here, factors, weights, tokens, a, n_tokens, n_rows, tile)


@kernel
def add_squares(out: int, M: int, omega: Any, n_tokens: int, width: int) -> None:
    """Add ω Σ_a M_ai² to out[i]."""
    for i in range(width):
        total = splat(0.0)
        for a in range(n_tokens):
            mean = load(M + (a * width + i) * VECTOR_BYTES)
            total = fma(mean, mean, total)
        here = out + i * VECTOR_BYTES
        store(here, fma(omega, total, load(here)))


@kernel
def hessian_columns(
    X: FloatArray,
    y: FloatArray,
    weight: FloatArray,
    theta: FloatArray,
    tile: int,
    p_columns: IntArray,
    q_columns: IntArray,
    lower: bool,
    bounds: IntArray,
    first: int,
    last: int,
    workspace: FloatArray,
    out: FloatArray,
) -> None:
    """Hessian columns, summed over the samples of each of some chunks.

    Parameters
    ----------
    X, y, weight, tile, bounds, first, last
        As in `loss_and_gradient`.
    theta : ndarray, shape (3, width)
        p, q and q², padded with zeros.
    p_columns, q_columns : ndarray of int
        Columns wanted in p and in q, the latter counted from 0.
    lower : bool
        Whether entries above the diagonal of H_pp may be left out.
    workspace : ndarray
        From `hessian_workspace`.
    out : ndarray, shape (n_chunks, 2 n_p + n_q + 1, width)
        Overwritten, in each chunk, by two rows for each of `p_columns`, the p part and the q
        part of that column; by one for each of `q_columns`, its p part; and by the diagonal
        of H_qq, which is all of it.
    """
    _, n_tokens, width, _ = X.shape
    token = width * VECTOR_BYTES
    square = n_tokens**2 * VECTOR_BYTES
    block = n_tokens * token
    p = address(theta)
    q = p + 8 * width
    q_squared = q + 8 * width
    A = address(workspace)
    e = A + square
    G = e + square
    A_dot = G + square
    D_dot = A_dot + square
    M = D_dot + square
    W = M + block
    r = W + block
    sums = r + block
    n_rows = out.shape[1]
    q_sums = sums + 2 * len(p_columns) * token
    squares = q_sums + len(q_columns) * token
    for chunk in range(first, last):
        for i in range(n_rows * width):
            store(sums + i * VECTOR_BYTES, splat(0.0))
        for j in range(bounds[chunk], bounds[chunk + 1]):
            x = address(X) + j * block
            omega = load(address(weight) + j * VECTOR_BYTES)
            symmetric_products(A, x, p, n_tokens, width)
            softmax_rows(A, n_tokens)
            means(M, A, x, n_tokens, width, tile)
            residual_terms(W, r, M, address(y) + j * block, q, n_tokens, width)
            token_products(e, r, x, n_tokens, width)
            center(e, A, n_tokens)
            symmetric_products(G, x, q_squared, n_tokens, width)
            add_squares(squares, M, omega, n_tokens, width)
            for k in range(len(p_columns)):
                weights_along(A_dot, A, x, x, M, p_columns[k], omega, n_tokens, width)
                place = sums + 2 * k * token
                add_mean_terms(place + token, W, A_dot, x, n_tokens, width, tile)
                token_products(D_dot, A_dot, G, n_tokens, n_tokens)
                logit_gradient_along(D_dot, A_dot, A, e, n_tokens)
                fold(D_dot, n_tokens)
                start = p_columns[k] // tile * tile if lower else 0
                add_pairs(place, D_dot, x, n_tokens, width, tile, start)
            for k in range(len(q_columns)):
                weights_along(D_dot, A, W, x, M, q_columns[k], omega, n_tokens, width)
                fold(D_dot, n_tokens)
                add_pairs(q_sums + k * token, D_dot, x, n_tokens, width, tile, 0)
        for n in range(n_rows):
            for i in range(width):
                out[chunk, n, i] = lane_sum(load(sums + (n * width + i) * VECTOR_BYTES))
