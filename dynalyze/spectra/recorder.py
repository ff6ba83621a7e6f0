"""From weights to records: the change of each layer's products, measured from a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynalyze._core.arrays import FloatArray
from dynalyze.errors import InvalidInputError
from dynalyze.spectra.arithmetic import plain_arithmetic
from dynalyze.spectra.history import PER_RECORD, SpectraHistory, concatenate
from dynalyze.spectra.low_rank import Reference, product_values
from dynalyze.spectra.measurement import (
    FINITE,
    SLOW,
    Directions,
    as_array,
    measure,
    padded,
    to_host,
    unpacked,
)
from dynalyze.spectra.options import RecordOptions
from dynalyze.spectra.sources import AttentionSource, Factors, Lookup, expand_heads


@dataclass(frozen=True)
class _Layer:
    source: AttentionSource
    references: tuple[tuple[Reference, Reference], tuple[Reference, Reference]]

    def each(self) -> tuple[Reference, ...]:
        """References of W_K, W_Q, W_V and W_O."""
        return (*self.references[0], *self.references[1])

    @property
    def largest_rank(self) -> list[int]:
        ranks = []
        for left, right in self.references:
            bound = left.factor.shape[2] + right.factor.shape[2]
            ranks.append(min(left.factor.shape[1], right.factor.shape[1], bound))
        return ranks


class Recorder:
    """Measures changes from the weights that `lookup` gives at the start.

    Parameters
    ----------
    sources : sequence of AttentionSource
        Layers to follow.
    lookup : callable
        Gives the stored weight of a name as it was in use at the start, adapters added; these
        tensors must not change afterwards.
    options : RecordOptions
        What to compute.
    """

    def __init__(
        self, sources: Sequence[AttentionSource], lookup: Lookup, options: RecordOptions
    ) -> None:
        self.options = options
        self._layers: list[_Layer] = []
        initial: list[list[FloatArray]] = [[], []]
        with plain_arithmetic():
            for source in sources:
                pairs = self._start(source, lookup).pairs()
                key_query, value_output = (
                    (Reference.of(left), Reference.of(right)) for left, right in pairs
                )
                self._layers.append(_Layer(source, (key_query, value_output)))
                for p, (left, right) in enumerate(pairs):
                    a, b = (expand_heads(f, source.n_heads) for f in (left, right))
                    initial[p].append(as_array(product_values(a, b)))
        widths = [values.shape[1] for part in initial for values in part]
        stacked = np.stack(
            [np.concatenate([padded(v, max(widths)) for v in part]) for part in initial]
        )
        self._directions: list[Directions | None] = [None] * (2 * len(self._layers))
        self._history = self._empty(stacked)
        self._pending: list[dict[str, Any]] = []

    def _start(self, source: AttentionSource, lookup: Lookup) -> Factors:
        factors = source.factors(lookup, adapted=False)
        if self.options.dtype is not None:
            factors = Factors(**{n: f.to(self.options.dtype) for n, f in vars(factors).items()})
        for pair in factors.pairs():
            if not all(bool(heads.isfinite().all()) for heads in pair):
                self._not_finite(source, pair, None)
        return factors

    @property
    def history(self) -> SpectraHistory:
        """All records so far."""
        if self._pending:
            arrays: dict[str, Any] = {
                name: np.stack([record[name] for record in self._pending]) for name in PER_RECORD
            }
            self._history = concatenate(self._history, replace(self._history, **arrays))
            self._pending = []
        return self._history

    def record(self, lookup: Lookup, step: int) -> None:
        """Add a record of the weights that `lookup` gives now.

        Raises
        ------
        InvalidInputError
            If weights are not finite or have another shape than at the start.
        """
        record, self._directions = self._measure_all(lookup, step)
        self._pending.append(record)

    def record_if_moved(self, lookup: Lookup, step: int) -> bool:
        """Add a record unless the spectra are those of the last one; say whether it was added."""
        record, directions = self._measure_all(lookup, step)
        last, names = self.history, ("singular_values", "frobenius_norm")
        if all(np.array_equal(record[name], getattr(last, name)[-1]) for name in names):
            return False
        self._directions = directions
        self._pending.append(record)
        return True

    def _measure_all(
        self, lookup: Lookup, step: int
    ) -> tuple[dict[str, Any], list[Directions | None]]:
        """One record, and the directions that the next one is compared with.

        Everything stays on the device of the weights until one table comes to the host; heads whose
        values converge slowly are known only then, and make a second table.
        """
        measured: list[tuple[Tensor, Directions | None]] = []
        with plain_arithmetic():
            for layer in self._layers:
                pairs = self._read(layer, lookup, step).pairs()
                for p in range(2):
                    measured.append(self._measure(len(measured), pairs[p], None))
            tables = to_host([table for table, _ in measured])
            for slot, table in enumerate(tables):
                if not table[:, FINITE].all():
                    layer = self._layers[slot // 2]
                    pair = self._read(layer, lookup, step).pairs()[slot % 2]
                    self._not_finite(layer.source, pair, step)
            slow = [slot for slot, table in enumerate(tables) if table[:, SLOW].any()]
            for slot in slow:
                pair = self._read(self._layers[slot // 2], lookup, step).pairs()[slot % 2]
                heads = torch.as_tensor(np.flatnonzero(tables[slot][:, SLOW]))
                measured[slot] = self._measure(slot, pair, heads)
            again = to_host([measured[slot][0] for slot in slow])
        for slot, table in zip(slow, again, strict=True):
            tables[slot] = table
        rows: list[list[dict[str, Any]]] = [[], []]
        r, width = self.options.n_directions, self._history.singular_values.shape[-1]
        for slot, table in enumerate(tables):
            largest = self._layers[slot // 2].largest_rank[slot % 2]
            rows[slot % 2].append(unpacked(table, r, width, largest))
        merged = {
            name: np.stack([np.concatenate([row[name] for row in part]) for part in rows])
            for name in rows[0][0]
        }
        return {"steps": np.int64(step), **merged}, [directions for _, directions in measured]

    def _measure(
        self, slot: int, pair: tuple[Tensor, Tensor], repair: Tensor | None
    ) -> tuple[Tensor, Directions | None]:
        """Slots count the products, two to a layer."""
        layer, before = self._layers[slot // 2], self._directions[slot]
        references = layer.references[slot % 2]
        return measure(references, pair, layer.source.n_heads, self.options, before, repair)

    def _read(self, layer: "_Layer", lookup: Lookup, step: int) -> Factors:
        """Factors now, of the type and on the device of those at the start."""
        factors = layer.source.factors(lookup)
        found = {}
        for name, reference in zip(("W_K", "W_Q", "W_V", "W_O"), layer.each(), strict=True):
            heads = getattr(factors, name)
            if heads.shape != reference.factor.shape:
                raise InvalidInputError(
                    f"layer {layer.source.layer!r} has factors of shape {tuple(heads.shape)} at "
                    f"step {step}, but {tuple(reference.factor.shape)} at the start: the "
                    "architecture changed, and with it the meaning of a change."
                )
            if heads.device != reference.factor.device:
                self._move(layer, heads.device)
            found[name] = heads.to(reference.factor.dtype)
        return Factors(**found)

    def _move(self, layer: "_Layer", device: torch.device) -> None:
        """Follow a model to another device, such as by `model.cuda()` after `track`."""
        position = next(i for i, other in enumerate(self._layers) if other is layer)
        for slot in (2 * position, 2 * position + 1):
            kept = self._directions[slot]
            self._directions[slot] = None if kept is None else tuple(t.to(device) for t in kept)
            for reference in layer.references[slot % 2]:
                reference.to(device)

    def _not_finite(
        self, source: AttentionSource, pair: tuple[Tensor, Tensor], step: int | None
    ) -> None:
        when = "at the start" if step is None else f"at step {step}"
        bad = [i for i, factor in enumerate(pair) if not bool(factor.isfinite().all())]
        what = "weights that are NaN or infinite" if bad else "a product that overflows"
        raise InvalidInputError(
            f"layer {source.layer!r} has {what} {when}: training has diverged (lower the learning "
            "rate), or the checkpoint is damaged. Earlier records are kept."
        )

    def _empty(self, initial: FloatArray) -> SpectraHistory:
        sizes = [layer.source.n_heads for layer in self._layers]
        largest = np.concatenate(
            [
                np.tile(layer.largest_rank, (n, 1))
                for layer, n in zip(self._layers, sizes, strict=True)
            ]
        ).T
        n, r = sum(sizes), self.options.n_directions
        width = int(largest.max()) if self.options.n_values is None else self.options.n_values
        return SpectraHistory(
            steps=np.zeros(0, dtype=np.int64),
            layer_names=tuple(layer.source.layer for layer in self._layers),
            notes=tuple(layer.source.note for layer in self._layers),
            layer=np.repeat(np.arange(len(sizes)), sizes),
            head=np.concatenate([np.arange(size) for size in sizes]),
            singular_values=np.zeros((0, 2, n, min(width, int(largest.max())))),
            frobenius_norm=np.zeros((0, 2, n)),
            effective_rank=np.zeros((0, 2, n)),
            effective_rank_bound=np.zeros((0, 2, n)),
            numerical_rank=np.zeros((0, 2, n), dtype=np.int64),
            left_angles=np.zeros((0, 2, n, r)),
            right_angles=np.zeros((0, 2, n, r)),
            largest_rank=largest,
            initial_singular_values=initial,
            rank_rtol=self.options.rank_rtol,
        )

    def directions(self) -> dict[str, Tensor]:
        """Leading directions of the last record, to carry on from with `restore`."""
        return {
            f"{slot}.{name}": tensor
            for slot, kept in enumerate(self._directions)
            for name, tensor in zip(("left", "right", "alive"), kept or (), strict=False)
        }

    def restore(self, history: SpectraHistory, directions: Mapping[str, Tensor]) -> None:
        """Carry on from the history and the directions of an earlier recorder."""
        own = self.history
        if history.layer_names != own.layer_names or not np.array_equal(history.head, own.head):
            raise InvalidInputError(
                f"the history holds the layers {', '.join(history.layer_names)}, but the model has "
                f"{', '.join(own.layer_names)}: resume with the model that was tracked."
            )
        widths = {h.singular_values.shape[-1] for h in (history, own)}
        if len(widths) > 1 or history.left_angles.shape[-1] != own.left_angles.shape[-1]:
            raise InvalidInputError(
                f"the history keeps {history.singular_values.shape[-1]} values and "
                f"{history.left_angles.shape[-1]} directions: resume with the same n_values and "
                "n_directions."
            )
        self._history, self._pending = history, []
        for slot, layer in enumerate(layer for layer in self._layers for _ in range(2)):
            if f"{slot}.left" in directions:
                like = layer.references[slot % 2][0].factor
                left, right = (directions[f"{slot}.{side}"].to(like) for side in ("left", "right"))
                alive = directions[f"{slot}.alive"].to(like.device)
                self._directions[slot] = (left, right, alive)
