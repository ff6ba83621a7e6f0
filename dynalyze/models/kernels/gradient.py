"""Loss and gradient of the attention head, eq. (1) of arXiv 2306.07042, in vectors of samples.

For one sample with tokens x_a, products p and q, residual r and weight ω:

    S_ab = Σ_i p_i x_ai x_bi,   A = softmax of the rows of S,   M = A X,   r = q ⊙ M − y
    L = ½ ω Σ r²,   ∂L/∂q_i = ω Σ_a r_ai M_ai
    D_ab = ω Σ_i q_i r_ai x_bi,   E_ab = A_ab (D_ab − Σ_c A_ac D_ac)
    ∂L/∂p_i = Σ_ab E_ab x_ai x_bi

Samples are taken `LANES` at a time, one in each lane of a vector, so that everything is a vector
operation whatever the numbers of tokens and features. S and the sum over E are symmetric in a
and b: half of each is computed.
"""

from typing import Any

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.models.kernels.products import contraction, gram, residual, scaled_gram
from dynalyze.models.kernels.vectors import exp, kernel, matrix, part, splat, vectors


@part
def softmax_rows(A: Any) -> None:
    """Replace the logits by the attention weights."""
    for a in range(A.shape[0]):
        largest = A[a, 0]
        for b in range(1, A.shape[1]):
            largest = max(A[a, b], largest)
        norm = splat(0.0)
        for b in range(A.shape[1]):
            A[a, b] = exp(A[a, b] - largest)
            norm = norm + A[a, b]
        inverse = splat(1.0) / norm
        for b in range(A.shape[1]):
            A[a, b] = A[a, b] * inverse


@part
def folded_logit_gradient(D: Any, A: Any) -> None:
    """Replace D by E; the entries above the diagonal are added to those below it."""
    n_tokens = A.shape[0]
    for a in range(n_tokens):
        mean = splat(0.0)
        for b in range(n_tokens):
            mean = A[a, b] * D[a, b] + mean
        for b in range(n_tokens):
            D[a, b] = A[a, b] * (D[a, b] - mean)
        for b in range(a):
            D[a, b] = D[a, b] + D[b, a]


@kernel
def loss_and_gradient(
    X: FloatArray,
    y: FloatArray,
    weight: FloatArray,
    theta: FloatArray,
    bounds: IntArray,
    out: FloatArray,
) -> None:
    """Loss and gradient, summed over the samples of each of some chunks.

    Parameters
    ----------
    X, y : ndarray, shape (n_blocks, n_tokens, d, LANES)
        From `sample_lanes`.
    weight : ndarray, shape (n_blocks, LANES)
        Weight of each sample in the loss.
    theta : ndarray, shape (2 d,)
        Products p and q.
    bounds : ndarray, shape (n_chunks + 1,)
        Chunk c holds the blocks from ``bounds[c]`` up to ``bounds[c + 1]``.
    out : ndarray, shape (n_chunks, 3, d, LANES)
        To its rows are added, for each chunk and lane, ∂L/∂p, ∂L/∂q and parts of the sum 2 L.
    """
    _, n_tokens, d, _ = X.shape
    tokens, targets, weights, sums = vectors(X), vectors(y), vectors(weight), vectors(out)
    products = matrix(2, d)
    for i in range(d):
        products[0, i], products[1, i] = splat(theta[i]), splat(theta[d + i])
    p, q = products[0], products[1]
    A, D, r = matrix(n_tokens, n_tokens), matrix(n_tokens, n_tokens), matrix(n_tokens, d)
    for chunk in range(len(out)):
        for j in range(bounds[chunk], bounds[chunk + 1]):
            x = tokens[j]
            scaled_gram(A, x, p)
            softmax_rows(A)
            residual(r, targets[j], A, x, q, weights[j], sums[chunk, 1:])
            gram(D, r, x)
            folded_logit_gradient(D, A)
            contraction(sums[chunk, 0], x, D, x, True, 0)
