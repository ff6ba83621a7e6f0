"""The change A Bᵀ − A₀ B₀ᵀ reduced to a small core, never through the d × d matrix.

With ΔA = A − A₀ and ΔB = B − B₀ the change is ΔA Bᵀ + A₀ ΔBᵀ, of rank at most twice the number m
of columns. In an orthonormal basis of [A₀, ΔA] on the left and of [B₀, ΔB] on the right it is a
core of 2m × 2m with the same singular values. The bases of A₀ and B₀ are found once, at the start;
per record only ΔA and ΔB are projected and triangularized. Nothing cancels but what cancels in
the change itself: it is never the difference of two large products.

The two terms of the change do cancel where the factors move and their product does not, as in
W_Q G, W_K G⁻ᵀ. What is left then is rounding, and has all ranks. With eps that of the type computed
in, [X, Y]² = Σ_j ‖x_j‖² ‖y_j‖² over columns (the norm of X Yᵀ if no terms cancel), and A′, B′ those
entries of A, B that differ from the ones at the start, its size is at most about

    eps · (16 ([ΔA, B] + [ΔA, ΔB] + [A₀, ΔB]) + 2 ([A′, B] + [A₀, B′])),

the first part from the arithmetic here, the second from the rounding of the weights themselves
when they moved. A change of no larger norm is taken to be zero (`rounding_of_change`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynalyze.spectra.sources import expand_heads

_ARITHMETIC = 16  # times eps: rounding of a moved column by QR and products; up to 10 was measured
_STORAGE = 2  # times eps: rounding of the entries that moved, by whoever moved them


@dataclass(frozen=True)
class Reduced:
    """A factor then, now and its change, in one orthonormal basis of p ≤ min(d, 2m) vectors."""

    initial: Tensor  # (h, q, m), q ≤ p: the rows below are 0
    current: Tensor  # (h, p, m)
    change: Tensor  # (h, p, m)
    initial_lengths: Tensor  # (h, 1, m), of the columns then
    change_lengths: Tensor  # (h, 1, m), of those of the change
    rounding: Tensor  # (h, 1, m), what may be rounding in the lengths of the change

    def expand(self, n_heads: int) -> "Reduced":
        """Repeat grouped heads so that each of `n_heads` query heads has its own."""
        return Reduced(*(expand_heads(part, n_heads) for part in vars(self).values()))


@dataclass
class Reference:
    """A factor at the start, with an orthonormal basis of its columns where that saves work."""

    factor: Tensor  # (h, d, m)
    basis: Tensor | None  # (h, d, m), orthonormal columns; None if d ≤ 2m
    triangle: Tensor | None  # (h, m, m), factor = basis · triangle
    lengths: Tensor  # (h, 1, m), of the columns of the factor

    @classmethod
    def of(cls, factor: Tensor) -> "Reference":
        """Prepare the factor that changes are measured from."""
        lengths = column_lengths(factor)
        if factor.shape[1] <= 2 * factor.shape[2]:
            return cls(factor, None, None, lengths)
        basis, triangle = torch.linalg.qr(factor)
        return cls(factor, basis, triangle, lengths)

    def to(self, device: torch.device) -> None:
        """Move to another device."""
        self.factor, self.lengths = self.factor.to(device), self.lengths.to(device)
        self.basis = None if self.basis is None else self.basis.to(device)
        self.triangle = None if self.triangle is None else self.triangle.to(device)

    def reduce(self, current: Tensor) -> Reduced:
        """Coordinates of the factor then, now and of its change."""
        initial, change = self.factor, current - self.factor
        moved = change.sign().mul_(current)  # up to signs; a mask by ≠ takes four times as long
        if self.basis is not None and self.triangle is not None:
            inside = self.basis.mT @ change
            rest = torch.baddbmm(change, self.basis, inside, alpha=-1)
            outside = torch.linalg.qr(rest, mode="r")[1]
            initial = self.triangle
            current = torch.cat([initial + inside, outside], 1)
            change = torch.cat([inside, outside], 1)
        lengths = column_lengths(change)
        eps = torch.finfo(change.dtype).eps
        rounding = eps * (_ARITHMETIC * lengths + _STORAGE * column_lengths(moved))
        return Reduced(initial, current, change, self.lengths, lengths, rounding)


def change_core(left: Reduced, right: Reduced) -> Tensor:
    """Core of the change A Bᵀ − A₀ B₀ᵀ: a matrix per head with the same singular values."""
    core = left.change @ right.current.mT
    core[:, : left.initial.shape[1]].baddbmm_(left.initial, right.change.mT)
    return core


def rounding_of_change(left: Reduced, right: Reduced) -> Tensor:
    """Norm below which the change of a head is rounding, (h,); see the top of this module."""
    # Coordinates of B are found as those of B₀ and of ΔB, and have the rounding of both.
    from_left = left.rounding * (column_lengths(right.current) + right.change_lengths)
    from_right = left.initial_lengths * right.rounding
    return torch.cat([from_left, from_right], -1).norm(dim=(1, 2))


def column_lengths(columns: Tensor) -> Tensor:
    """Euclidean lengths of the columns in double precision; no square over- or underflows."""
    if columns.dtype != torch.float64:  # squares of narrower types fit into double precision
        return columns.double().square_().sum(-2, keepdim=True).sqrt_()
    largest = columns.abs().amax(-2, keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    return torch.linalg.vector_norm(columns / unit, dim=-2, keepdim=True) * unit
