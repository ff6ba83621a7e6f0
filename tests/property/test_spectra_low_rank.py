"""Invariants of the spectra computed from factors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from dynalyze.spectra.low_rank import (  # noqa: E402
    Leading,
    entry_scale,
    full_vectors,
    leading_part,
    principal_angles,
    repaired,
)
from dynalyze.spectra.rank_measures import effective_rank_bounds  # noqa: E402
from dynalyze.spectra.reduction import Reference, change_core  # noqa: E402


def _leading_part(matrix: torch.Tensor, n_values: int | None, n_vectors: int) -> Leading:
    leading = leading_part(matrix, n_values, n_vectors)
    return repaired(leading, matrix, entry_scale(matrix), torch.nonzero(leading.slow)[:, 0])


def _factors(d: int, m: int, n_heads: int, decay: float, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(n_heads, d, m, generator=generator).double() for _ in range(2)]
    scales = torch.arange(1, m + 1).double() ** -decay
    moves = [torch.randn(n_heads, d, m, generator=generator).double() * scales for _ in range(2)]
    return (*start, *(a + b for a, b in zip(start, moves, strict=True)))


@settings(max_examples=25, deadline=None)
@given(
    d=st.integers(2, 40),
    m=st.integers(1, 24),
    decay=st.floats(0, 3),
    size=st.sampled_from([1e-12, 1e-4, 1.0, 1e8]),
    n_values=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_values_norm_and_vectors_against_the_dense_change(
    *, d: int, m: int, decay: float, size: float, n_values: int | None, seed: int
) -> None:
    a0, b0, a1, b1 = (size * f for f in _factors(d, m, 3, decay, seed))
    left, right = Reference.of(a0), Reference.of(b0)
    reduced = left.reduce(a1), right.reduce(b1)
    core = change_core(*reduced)
    assert core.shape[-1] <= min(d, 2 * m)
    leading = _leading_part(core, n_values, 2)
    dense = a1 @ b1.mT - a0 @ b0.mT
    exact = torch.linalg.svdvals(dense)
    tolerance = 1e-6 * float(exact.max())
    torch.testing.assert_close(
        leading.values, exact[:, : leading.values.shape[1]], rtol=0, atol=tolerance
    )
    torch.testing.assert_close(
        leading.frobenius, torch.linalg.matrix_norm(dense), rtol=1e-12, atol=0
    )
    u, v = full_vectors(leading, (left, a1, reduced[0]), (right, b1, reduced[1]))
    along = (u * (dense @ v)).sum(-2)
    torch.testing.assert_close(along, exact[:, : along.shape[1]], rtol=0, atol=tolerance)


@pytest.mark.parametrize("decay", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("n_values", [4, 10, None])
def test_krylov_values_at_a_width_where_they_are_used(decay: float, n_values: int | None) -> None:
    a0, b0, a1, b1 = (f.float() for f in _factors(320, 80, 4, decay, 0))
    core = change_core(Reference.of(a0).reduce(a1), Reference.of(b0).reduce(b1))
    leading = _leading_part(core, n_values, 3)
    exact = torch.linalg.svd(a1.double() @ b1.double().mT - a0.double() @ b0.double().mT)
    k = leading.values.shape[1]
    assert k == (n_values or 160)
    error = (leading.values - exact.S[:, :k]).abs() / exact.S[:, :1]
    assert error.max() < 2e-6
    assert leading.left.shape == (4, 160, 3)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_krylov_space_larger_than_the_rank(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(2, 200, rank, generator=generator) for _ in range(2))
    matrix = left @ right.mT
    leading = _leading_part(matrix, 8, 4)
    exact = torch.linalg.svdvals(matrix.double())[:, :8]
    assert (leading.values - exact).abs().max() <= 2e-6 * exact.max()
    assert bool(leading.values.isfinite().all())


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(1e-3, 10), min_size=1, max_size=12),
    kept=st.integers(1, 12),
)
def test_bounds_of_the_effective_rank_hold(values: list[float], kept: int) -> None:
    every = np.sort(np.array(values))[::-1]
    total = np.linalg.norm(every)
    shares = every**2 / total**2
    exact = np.exp(-(shares * np.log(shares)).sum())
    lower, upper = effective_rank_bounds(every[:kept], np.array(total), np.array(len(every)))
    assert lower <= exact * (1 + 1e-9)
    assert upper >= exact * (1 - 1e-9)
    if kept >= len(every):
        np.testing.assert_allclose([lower, upper], exact, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(angles=st.lists(st.floats(0, np.pi / 2), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_principal_angles_of_planes_turned_by_known_angles(angles: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(1, 9, 6, generator=generator).double())[0]
    turn = torch.tensor(angles).double()
    r = len(angles)
    first, second = basis[..., :r], basis[..., :r] * turn.cos() + basis[..., r : 2 * r] * turn.sin()
    mixed = first @ torch.linalg.qr(torch.randn(1, r, r, generator=generator).double())[0]
    found = principal_angles(mixed, second)[0].numpy()
    np.testing.assert_allclose(found, np.sort(angles), atol=1e-7)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [48, 64, 96, 128])
def test_directions_of_low_rank_changes_are_those_of_a_full_svd_in_double_precision(
    width: int, rank: int, dtype: torch.dtype, bound: float
) -> None:
    # What LoRA does: W_K moves in few directions, W_Q stays, and the change is small.
    a0, b0, _, _ = _factors(2 * width + 20, width, 8, 0.0, rank)
    generator = torch.Generator().manual_seed(width)
    across = torch.randn(8, 2 * width + 20, rank, generator=generator).double()
    along = torch.randn(8, width, rank, generator=generator).double()
    a0, b0, a1 = (x.to(dtype) for x in (a0, b0, a0 + 1e-3 * across @ along.mT))
    left, right = Reference.of(a0), Reference.of(b0)
    reduced = left.reduce(a1), right.reduce(b0)
    leading = _leading_part(change_core(*reduced), 10, 4)
    found = full_vectors(leading, (left, a1, reduced[0]), (right, b0, reduced[1]))
    u, _, v = torch.linalg.svd((a1.double() - a0.double()) @ b0.double().mT)
    for vectors, exact in zip(found, (u, v.mT), strict=True):
        angles = principal_angles(vectors[..., :rank].double(), exact[..., :rank])
        assert float(angles.max()) < bound


def test_values_that_converge_slowly_come_with_the_vectors_of_the_full_svd() -> None:
    matrix = torch.linalg.qr(torch.randn(2, 200, 200, generator=torch.Generator().manual_seed(0)))[
        0
    ]
    matrix = matrix * torch.linspace(1.0, 0.99, 200)
    leading = _leading_part(matrix, 4, 4)
    image = torch.linalg.vector_norm(matrix @ leading.right, dim=-2)
    torch.testing.assert_close(image.double(), leading.values, rtol=1e-5, atol=0)
