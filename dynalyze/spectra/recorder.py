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
from dynalyze.spectra.history import PER_RECORD, SpectraHistory
from dynalyze.spectra.low_rank import product_values
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
from dynalyze.spectra.reduction import Reference
from dynalyze.spectra.sources import AttentionSource, Factors, Lookup, expand_heads

_DIRECTIONS = ("left", "right", "alive")  # names of what `Directions` holds


@dataclass
class _Product:
    """One of the two products of a layer: what its change is measured from."""

    references: tuple[Reference, Reference]
    directions: Directions | None = None  # at the last record

    @classmethod
    def of(cls, pair: tuple[Tensor, Tensor]) -> "_Product":
        return cls((Reference.of(pair[0]), Reference.of(pair[1])))

    @property
    def largest_rank(self) -> int:
        left, right = (reference.factor for reference in self.references)
        return min(left.shape[1], right.shape[1], left.shape[2] + right.shape[2])

    def move(self, device: torch.device) -> None:
        """Follow a model to another device, such as by `model.cuda()` after `track`."""
        for reference in self.references:
            reference.to(device)
        if self.directions is not None:
            self.directions = tuple(tensor.to(device) for tensor in self.directions)


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
        self._sources = tuple(sources)
        self._products: list[_Product] = []  # two of each layer
        initial: list[list[FloatArray]] = [[], []]
        with plain_arithmetic():
            for source in sources:
                for p, pair in enumerate(self._start(source, lookup).pairs()):
                    self._products.append(_Product.of(pair))
                    a, b = (expand_heads(factor, source.n_heads) for factor in pair)
                    initial[p].append(as_array(product_values(a, b)))
        widest = max(values.shape[1] for part in initial for values in part)
        stacked = np.stack([np.concatenate([padded(v, widest) for v in part]) for part in initial])
        sizes = [source.n_heads for source in sources]
        ranks = np.array([product.largest_rank for product in self._products])
        largest = ranks.reshape(-1, 2).T.repeat(sizes, axis=1)
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
        arrays = {name: np.stack([r[name] for r in self._records]) for name in PER_RECORD}
        return SpectraHistory(**{**self._same_at_all, **arrays})

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
        self._add(*self._measure_all(lookup, step))

    def record_if_moved(self, lookup: Lookup, step: int) -> bool:
        """Add a record unless the spectra are those of the last one; say whether it was added."""
        record, directions = self._measure_all(lookup, step)
        last, names = self._records[-1], ("singular_values", "frobenius_norm")
        if all(np.array_equal(record[name], last[name]) for name in names):
            return False
        self._add(record, directions)
        return True

    def _add(self, record: dict[str, Any], directions: Sequence[Directions | None]) -> None:
        self._records.append(record)
        for product, now in zip(self._products, directions, strict=True):
            product.directions = now

    def _measure_all(
        self, lookup: Lookup, step: int
    ) -> tuple[dict[str, Any], list[Directions | None]]:
        """One record, and the directions that the next one is compared with.

        Everything stays on the device of the weights until one table comes to the host; heads whose
        values converge slowly are known only then, and make a second table.
        """
        with plain_arithmetic():
            measured = [
                self._measure(i, pair)
                for layer in range(len(self._sources))
                for i, pair in enumerate(self._read(layer, lookup, step), 2 * layer)
            ]
            tables = to_host([table for table, _ in measured])
            for i, table in enumerate(tables):
                if not table[:, FINITE].all():
                    pair = self._read(i // 2, lookup, step)[i % 2]
                    self._not_finite(self._sources[i // 2], pair, step)
            slow = [i for i, table in enumerate(tables) if table[:, SLOW].any()]
            for i in slow:
                heads = torch.as_tensor(np.flatnonzero(tables[i][:, SLOW]))
                measured[i] = self._measure(i, self._read(i // 2, lookup, step)[i % 2], heads)
            for i, table in zip(slow, to_host([measured[i][0] for i in slow]), strict=True):
                tables[i] = table
        rows = [
            unpacked(table, self.options.n_directions, self._width, product.largest_rank)
            for table, product in zip(tables, self._products, strict=True)
        ]
        record = {
            name: np.stack([np.concatenate([row[name] for row in rows[p::2]]) for p in range(2)])
            for name in rows[0]
        }
        return {"steps": np.int64(step), **record}, [directions for _, directions in measured]

    def _measure(
        self, i: int, pair: tuple[Tensor, Tensor], repair: Tensor | None = None
    ) -> tuple[Tensor, Directions | None]:
        product, n_heads = self._products[i], self._sources[i // 2].n_heads
        return measure(product.references, pair, n_heads, self.options, product.directions, repair)

    def _read(
        self, layer: int, lookup: Lookup, step: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Factors of both products now, of the type and on the device of those at the start."""
        source, products = self._sources[layer], self._products[2 * layer : 2 * layer + 2]
        found = source.factors(lookup)
        names = ("W_K", "W_Q", "W_V", "W_O")
        references = (r for product in products for r in product.references)
        for name, reference in zip(names, references, strict=True):
            heads, start = getattr(found, name), reference.factor
            if heads.shape != start.shape:
                raise InvalidInputError(
                    f"layer {source.layer!r} has factors of shape {tuple(heads.shape)} at step "
                    f"{step}, but {tuple(start.shape)} at the start: the architecture changed, "
                    "and with it the meaning of a change."
                )
            if heads.device != start.device:
                for product in products:
                    product.move(heads.device)
            found = replace(found, **{name: heads.to(start.dtype)})
        return found.pairs()

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
            f"{i}.{name}": tensor
            for i, product in enumerate(self._products)
            for name, tensor in zip(_DIRECTIONS, product.directions or (), strict=False)
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
        for i, product in enumerate(self._products):
            if f"{i}.left" in directions:
                like = product.references[0].factor
                left, right, alive = (directions[f"{i}.{name}"] for name in _DIRECTIONS)
                product.directions = (left.to(like), right.to(like), alive.to(like.device))
