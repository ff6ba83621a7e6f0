"""What a tracker has seen: spectra of the changes of W_K W_Qᵀ and W_V W_Oᵀ over training."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze._core.dataframe import dataframe
from dynalyze._core.products import PRODUCTS
from dynalyze._core.saved_files import load_saved, write_saved
from dynalyze._core.saved_schema import Array, ListOf, Schema
from dynalyze.errors import InvalidInputError
from dynalyze.spectra.rank_measures import stable_rank

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SCHEMA = Schema(
    "spectra history",
    arrays={
        "steps": Array("R", dtype="int"),
        "layer": Array("N", dtype="int", least=0, below="L"),
        "head": Array("N", dtype="int", least=0),
        "singular_values": Array("R", "2", "N", "K"),
        "frobenius_norm": Array("R", "2", "N"),
        "effective_rank": Array("R", "2", "N"),
        "effective_rank_bound": Array("R", "2", "N"),
        "numerical_rank": Array("R", "2", "N", dtype="int"),
        "left_angles": Array("R", "2", "N", "r"),
        "right_angles": Array("R", "2", "N", "r"),
        "largest_rank": Array("2", "N", dtype="int", least=0),
        "initial_singular_values": Array("2", "N", "m"),
    },
    metadata={
        "layer_names": ListOf(str, "L"),
        "notes": ListOf(str, "L"),
        "rank_rtol": float,
    },
)
NOT_ARRAYS = tuple(SCHEMA.metadata)
PER_RECORD = tuple(
    name for name, a in SCHEMA.arrays.items() if isinstance(a, Array) and a.shape[0] == "R"
)


@dataclass(frozen=True)
class SpectraHistory:
    """Records of a run: R records, two products (W_K W_Qᵀ, then W_V W_Oᵀ), N heads of all layers.

    The change is Δ(W_K W_Qᵀ) = W_K W_Qᵀ − W_K(0) W_Q(0)ᵀ, and Δ(W_V W_Oᵀ) likewise, per head; a
    change that is no larger than the rounding of its factors is recorded as 0.
    """

    steps: IntArray  # (R,), optimizer steps since the start
    layer_names: tuple[str, ...]  # one per layer
    notes: tuple[str, ...]  # one per layer: how its logits differ from the products, or ""
    layer: IntArray  # (N,), index into layer_names
    head: IntArray  # (N,), number of the head within its layer
    singular_values: FloatArray  # (R, 2, N, K), descending; zeros where a change has fewer
    frobenius_norm: FloatArray  # (R, 2, N)
    effective_rank: FloatArray  # (R, 2, N), a lower bound unless the spectrum is full
    effective_rank_bound: FloatArray  # (R, 2, N), upper bound, equal if the spectrum is full
    numerical_rank: IntArray  # (R, 2, N), values computed above rank_rtol · σ₁ and rounding
    left_angles: FloatArray  # (R, 2, N, r) radians, ascending; NaN where there is no direction
    right_angles: FloatArray  # (R, 2, N, r)
    largest_rank: IntArray  # (2, N), rank that the change cannot exceed
    initial_singular_values: FloatArray  # (2, N, m), of the product at the start itself
    rank_rtol: float  # share of σ₁

    def __repr__(self) -> str:
        last = f" to step {self.steps[-1]}" if len(self.steps) else ""
        return (
            f"<SpectraHistory: {len(self.steps)} records{last}, {len(self.layer)} heads of "
            f"{len(self.layer_names)} layers>"
        )

    def __str__(self) -> str:
        return self.summary()

    @property
    def spectral_norm(self) -> FloatArray:
        """Largest singular value of each change, (R, 2, N)."""
        return self.singular_values[..., 0]

    @property
    def stable_rank(self) -> FloatArray:
        """‖Δ‖_F² / ‖Δ‖_2² of each change, (R, 2, N); 0 where the change is 0."""
        return stable_rank(self.frobenius_norm, self.spectral_norm)

    @property
    def initial_stable_rank(self) -> FloatArray:
        """Stable rank of each product at the start, (2, N)."""
        values = self.initial_singular_values
        return stable_rank(np.linalg.norm(values, axis=-1), values[..., 0])

    @property
    def head_names(self) -> tuple[str, ...]:
        """Readable name of each head, such as ``blocks.0.attn head 3``; length N."""
        return tuple(
            f"{self.layer_names[layer]} head {head}".strip()
            for layer, head in zip(self.layer, self.head, strict=True)
        )

    def index(self, step: int | None = None) -> int:
        """Position of the record made at `step`; the last one for None.

        Raises
        ------
        InvalidInputError
            If no record was made at that step.
        """
        if step is None:
            return len(self.steps) - 1
        found = np.flatnonzero(self.steps == step)
        if not found.size:
            raise InvalidInputError(
                f"step={step} was not recorded: choose one of {_abbreviated(self.steps.tolist())}."
            )
        return int(found[0])

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per record, product and head.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.
        """
        record, product, unit = (
            grid.ravel() for grid in np.indices(self.frobenius_norm.shape, dtype=np.int64)
        )
        columns: dict[str, Any] = {
            "step": self.steps[record],
            "product": np.asarray(PRODUCTS)[product],
            "layer": self.layer[unit],
            "layer_name": np.asarray(self.layer_names)[self.layer[unit]],
            "head": self.head[unit],
            "stable_rank": self.stable_rank.ravel(),
            "numerical_rank": self.numerical_rank.ravel(),
            "effective_rank": self.effective_rank.ravel(),
            "frobenius_norm": self.frobenius_norm.ravel(),
        }
        for k in range(self.singular_values.shape[-1]):
            columns[f"singular_value_{k + 1}"] = self.singular_values[..., k].ravel()
        return dataframe(columns)

    def summary(self) -> str:
        """Table of each layer's mean ranks at the last record, as text."""
        if not len(self.steps):
            return "no record"
        # A first record without any change is the one that the others are measured from.
        since = "the reference" if self.frobenius_norm[0].any() else f"step {self.steps[0]}"
        lines = [
            f"change of the attention products since {since}, at step {self.steps[-1]} "
            f"({len(self.steps)} records, {len(self.layer)} heads)",
            f"{'layer':<34}{'product':<10}{'norm':>10}{'stable rank':>13}{'(at start)':>12}"
            f"{'effective rank':>16}",
        ]
        for index, name in enumerate(self.layer_names):
            heads = self.layer == index
            for p, product in enumerate(PRODUCTS):
                low = self.effective_rank[-1, p, heads].mean()
                high = self.effective_rank_bound[-1, p, heads].mean()
                effective = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
                lines.append(
                    f"{name:<34}{product:<10}{self.frobenius_norm[-1, p, heads].mean():>10.3g}"
                    f"{self.stable_rank[-1, p, heads].mean():>13.2f}"
                    f"{self.initial_stable_rank[p, heads].mean():>12.2f}{effective:>16}"
                )
        lines += [
            f"{n}: {note}" for n, note in zip(self.layer_names, self.notes, strict=True) if note
        ]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history to one file, completely or not at all."""
        write_saved(path, SCHEMA, *self.to_parts())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SpectraHistory":
        """Read a history that `save` wrote.

        Raises
        ------
        SavedFileError
            If the file is damaged or holds something else.
        """
        return load_saved(path, SCHEMA, cls.from_parts)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays by name, and the rest as JSON can hold it: what a saved file is made of."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        metadata = {name: arrays.pop(name) for name in NOT_ARRAYS}
        return arrays, metadata

    @classmethod
    def from_parts(cls, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> "SpectraHistory":
        """Put together what `to_parts` took apart."""
        return cls(
            layer_names=tuple(metadata["layer_names"]),
            notes=tuple(metadata["notes"]),
            rank_rtol=float(metadata["rank_rtol"]),
            **arrays,
        )

    def plot_spectra(
        self,
        layer: int = 0,
        head: int = 0,
        product: int | str = 0,
        *,
        n_values: int | None = None,
        ax: "Axes | None" = None,
    ) -> "Axes":
        """Draw one head's singular values against training; see `plots.spectra`."""
        from dynalyze.plots.spectra import plot_spectra

        return plot_spectra(self, layer, head, product, n_values=n_values, ax=ax)

    def plot_stable_rank(
        self,
        layers: Sequence[int] | None = None,
        product: int | str = 0,
        *,
        ax: "Axes | None" = None,
    ) -> "Axes":
        """Draw the stable ranks against training; see `plots.spectra`."""
        from dynalyze.plots.spectra import plot_stable_rank

        return plot_stable_rank(self, layers, product, ax=ax)

    def unit(self, layer: int, head: int) -> int:
        """Position n of a head among the N heads.

        Raises
        ------
        InvalidInputError
            If there is no such layer or head.
        """
        found = np.flatnonzero((self.layer == layer) & (self.head == head))
        if not found.size:
            raise InvalidInputError(
                f"there is no layer={layer}, head={head}: the history holds "
                f"{len(self.layer_names)} layers, of {np.bincount(self.layer).tolist()} heads."
            )
        return int(found[0])


def _abbreviated(steps: list[int]) -> str:
    if len(steps) <= 8:
        return ", ".join(map(str, steps))
    return ", ".join(map(str, steps[:4])) + ", …, " + ", ".join(map(str, steps[-3:]))
