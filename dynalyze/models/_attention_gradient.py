"""Loss and gradient of the attention head, eq. (1) of arXiv 2306.07042, in vectors of samples.

For one sample with tokens x_a, products p and q, residual r and weight ω:

    S_ab = Σ_i p_i x_ai x_bi,   A = softmax of the rows of S,   M = A X,   r = q ⊙ M − y
    L = ½ ω Σ r²,   ∂L/∂q_i = ω Σ_a r_ai M_ai
    D_ab = Σ_i q_i r_ai x_bi,   E_ab = A_ab (D_ab − Σ_c A_ac D_ac)
    ∂L/∂p_i = ω Σ_ab E_ab x_ai x_bi

Samples are taken `LANES` at a time, one in each lane of a vector, so that everything is a vector
operation whatever the numbers of tokens and features. S and the sum over E are symmetric in a
and b: half of each is computed.
"""

from typing import Any

from dynalyze._typing import FloatArray, IntArray
from dynalyze.models._vector_math import (
    LANES,
    VECTOR_BYTES,
    address,
    aligned_zeros,
    exp,
    fma,
    kernel,
    lane_sum,
    larger,
    load,
    splat,
    store,
)
from dynalyze.models._vector_tiles import (
    FEATURE_TILES,
    TILE,
    contraction_triangle,
    gram_tile,
    residual_tile,
    scaled_gram_tile,
    scaled_gram_triangle,
)


