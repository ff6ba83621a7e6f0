"""Stored attention weights of a layer, and how its per-head factors are read from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynalyze.errors import InvalidInputError

Lookup = Callable[[str], Tensor]

# Weights of these types are computed with as they are, half precision as float32; whatever else
# is found is an encoding (8-bit floats and integers), not a weight.
_UPCAST = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}


@dataclass(frozen=True)
class Adapter:
    """A low-rank addition scale · B A to a weight of shape (out, in)."""

    a: str  # name of A, (r, in)
    b: str  # name of B, (out, r)
    scale: float


@dataclass(frozen=True)
class StoredWeight:
    """One of W_Q, W_K, W_V, W_O as it is stored: a name, and which part of that weight."""

    name: str
    part: int = 0
    parts: int = 1
    per_head: bool = False
    transposed: bool = False
    # What peft adds now: adapters can be merged, switched and disabled at any time.
    adapted_by: Callable[[], tuple[Adapter, ...]] | None = None

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Adapters in use at this moment."""
        return () if self.adapted_by is None else self.adapted_by()

    def parameter_names(self) -> tuple[str, ...]:
        """Names of the tensors that the weight is computed from."""
        parts = [(adapter.a, adapter.b) for adapter in self.adapters]
        return (self.name, *(name for pair in parts for name in pair))

    def whole(self, lookup: Lookup, *, adapted: bool = True) -> Tensor:
        """Whole stored weight, (out, in), not less than float32.

        The adapters are added unless `adapted` is False: weights that `in_use` gave hold them.
        """
        weight = _float_matrix(self.name, lookup(self.name))
        if self.transposed:
            weight = weight.mT
        for adapter in self.adapters if adapted else ():
            b, a = (_float_matrix(n, lookup(n)).to(weight.dtype) for n in (adapter.b, adapter.a))
            weight = weight + adapter.scale * (b @ a)
        return weight

    def in_use(self, lookup: Lookup) -> Tensor:
        """Stored weight with its adapters added, in the shape that it is stored in."""
        if not self.adapters:
            return lookup(self.name)
        weight = self.whole(lookup)
        return weight.mT if self.transposed else weight

    def read(self, lookup: Lookup, n_heads: int, *, adapted: bool = True) -> Tensor:
        """Rows of this part, (out / parts, in)."""
        weight = self.whole(lookup, adapted=adapted)
        if self.parts == 1:
            return weight
        if weight.shape[0] % (self.parts * n_heads):
            raise InvalidInputError(
                f"{self.name} has {weight.shape[0]} rows, which do not divide into {self.parts} "
                f"parts of {n_heads} heads: check n_heads and the layout."
            )
        if self.per_head:
            by_head = weight.reshape(n_heads, self.parts, -1, weight.shape[1])
            return by_head[:, self.part].flatten(0, 1)
        return weight.chunk(self.parts, 0)[self.part]


