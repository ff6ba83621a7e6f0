"""Leading singular values and vectors of many small matrices at once, such as cores of changes.

A block Krylov space gives the few values that are wanted; where their estimated error is too large,
and for small matrices, all are computed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynalyze.spectra.reduction import Reduced, Reference, column_lengths
from dynalyze.spectra.sources import expand_heads

_STEPS = 5  # applications of MᵀM that build the Krylov space
_FIRST_SEED = 0  # the start block is random but the same in every run
_OVERSAMPLING = 6  # columns of the block beyond the values wanted
_IN_DOUBLE = 64  # size up to which the SVDs of matrices in single precision are done in double
_TOLERANCE = 5e-7  # of σ₁: estimated error above which the values are found by a full SVD


def entry_scale(core: Tensor) -> Tensor:
    """Largest entry of each matrix up to a power of two, (h, 1, 1); 1 for zero matrices.

    Dividing by a power of two does not round. NaN and infinity come back as they are.
    """
    largest = torch.maximum(core.amax((-2, -1), keepdim=True), -core.amin((-2, -1), keepdim=True))
    power = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    scale = torch.where(largest.isfinite(), power, largest)
    return torch.where(largest == 0, torch.ones_like(largest), scale)


def frobenius_norm(unit: Tensor, scale: Tensor) -> Tensor:
    """Frobenius norms of unit · scale, (h,), in double precision: thousands of squares add up."""
    norms = torch.linalg.vector_norm(unit, dim=(-2, -1), dtype=torch.float64)
    return norms * scale[:, 0, 0].double()


def product_values(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of A Bᵀ itself, (h, min(d_A, d_B, m)), descending, in double precision."""
    scales = [entry_scale(factor) for factor in (left, right)]
    units = [factor / scale for factor, scale in zip((left, right), scales, strict=True)]
    triangles = [
        factor if factor.shape[1] <= factor.shape[2] else torch.linalg.qr(factor, mode="r")[1]
        for factor in units
    ]
    values = torch.linalg.svdvals(triangles[0] @ triangles[1].mT).double()
    return values * scales[0][..., 0].double() * scales[1][..., 0].double()


@dataclass(frozen=True)
class Leading:
    """Leading part of the spectra of a batch of matrices."""

    values: Tensor  # (h, k), descending, in double precision: no size over- or underflows
    frobenius: Tensor  # (h,), Frobenius norm of the whole matrix, in double precision
    left: Tensor  # (h, p, r), leading left singular vectors
    right: Tensor  # (h, q, r)
    slow: Tensor  # (h,), whether the values may be wrong by more than 5e-7 of the largest


def leading_part(
    core: Tensor,
    n_values: int | None,
    n_vectors: int,
    scale: Tensor | None = None,
) -> Leading:
    """Leading singular values and vectors of each matrix of a batch.

    A block Krylov space of MᵀM, started from a fixed random block, holds the leading right
    singular vectors; Rayleigh–Ritz on it gives values whose error is quadratic in theirs
    (Musco & Musco, NeurIPS 2015). Where the residuals leave room for an error above 5e-7 σ₁,
    `Leading.slow` says so, and `repaired` computes those of that matrix by a full SVD instead: to
    do it here, the host would have to wait for the device.

    Parameters
    ----------
    core : Tensor, shape (h, p, q)
        Matrices; zero matrices are allowed.
    n_values : int or None
        How many values are wanted; None: all of them, by a full SVD.
    n_vectors : int
        How many vectors are wanted. Fewer values or vectors come back where p or q is smaller.
    scale : Tensor, shape (h, 1, 1), optional
        `entry_scale` of the matrices, if it is known already.
    """
    n = min(core.shape[-2:])
    n_vectors = min(n_vectors, n)
    # Scaling keeps the squares below from under- or overflowing in single precision.
    scale = entry_scale(core) if scale is None else scale
    unit = core / scale
    block = max(n_values or 0, n_vectors) + _OVERSAMPLING
    slow = torch.zeros(len(core), dtype=torch.bool, device=core.device)
    if n_values is not None and not _small(n, block):
        values, left, right, error = _block_krylov(unit, block, n_vectors)
        values, error = values[:, :n_values], error[:, :n_values]
        slow = (error > _TOLERANCE * values[:, :1]).any(-1)
    elif n_vectors and _small(n, n_vectors + _OVERSAMPLING):
        # Small matrices cost little in double precision, which spares the rounding of the SVD.
        exact = unit.double() if n <= _IN_DOUBLE else unit
        left, values, right = torch.linalg.svd(exact, full_matrices=False)
        left, right = (v[..., :n_vectors].to(core.dtype) for v in (left, right.mT))
    else:
        values = torch.linalg.svdvals(unit)
        left, right = unit[..., :0], unit.mT[..., :0]
        if n_vectors:
            _, left, right, _ = _block_krylov(unit, n_vectors + _OVERSAMPLING, n_vectors)
    values = values[:, :n_values].double() * scale[..., 0].double()
    return Leading(values, frobenius_norm(unit, scale), left, right, slow)