def feature_tile(d: int) -> int:
    """Width of the tiles that the features are taken in: that with the least padding."""
    return min(FEATURE_TILES, key=lambda tile: (-(-d // tile) * tile, -tile))


def padded_features(d: int) -> int:
    """Return `d` rounded up to a whole number of tiles."""
    tile = feature_tile(d)
    return -(-d // tile) * tile


def sample_lanes(values: FloatArray) -> FloatArray:
    """Rearrange samples for the kernels: ``out[block, token, feature, lane]``.

    Parameters
    ----------
    values : ndarray, shape (n_samples, n_tokens, d)

    Returns
    -------
    ndarray, shape (n_blocks, n_tokens, padded_features(d), LANES)
        Padded with zeros.
    """
    n_samples, n_tokens, d = values.shape
    n_blocks = -(-n_samples // LANES)
    out = aligned_zeros(n_blocks * n_tokens * padded_features(d) * LANES)
    out = out.reshape(n_blocks, n_tokens, padded_features(d), LANES)
    for lane in range(LANES):
        samples = values[lane::LANES]
        out[: len(samples), :, :d, lane] = samples
    return out


def gradient_workspace(n_tokens: int, d: int) -> FloatArray:
    """Memory for `loss_and_gradient`: A, D and scaled residual of one block, and the sums."""
    width = padded_features(d)
    return aligned_zeros((2 * n_tokens**2 + n_tokens * width + 3 * width + 2) * LANES)


@kernel
def n_tiles(n_tokens: int) -> int:
    """How many tiles of at most TILE tokens cover all of them."""
    return -(-n_tokens // TILE)


@kernel
def tile_bounds(n_tokens: int, part: int) -> tuple[int, int]:
    """First token and length of one of the `n_tiles` tiles, which are as equal as can be."""
    parts = n_tiles(n_tokens)
    start = part * n_tokens // parts
    return start, (part + 1) * n_tokens // parts - start


@kernel
def symmetric_products(out: int, x: int, scale: int, n_tokens: int, width: int) -> None:
    """out[a, b] = Σ_i scale_i x_ai x_bi for one block of samples; the arguments are addresses."""
    token = width * VECTOR_BYTES
    row = n_tokens * VECTOR_BYTES
    for part in range(n_tiles(n_tokens)):
        a, n_rows = tile_bounds(n_tokens, part)
        left = (x + a * token, token, VECTOR_BYTES)
        for other in range(part):
            b, n_columns = tile_bounds(n_tokens, other)
            here = (out + a * row + b * VECTOR_BYTES, row, VECTOR_BYTES)
            right = (x + b * token, token, VECTOR_BYTES)
            scaled_gram_tile(here, left, right, scale, width, n_rows, n_columns)
        here = (out + a * row + a * VECTOR_BYTES, row, VECTOR_BYTES)
        scaled_gram_triangle(here, left, left, scale, width, n_rows, n_rows)
    for a in range(n_tokens):
        for b in range(a):
            store(out + b * row + a * VECTOR_BYTES, load(out + a * row + b * VECTOR_BYTES))


@kernel
def softmax_rows(A: int, n_tokens: int) -> None:
    """Replace the logits of one block by the attention weights."""
    row = n_tokens * VECTOR_BYTES
    for a in range(n_tokens):
        start = A + a * row
        largest = load(start)
        for b in range(1, n_tokens):
            largest = larger(load(start + b * VECTOR_BYTES), largest)
        norm = splat(0.0)
        for b in range(n_tokens):
            weight = exp(load(start + b * VECTOR_BYTES) - largest)
            store(start + b * VECTOR_BYTES, weight)
            norm = norm + weight
        inverse = splat(1.0) / norm
        for b in range(n_tokens):
            store(start + b * VECTOR_BYTES, load(start + b * VECTOR_BYTES) * inverse)


@kernel
def token_products(out: int, left: int, right: int, n_tokens: int, count: int) -> None:
    """out[a, b] = Σ_k left[a, k] right[b, k] for one block, both with `count` entries a row."""
    token = count * VECTOR_BYTES
    row = n_tokens * VECTOR_BYTES
    for part in range(n_tiles(n_tokens)):
        a, n_rows = tile_bounds(n_tokens, part)
        for other in range(n_tiles(n_tokens)):
            b, n_columns = tile_bounds(n_tokens, other)
            gram_tile(
                (out + a * row + b * VECTOR_BYTES, row, VECTOR_BYTES),
                (left + a * token, token, VECTOR_BYTES),
                (right + b * token, token, VECTOR_BYTES),
                count,
                n_rows,
                n_columns,
            )


@kernel
def residuals(
    r: int, y: int, A: int, x: int, q: int, dq: int, loss: int, n_tokens: int, width: int, tile: int
) -> None:
    """Scaled residuals q ⊙ r of one block; adds to ∂L/∂q and 2 L (without weights)."""
    token = width * VECTOR_BYTES
    row = n_tokens * VECTOR_BYTES
    for i in range(0, width, tile):
        here = i * VECTOR_BYTES
        for part in range(n_tiles(n_tokens)):
            a, n_rows = tile_bounds(n_tokens, part)
            residual_tile(
                (r + a * token + here, token, VECTOR_BYTES),
                (y + a * token + here, token, VECTOR_BYTES),
                (A + a * row, row, VECTOR_BYTES),
                (x + here, token, VECTOR_BYTES),
                q + 8 * i,
                dq + here,
                loss,
                n_tokens,
                n_rows,
                tile,
            )


@kernel
def add_product(where: int, factor: Any, other: int) -> None:
    """Add a vector times the vector at `other` to the one at `where`."""
    store(where, fma(factor, load(other), load(where)))


@kernel
def logit_gradient(D: int, A: int, omega: Any, n_tokens: int) -> None:
    """Replace D by ω E."""
    row = n_tokens * VECTOR_BYTES
    for a in range(n_tokens):
        mean = splat(0.0)
        for b in range(n_tokens):
            here = a * row + b * VECTOR_BYTES
            mean = fma(load(A + here), load(D + here), mean)
        for b in range(n_tokens):
            here = a * row + b * VECTOR_BYTES
            store(D + here, load(A + here) * (load(D + here) - mean) * omega)


@kernel
def fold(E: int, n_tokens: int) -> None:
    """Add the entries above the diagonal to those below it."""
    row = n_tokens * VECTOR_BYTES
    for a in range(n_tokens):
        for b in range(a):
            here = E + a * row + b * VECTOR_BYTES
            store(here, load(here) + load(E + b * row + a * VECTOR_BYTES))


@kernel
def add_pairs(out: int, E: int, x: int, n_tokens: int, width: int, tile: int, start: int) -> None:
    """Add Σ_{b ≤ a} E_ab x_ai x_bi, with E folded, to out[i] for i ≥ start, a multiple of tile."""
    token = width * VECTOR_BYTES
    weights = (E, n_tokens * VECTOR_BYTES, VECTOR_BYTES)
    for i in range(start, width, tile):
        here = i * VECTOR_BYTES
        tokens = (x + here, token, VECTOR_BYTES)
        for part in range(n_tiles(n_tokens)):
            a, n_rows = tile_bounds(n_tokens, part)
            contraction_triangle(out + here, tokens, weights, tokens, a, a, n_rows, tile)


@kernel
def loss_and_gradient(
    X: FloatArray,
    y: FloatArray,
    weight: FloatArray,
    theta: FloatArray,
    tile: int,
    bounds: IntArray,
    first: int,
    last: int,
    workspace: FloatArray,
    out: FloatArray,
) -> None:
    """Loss and gradient, summed over the samples of each of some chunks.

    Parameters
    ----------
    X, y : ndarray, shape (n_blocks, n_tokens, width, LANES)
        From `sample_lanes`.
    weight : ndarray, shape (n_blocks, LANES)
        Weight of each sample in the loss.
    theta : ndarray, shape (at least 2, width)
        Products p and q, padded with zeros.
    tile : int
        `feature_tile` of the number of features.
    bounds : ndarray, shape (n_chunks + 1,)
        Chunk c holds the blocks from ``bounds[c]`` up to ``bounds[c + 1]``.
    first, last : int
        The chunks ``first, …, last − 1`` are computed.
    workspace : ndarray
        From `gradient_workspace`.
    out : ndarray, shape (n_chunks, 1 + 2 width)
        Rows ``first, …, last − 1`` are overwritten by the loss, ∂L/∂p and ∂L/∂q.
    """
    _, n_tokens, width, _ = X.shape
    token = width * VECTOR_BYTES
    row = n_tokens * VECTOR_BYTES
    block = n_tokens * token
    p = address(theta)
    q = p + 8 * width
    A = address(workspace)
    D = A + n_tokens * row
    r = D + n_tokens * row
    # The gradient's q part and the loss of one block, and the weighted sums of both over blocks
    dq = r + block
    loss = dq + token
    dp_sum = loss + VECTOR_BYTES
    dq_sum = dp_sum + token
    loss_sum = dq_sum + token
    for chunk in range(first, last):
        for i in range(2 * width + 1):
            store(dp_sum + i * VECTOR_BYTES, splat(0.0))
        for j in range(bounds[chunk], bounds[chunk + 1]):
            x = address(X) + j * block
            omega = load(address(weight) + j * VECTOR_BYTES)
            symmetric_products(A, x, p, n_tokens, width)
            softmax_rows(A, n_tokens)
            for i in range(width + 1):
                store(dq + i * VECTOR_BYTES, splat(0.0))
            residuals(r, address(y) + j * block, A, x, q, dq, loss, n_tokens, width, tile)
            for i in range(width + 1):
                add_product(dq_sum + i * VECTOR_BYTES, omega, dq + i * VECTOR_BYTES)
            token_products(D, r, x, n_tokens, width)
            logit_gradient(D, A, omega, n_tokens)
            fold(D, n_tokens)
            add_pairs(dp_sum, D, x, n_tokens, width, tile, 0)
        out[chunk, 0] = 0.5 * lane_sum(load(loss_sum))
        for i in range(2 * width):
            out[chunk, 1 + i] = lane_sum(load(dp_sum + i * VECTOR_BYTES))