def _float_matrix(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise InvalidInputError(
            f"{name} is a {type(value).__name__}, not a tensor: a quantized layer packs its "
            "weight. Analyse the model before quantization, or dequantize it first."
        )
    if hasattr(value, "placements"):
        raise InvalidInputError(
            f"{name} is sharded over processes (a DTensor, as FSDP2 makes): track an unsharded "
            "copy, or pass saved full weights to track_checkpoints."
        )
    if value.dtype not in _UPCAST:
        raise InvalidInputError(
            f"{name} has dtype {value.dtype}: quantized weights do not show the matrix that is "
            "trained. Analyse the model before quantization, or dequantize it first."
        )
    if value.ndim > 2 and all(size == 1 for size in value.shape[2:]):
        value = value.flatten(1)  # a convolution of 1 × 1
    if value.is_meta or value.ndim != 2 or value.numel() == 0:
        raise InvalidInputError(
            f"{name}, of shape {tuple(value.shape)} on device {value.device}, must be a matrix "
            "held in memory: gather sharded or deferred weights first"
        )
    return value.detach().to(_UPCAST[value.dtype])


@dataclass(frozen=True)
class Factors:
    """Per-head factors of one layer; key and value heads may be fewer (grouped queries)."""

    W_Q: Tensor  # (H, d, m)
    W_K: Tensor  # (G, d_key, m)
    W_V: Tensor  # (G, d_value, m_value)
    W_O: Tensor  # (H, d_out, m_value)

    def pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Factors A, B of the products A Bᵀ: (W_K, W_Q), (W_V, W_O)."""
        return (self.W_K, self.W_Q), (self.W_V, self.W_O)


@dataclass(frozen=True)
class AttentionSource:
    """Where the weights of one attention layer are stored."""

    layer: str
    n_heads: int
    query: StoredWeight
    key: StoredWeight
    value: StoredWeight
    output: StoredWeight | None
    note: str = ""  # how the module's logits or output differ from the products, if they do

    @property
    def weights(self) -> tuple[StoredWeight, ...]:
        """Stored weights, without a missing W_O."""
        found = (self.query, self.key, self.value, self.output)
        return tuple(weight for weight in found if weight is not None)

    def parameter_names(self) -> tuple[str, ...]:
        """Names of all tensors that the factors are computed from, each once."""
        names = [name for weight in self.weights for name in weight.parameter_names()]
        return tuple(dict.fromkeys(names))

    def factors(self, lookup: Lookup, *, adapted: bool = True) -> Factors:
        """Read the factors; `lookup` gives the tensor of a name, see `StoredWeight.whole`."""
        query = self.query.read(lookup, self.n_heads, adapted=adapted)
        width = self._divide(query.shape[0], self.n_heads, "query")
        # Rows of a fused key part are cut by the same number of heads as the query's.
        key = self.key.read(lookup, self.n_heads, adapted=adapted)
        n_key_heads = self._divide(key.shape[0], width, "key")
        self._divide(self.n_heads, n_key_heads, "key")
        value = self.value.read(lookup, self.n_heads, adapted=adapted)
        value_width = self._divide(value.shape[0], n_key_heads, "value")
        if self.output is None:
            n_rows = self.n_heads * value_width
            output = torch.eye(n_rows, dtype=value.dtype, device=value.device)
        else:
            output = self.output.read(lookup, 1, adapted=adapted)
        if output.shape[1] != self.n_heads * value_width:
            raise InvalidInputError(
                f"layer {self.layer!r}: the output weight takes {output.shape[1]} inputs, but "
                f"{self.n_heads} heads of width {value_width} give {self.n_heads * value_width}: "
                "check n_heads and the layout."
            )
        return Factors(
            W_Q=_rows(query, self.n_heads),
            W_K=_rows(key, n_key_heads),
            W_V=_rows(value, n_key_heads),
            W_O=output.reshape(-1, self.n_heads, value_width).permute(1, 0, 2),
        )

    def _divide(self, size: int, count: int, which: str) -> int:
        if count < 1 or size % count:
            raise InvalidInputError(
                f"layer {self.layer!r}: the {which} weight of {size} rows does not divide into "
                f"equal heads by {count} (n_heads={self.n_heads}): give the number of heads."
            )
        return size // count


def _rows(weight: Tensor, n_heads: int) -> Tensor:
    return weight.reshape(n_heads, -1, weight.shape[1]).mT


def expand_heads(heads: Tensor, n_heads: int) -> Tensor:
    """Repeat grouped key or value heads so that each query head has its own."""
    times = n_heads // heads.shape[0]
    return heads if times == 1 else heads.repeat_interleave(times, 0)


def stored_weights(sources: Sequence[AttentionSource]) -> dict[str, StoredWeight]:
    """Stored weights of the sources by name, each once: adapters belong to the whole of one."""
    return {weight.name: weight for source in sources for weight in source.weights}


def source_names(sources: Sequence[AttentionSource]) -> list[str]:
    """Names of all tensors that the sources are computed from, each once."""
    return list(dict.fromkeys(name for source in sources for name in source.parameter_names()))
