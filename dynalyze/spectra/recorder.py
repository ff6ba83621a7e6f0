"""From weights to records: the change of each layer's products, measured from a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynalyze._typing import FloatArray
from dynalyze.errors import InvalidInputError
from dynalyze.spectra.arithmetic import plain_arithmetic
from dynalyze.spectra.history import (
    PER_RECORD,
    SpectraHistory,
    concatenate,
    effective_rank_bounds,
)
from dynalyze.spectra.low_rank import (
    Leading,
    Reduced,
    Reference,
    change_core,
    entry_scale,
    full_vectors,
    leading_part,
    principal_angles,
    product_values,
)
from dynalyze.spectra.options import RecordOptions
from dynalyze.spectra.sources import AttentionSource, Factors, Lookup


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
        Gives the tensor of a name, at the start; these tensors must not change afterwards.
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
                pairs = self._read(source, lookup, step=None).pairs()
                key_query, value_output = (
                    (Reference.of(left), Reference.of(right)) for left, right in pairs
                )
                self._layers.append(_Layer(source, (key_query, value_output)))
                for p, (left, right) in enumerate(pairs):
                    n_heads = source.n_heads
                    a, b = (f.repeat_interleave(n_heads // f.shape[0], 0) for f in (left, right))
                    initial[p].append(_array(product_values(a, b)))
        widths = [values.shape[1] for part in initial for values in part]
        stacked = np.stack([_stack(part, max(widths)) for part in initial])
        self._directions: list[tuple[Tensor, Tensor] | None] = [None] * (2 * len(self._layers))
        self._alive: list[Tensor | None] = [None] * (2 * len(self._layers))
        self._history = self._empty(stacked)
        self._pending: list[dict[str, Any]] = []

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
        rows: list[list[dict[str, FloatArray]]] = [[], []]
        with plain_arithmetic():
            for position, layer in enumerate(self._layers):
                pairs = self._read(layer.source, lookup, step).pairs()
                for p in range(2):
                    rows[p].append(self._measure(2 * position + p, pairs[p], step))
        merged = {
            name: np.stack([np.concatenate([row[name] for row in part]) for part in rows])
            for name in rows[0][0]
        }
        self._pending.append({"steps": np.int64(step), **merged})

    def _measure(self, slot: int, pair: tuple[Tensor, Tensor], step: int) -> dict[str, FloatArray]:
        """Measure one product of one layer; slots count them, two to a layer."""
        options, layer, p = self.options, self._layers[slot // 2], slot % 2
        n_heads, references = layer.source.n_heads, layer.references[p]
        left, right = references[0].reduce(pair[0]), references[1].reduce(pair[1])
        core = change_core(left.expand(n_heads), right.expand(n_heads))
        scale = entry_scale(core)
        if not bool(scale.isfinite().all()):
            self._not_finite(layer.source, pair, step)
        n_wanted = None if options.spectrum == "full" else options.n_values
        leading = leading_part(core, n_wanted, options.n_directions, scale)
        values, frobenius = _array(leading.values), _array(leading.frobenius)
        low, high = effective_rank_bounds(values, frobenius, np.asarray(layer.largest_rank[p]))
        alive = leading.values > options.rank_tolerance * leading.values[:, :1]
        angles = self._turn(slot, pair, (left, right), leading, alive.sum(-1))
        width = self._history.singular_values.shape[-1]
        return {
            "singular_values": _pad(values, width),
            "frobenius_norm": frobenius,
            "effective_rank": low,
            "effective_rank_bound": high,
            "numerical_rank": alive.sum(-1).cpu().numpy(),
            "left_angles": angles[0],
            "right_angles": angles[1],
        }

    def _turn(
        self,
        slot: int,
        pair: tuple[Tensor, Tensor],
        reduced: tuple[Reduced, Reduced],
        leading: Leading,
        n_alive: Tensor,
    ) -> tuple[FloatArray, FloatArray]:
        """Principal angles of the leading directions with those of the previous record."""
        layer, n_directions = self._layers[slot // 2], self.options.n_directions
        shape = (layer.source.n_heads, n_directions)
        angles = (np.full(shape, np.nan), np.full(shape, np.nan))
        if not n_directions:
            return angles
        references = layer.references[slot % 2]
        now = full_vectors(
            leading, (references[0], pair[0], reduced[0]), (references[1], pair[1], reduced[1])
        )
        n_alive = n_alive.clamp_max(now[0].shape[-1])
        before, n_before = self._directions[slot], self._alive[slot]
        if before is not None and n_before is not None:
            common = torch.minimum(n_before, n_alive)
            for r in range(1, int(common.max()) + 1):
                heads = common == r
                if bool(heads.any()):
                    where = heads.cpu().numpy()
                    for side in range(2):
                        found = principal_angles(
                            before[side][heads, :, :r], now[side][heads, :, :r]
                        )
                        angles[side][where, :r] = _array(found)
        self._directions[slot], self._alive[slot] = now, n_alive
        return angles

    def _read(self, source: AttentionSource, lookup: Lookup, step: int | None) -> Factors:
        factors = source.factors(lookup)
        dtype = self.options.dtype
        if dtype is not None:
            factors = Factors(**{name: heads.to(dtype) for name, heads in vars(factors).items()})
        if step is None:
            for pair in factors.pairs():
                for heads in pair:
                    if not bool(heads.isfinite().all()):
                        self._not_finite(source, pair, step)
            return factors
        layer = next(layer for layer in self._layers if layer.source is source)
        for pair, references in zip(factors.pairs(), layer.references, strict=True):
            for heads, reference in zip(pair, references, strict=True):
                if heads.shape != reference.factor.shape:
                    raise InvalidInputError(
                        f"layer {source.layer!r} has factors of shape {tuple(heads.shape)} at step "
                        f"{step}, but {tuple(reference.factor.shape)} at the start: the "
                        "architecture changed, and with it the meaning of a change."
                    )
        return factors

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
            rank_tolerance=self.options.rank_tolerance,
        )

    def directions(self) -> dict[str, Tensor]:
        """Leading directions of the last record, to carry on from with `restore`."""
        state = {}
        for slot, (vectors, alive) in enumerate(zip(self._directions, self._alive, strict=True)):
            if vectors is not None and alive is not None:
                state[f"{slot}.left"], state[f"{slot}.right"] = vectors
                state[f"{slot}.alive"] = alive
        return state

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
                self._directions[slot] = (left, right)
                self._alive[slot] = directions[f"{slot}.alive"].to(like.device)


def _array(tensor: Tensor) -> FloatArray:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _pad(values: FloatArray, width: int) -> FloatArray:
    values = values[:, :width]
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


def _stack(parts: list[FloatArray], width: int) -> FloatArray:
    return np.concatenate([_pad(part, width) for part in parts])
