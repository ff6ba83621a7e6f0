"""One product of one layer at one record: from its factors to a row of numbers per head.

Everything stays on the device of the weights until `to_host` brings all tables over at once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynalyze._core.arrays import FloatArray
from dynalyze.spectra.low_rank import (
    entry_scale,
    full_vectors,
    leading_part,
    principal_angles,
    repaired,
)
from dynalyze.spectra.options import RecordOptions
from dynalyze.spectra.rank_measures import effective_rank_bounds
from dynalyze.spectra.reduction import Reference, change_core, rounding_of_change

Directions = tuple[Tensor, ...]  # left, right, and how many of them each head has
FINITE, SLOW = 0, 1  # columns of the table of a measurement


def measure(
    references: tuple[Reference, Reference],
    pair: tuple[Tensor, Tensor],
    n_heads: int,
    options: RecordOptions,
    before: Directions | None,
    repair: Tensor | None = None,
) -> tuple[Tensor, Directions | None]:
    """Measure how far A Bᵀ has moved from A₀ B₀ᵀ, per head.

    Parameters
    ----------
    references : tuple of Reference
        A₀ and B₀.
    pair : tuple of Tensor
        A and B.
    n_heads : int
        Number H of query heads.
    options : RecordOptions
        What to compute.
    before : Directions, optional
        Leading directions at the record before.
    repair : Tensor, optional
        Heads whose values are to come from a full SVD.

    Returns
    -------
    table : Tensor, shape (H, 4 + 2 r + k)
        Whether the product is finite, whether its values converged slowly, its norm, the number of
        directions, r angles on the left and r on the right, k values; on the device of the factors.
    directions : Directions or None
        Leading directions now.
    """
    left, right = references[0].reduce(pair[0]), references[1].reduce(pair[1])
    left, right = left.expand(n_heads), right.expand(n_heads)
    core, rounding = change_core(left, right), rounding_of_change(left, right)
    scale = entry_scale(core)
    finite = scale.isfinite()
    size = torch.linalg.vector_norm(core / scale, dim=(-2, -1), keepdim=True) * scale.double()
    moved = finite & (size > rounding[:, None, None])
    core, scale = torch.where(moved, core, 0.0), torch.where(moved, scale, 1.0)
    n_wanted = None if options.spectrum == "full" else options.n_values
    leading = leading_part(core, n_wanted, options.n_directions, scale)
    if repair is not None:
        leading = repaired(leading, core, scale, repair.to(core.device))
    least = torch.maximum(options.rank_rtol * leading.values[:, :1], rounding[:, None])
    n_alive = (leading.values > least).sum(-1)
    r = options.n_directions
    angles = torch.full((n_heads, 2 * r), torch.nan, dtype=torch.float64, device=core.device)
    directions = None
    if r:
        now = full_vectors(leading, (references[0], pair[0], left), (references[1], pair[1], right))
        directions = (*now, n_alive.clamp_max(now[0].shape[-1]))
        if before is not None:
            common = torch.minimum(before[2], directions[2])
            for side in range(2):
                found = principal_angles(before[side], now[side], common)
                angles[:, side * r : side * r + found.shape[1]] = found.double()
    columns = [finite[:, :, 0], leading.slow[:, None], leading.frobenius[:, None]]
    columns += [n_alive[:, None], angles, leading.values]
    return torch.cat([column.double() for column in columns], 1), directions


def unpacked(table: FloatArray, n_directions: int, width: int, largest_rank: int) -> dict[str, Any]:
    """Fields of a record from the table of one product, with `width` values per head."""
    angles, values = np.split(table[:, 4:], [2 * n_directions], axis=1)
    low, high = effective_rank_bounds(values, table[:, 2], np.asarray(largest_rank))
    return {
        "singular_values": padded(values, width),
        "frobenius_norm": table[:, 2],
        "effective_rank": low,
        "effective_rank_bound": high,
        "numerical_rank": table[:, 3].astype(np.int64),
        "left_angles": angles[:, :n_directions],
        "right_angles": angles[:, n_directions:],
    }


def to_host(tables: Sequence[Tensor]) -> list[FloatArray]:
    """All tables in one transfer; the layers of one model may lie on several devices."""
    if not tables:
        return []
    width = max(table.shape[1] for table in tables)
    wide = [torch.nn.functional.pad(table, (0, width - table.shape[1])) for table in tables]
    together = as_array(torch.cat([table.to(wide[0].device) for table in wide]))
    ends = np.cumsum([len(table) for table in tables])[:-1]
    parts = zip(np.split(together, ends), tables, strict=True)
    return [part[:, : table.shape[1]] for part, table in parts]


def as_array(tensor: Tensor) -> FloatArray:
    """Copy in double precision on the host."""
    return tensor.detach().to("cpu", torch.float64).numpy()


def padded(values: FloatArray, width: int) -> FloatArray:
    """The first `width` columns, zeros where there are fewer."""
    values = values[:, :width]
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))
