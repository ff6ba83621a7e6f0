"""From weights to records: the change of each layer's products, measured from a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynalyze._core.arrays import FloatArray
from dynalyze.errors import InvalidInputError
from dynalyze.spectra.arithmetic import plain_arithmetic
from dynalyze.spectra.history import PER_RECORD, SpectraHistory
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
        sizes = [source.n_heads for source in sources]
        largest = np.array([layer.largest_rank for layer in self._layers]).repeat(sizes, axis=0).T
        self._same_at_all: dict[str, Any] = {
            "layer_names": tuple(source.layer for source in sources),
            "notes": tuple(source.note for source in sources),
            "layer": np.repeat(np.arange(len(sizes)), sizes),
            "head": np.concatenate([np.arange(size) for size in sizes]),
            "largest_rank": largest,
            "initial_singular_values": stacked,
            "rank_rtol": options.rank_rtol,
        }
        most = int(largest.max())
        self._width = most if options.n_values is None else min(options.n_values, most)
        self._records: list[dict[str, Any]] = []

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
        """All records so far, of which there must be one."""
        arrays = {name: np.stack([r[name] for r in self._records]) for name in self._records[0]}
        return SpectraHistory(**self._same_at_all, **arrays)

    @property
    def last_step(self) -> int | None:
        """Step of the last record, if there is any."""
        return int(self._records[-1]["steps"]) if self._records else None

    def record(self, lookup: Lookup, step: int) -> None:
        """Add a record of the weights that `lookup` gives now.

        Raises
        ------
        InvalidInputError
            If weights are not finite or have another shape than at the start.
        """
        record, self._directions = self._measure_all(lookup, step)
        self._records.append(record)

    def record_if_moved(self, lookup: Lookup, step: int) -> bool:
        """Add a record unless the spectra are those of the last one; say whether it was added."""
        record, directions = self._measure_all(lookup, step)
        last, names = self._records[-1], ("singular_values", "frobenius_norm")
        if all(np.array_equal(record[name], last[name]) for name in names):
            return False
        self._directions = directions
        self._records.append(record)
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
        r, width = self.options.n_directions, self._width
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
        each = (*layer.references[0], *layer.references[1])
        for name, reference in zip(("W_K", "W_Q", "W_V", "W_O"), each, strict=True):
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

    def directions(self) -> dict[str, Tensor]:
        """Leading directions of the last record, to carry on from with `restore`."""
        return {
            f"{slot}.{name}": tensor
            for slot, kept in enumerate(self._directions)
            for name, tensor in zip(("left", "right", "alive"), kept or (), strict=False)
        }

    def restore(self, history: SpectraHistory, directions: Mapping[str, Tensor]) -> None:
        """Carry on from the history and the directions of an earlier recorder."""
        own, names = self._same_at_all, self._same_at_all["layer_names"]
        if history.layer_names != names or not np.array_equal(history.head, own["head"]):
            raise InvalidInputError(
                f"the history holds the layers {', '.join(history.layer_names)}, but the model has "
                f"{', '.join(names)}: resume with the model that was tracked."
            )
        kept = history.singular_values.shape[-1], history.left_angles.shape[-1]
        if kept != (self._width, self.options.n_directions):
            raise InvalidInputError(
                f"the history keeps {kept[0]} values and {kept[1]} directions: resume with the "
                "same n_values and n_directions."
            )
        self._same_at_all = {name: getattr(history, name) for name in own}
        rows = range(len(history.steps))
        self._records = [{n: getattr(history, n)[i] for n in PER_RECORD} for i in rows]
        for slot, layer in enumerate(layer for layer in self._layers for _ in range(2)):
            if f"{slot}.left" in directions:
                like = layer.references[slot % 2][0].factor
                left, right = (directions[f"{slot}.{side}"].to(like) for side in ("left", "right"))
                alive = directions[f"{slot}.alive"].to(like.device)
                self._directions[slot] = (left, right, alive)