def repaired(leading: Leading, core: Tensor, scale: Tensor, which: Tensor) -> Leading:
    """The same with the values and vectors of the matrices `which` from full SVDs."""
    u, sigma, v = torch.linalg.svd(core[which] / scale[which], full_matrices=False)
    k, r = leading.values.shape[1], leading.left.shape[2]
    return Leading(
        leading.values.index_copy(0, which, sigma[:, :k].double() * scale[which, 0].double()),
        leading.frobenius,
        leading.left.index_copy(0, which, u[..., :r]),
        leading.right.index_copy(0, which, v.mT[..., :r]),
        torch.zeros_like(leading.slow),
    )


def _small(n: int, block: int) -> bool:
    """Whether a full SVD costs no more than the Krylov space."""
    return n < 1.5 * (_STEPS + 1) * block


def _block_krylov(
    matrix: Tensor, block: int, n_vectors: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(_FIRST_SEED)
    start = torch.randn(matrix.shape[-1], block, generator=generator, dtype=torch.float64)
    start = torch.linalg.qr(start.to(matrix.dtype))[0].to(matrix.device)
    newest = start.expand(matrix.shape[0], -1, -1)
    blocks = [newest]
    for _ in range(_STEPS):
        newest = matrix.mT @ (matrix @ newest)
        for earlier in blocks:
            newest = newest - earlier @ (earlier.mT @ newest)
        newest = torch.linalg.qr(newest)[0]
        blocks.append(newest)
    # Once the rank is exhausted the newest blocks are normalized rounding, which lies anywhere,
    # also within the blocks before it. The QR of all of them is orthonormal all the same.
    space = torch.linalg.qr(torch.cat(blocks, 2))[0]
    image = matrix @ space
    # Eigenvectors of the small Gram matrix span the leading vectors to first order; the values
    # and vectors come from the image of that span, so that the values' error is of second order.
    vectors = torch.linalg.eigh(image.mT @ image)[1].flip(-1)
    span = torch.linalg.qr(space @ vectors[..., :block])[0]
    left, values, turn = torch.linalg.svd(matrix @ span, full_matrices=False)
    right = span @ turn.mT
    # A value's error is its residual squared over the gap to what the block does not hold.
    residual = torch.linalg.vector_norm(matrix.mT @ left - right * values[:, None], dim=-2)
    gap = (values - values[:, -1:]).clamp_min(torch.finfo(values.dtype).tiny)
    error = residual**2 / gap
    return values, left[..., :n_vectors], right[..., :n_vectors], error


def full_vectors(
    leading: Leading,
    left: tuple[Reference, Tensor, Reduced],
    right: tuple[Reference, Tensor, Reduced],
) -> tuple[Tensor, Tensor]:
    """Leading singular vectors of the change in the model's own coordinates.

    `left` and `right` hold the reference, the current factor and its reduction. Columns that
    belong to vanishing singular values come back as zeros.
    """
    vectors = []
    for (reference, current, _), (_, _, other), far in (
        (left, right, leading.right),
        (right, left, leading.left),
    ):
        opposite = other.expand(far.shape[0])
        # ΔA (B_1ᵀ v) + A_0 (ΔBᵀ v): ΔA is formed again, since A_1 x − A_0 x would cancel.
        change = expand_heads(current - reference.factor, far.shape[0])
        initial = expand_heads(reference.factor, far.shape[0])
        vectors.append(change @ (opposite.current.mT @ far) + initial @ (opposite.change.mT @ far))
    return orthonormal(vectors[0]), orthonormal(vectors[1])


def orthonormal(columns: Tensor) -> Tensor:
    """Normalize nearly orthogonal columns; columns of zeros stay zero."""
    lengths = column_lengths(columns)
    return (columns.double() / torch.where(lengths > 0, lengths, 1.0)).to(columns.dtype)


def principal_angles(first: Tensor, second: Tensor, common: Tensor | None = None) -> Tensor:
    """Principal angles in radians between column spans, ascending, (h, r).

    Small angles come from sines and large ones from cosines (Björck & Golub 1973). Columns must
    be orthonormal. With `common`, of shape (h,), only so many leading columns of each matrix
    count, and the other angles are NaN.
    """
    r = first.shape[-1]
    count = torch.full(first.shape[:1], r, device=first.device) if common is None else common
    place = torch.arange(r, device=first.device)
    taken = (place < count[:, None])[:, None, :]
    first, second = torch.where(taken, first, 0.0), torch.where(taken, second, 0.0)
    overlap = first.mT @ second
    cosines = torch.linalg.svdvals(overlap)
    # The columns left out add zeros at the end of both.
    sines = torch.linalg.svdvals(second - first @ overlap)
    ascending = sines.gather(1, (count[:, None] - 1 - place).clamp_min(0))
    angles = torch.atan2(ascending, cosines)
    return torch.where(taken[:, 0], angles, torch.full_like(angles, torch.nan))
