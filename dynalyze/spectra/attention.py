"""Finding the attention layers of a model, or of the names of its saved weights."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial, reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dynalyze.errors import InvalidInputError
from dynalyze.spectra.layouts import (
    BUILT_IN,
    HEAD_COUNT_NAMES,
    WITHOUT_OUTPUT,
    AttentionLayout,
    WeightSlice,
)
from dynalyze.spectra.sources import Adapter, AttentionSource, Lookup, StoredWeight, expand_heads

Layouts: TypeAlias = Mapping[str | type[nn.Module], AttentionLayout]
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_forward_module.")


@dataclass(frozen=True)
class AttentionProducts:
    """Factors of W_K W_Qᵀ and W_V W_Oᵀ of one layer, one per query head.

    In code the logits are X W_Q W_Kᵀ Xᵀ times the module's scale; W_K W_Qᵀ of eq. (1) is the
    transpose, with the same singular values. Biases and layer-norm gains stay outside.
    """

    layer: str
    W_K: Tensor  # (H, d_key, m)
    W_Q: Tensor  # (H, d, m)
    W_V: Tensor  # (H, d_value, m_value)
    W_O: Tensor  # (H, d_out, m_value)
    note: str  # how the module's logits or output differ from the products, or ""

    def key_query(self) -> Tensor:
        """W_K W_Qᵀ, dense, of shape (H, d_key, d)."""
        return self.W_K @ self.W_Q.mT

    def value_output(self) -> Tensor:
        """W_V W_Oᵀ, dense, of shape (H, d_value, d_out)."""
        return self.W_V @ self.W_O.mT


def attention_products(
    model: nn.Module,
    *,
    layouts: Layouts | None = None,
    layers: str | Sequence[str] | None = None,
) -> tuple[AttentionProducts, ...]:
    """Factors of W_K W_Qᵀ and W_V W_Oᵀ of every attention layer of a model (eq. 1).

    Parameters
    ----------
    model : torch.nn.Module
        Any model; adapters of peft are added to the weights that they adapt.
    layouts : mapping of class or name pattern to AttentionLayout, optional
        Where other attention modules keep their weights; a key is a class, or a pattern such as
        ``"blocks.*.mixer"`` for the module's name. Tried before the built-in layouts.
    layers : str or sequence of str, optional
        Names or patterns of the layers wanted; all by default.

    Returns
    -------
    tuple of AttentionProducts
        In the order of the model's modules; detached copies, half precision as float32.

    Raises
    ------
    InvalidInputError
        If no attention is found, or weights are quantized, packed, sharded, or do not divide
        into heads.
    """
    lookup = model_lookup(model)
    products = []
    for source in find_sources(model, layouts=layouts, layers=layers):
        factors = source.factors(lookup)
        expanded = {
            name: expand_heads(heads, source.n_heads).clone()
            for name, heads in vars(factors).items()
        }
        products.append(AttentionProducts(layer=source.layer, note=source.note, **expanded))
    return tuple(products)


def model_lookup(model: nn.Module) -> Lookup:
    """Tensor of a name in `model`, as it is now."""
    return lambda name: _resolve(model, name)


def _resolve(root: Any, name: str) -> Any:
    return reduce(getattr, name.split("."), root)


def find_sources(
    model: nn.Module,
    *,
    layouts: Layouts | None = None,
    layers: str | Sequence[str] | None = None,
) -> tuple[AttentionSource, ...]:
    """Attention layers of a model; see `attention_products`."""
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"model must be a torch.nn.Module, got {type(model).__name__}: for saved weights use "
            "track_checkpoints."
        )
    found = tuple(_walk(model, "", layouts or {}))
    if not found:
        raise InvalidInputError(
            f"no attention layer was recognised in {type(model).__name__}: say where its "
            "attention modules keep their weights, as in layouts={MyAttention: "
            'AttentionLayout("wq.weight", "wk.weight", "wv.weight", "wo.weight", "n_heads")}.'
        )
    return select_layers(found, layers)


def select_layers(
    sources: Sequence[AttentionSource], layers: str | Sequence[str] | None
) -> tuple[AttentionSource, ...]:
    """Sources whose layer matches one of the patterns."""
    if layers is None:
        return tuple(sources)
    patterns = (layers,) if isinstance(layers, str) else tuple(layers)
    chosen = tuple(s for s in sources if any(fnmatchcase(s.layer, p) for p in patterns))
    if not chosen:
        names = ", ".join(source.layer for source in sources)
        raise InvalidInputError(f"layers={layers!r} matches none of the attention layers: {names}.")
    return chosen


def _walk(module: nn.Module, name: str, layouts: Layouts) -> Iterator[AttentionSource]:
    source = _recognise(module, name, layouts)
    if source is not None:
        yield source
        return
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name, layouts)


def _recognise(module: nn.Module, name: str, layouts: Layouts) -> AttentionSource | None:
    for key, layout in layouts.items():
        declared = fnmatchcase(name, key) if isinstance(key, str) else isinstance(module, key)
        if declared:
            source = _match(module, name, layout)
            if source is None:
                raise InvalidInputError(
                    f"layouts[{key!r}] does not fit module {name!r} ({type(module).__name__}): "
                    f"it needs the matrices {', '.join(_names(layout))} and a number of heads."
                )
            return source
    if hasattr(module, "lora_A") and isinstance(module.base_layer, nn.MultiheadAttention):
        # peft 0.21 adds the output adapter twice there, in training as well as when merging.
        raise InvalidInputError(
            f"{display_name(name)} is an nn.MultiheadAttention adapted by peft as a whole, whose "
            "weights in use are not W + s B A in every version of peft: save merged copies of the "
            "model (merge_and_unload) and pass them to track_checkpoints."
        )
    # Differential attention subtracts two softmaxes: its queries are not one per head.
    if hasattr(module, "lambda_q1"):
        return None
    for layout in BUILT_IN + WITHOUT_OUTPUT:
        source = _match(module, name, layout)
        if source is not None:
            return source
    return None


def _names(layout: AttentionLayout) -> list[str]:
    return list(dict.fromkeys(s.weight for s in layout.slices() if s is not None))


def _match(module: nn.Module, name: str, layout: AttentionLayout) -> AttentionSource | None:
    try:
        if any(_resolve(module, weight) is None for weight in _names(layout)):
            return None
        n_heads = _count_heads(module, layout)
    except AttributeError:
        return None
    if n_heads is None:
        return None
    prefix = f"{name}." if name else ""
    transposed = layout.transposed
    if transposed is None:
        transposed = stored_transposed(layout, {w: _resolve(module, w) for w in _names(layout)})
    return _source(
        display_name(name),
        n_heads,
        layout,
        lambda part: _stored(module, prefix, part, transposed),
        _difference(module),
    )


def _source(
    layer: str,
    n_heads: int,
    layout: AttentionLayout,
    store: Callable[[WeightSlice], StoredWeight],
    note: str,
) -> AttentionSource:
    query, key, value, output = layout.slices()
    last = None if output is None else store(output)
    return AttentionSource(layer, n_heads, store(query), store(key), store(value), last, note)


def stored_transposed(layout: AttentionLayout, weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights are stored (in, out): the fused weight's long side tells."""
    fused = next(part for part in layout.slices() if part is not None and part.parts > 1)
    n_rows, n_columns = weights[fused.weight].shape
    return n_columns == fused.parts * n_rows


def _count_heads(module: nn.Module, layout: AttentionLayout) -> int | None:
    if isinstance(layout.n_heads, int):
        return layout.n_heads
    for name in HEAD_COUNT_NAMES if layout.n_heads is None else (layout.n_heads,):
        try:
            count = _resolve(module, name)
        except AttributeError:
            continue
        if isinstance(count, int) and count > 0:
            return count
    return None


def _stored(
    module: nn.Module,
    prefix: str,
    part: WeightSlice,
    transposed: bool,
) -> StoredWeight:
    """One slice as stored, with the adapters that peft put around the layer that holds it."""
    path, _, leaf = part.weight.rpartition(".")
    holder = _resolve(module, path) if path else module
    stored = prefix + part.weight
    adapters: tuple[Adapter, ...] = ()
    if hasattr(holder, "lora_A"):
        stored = f"{prefix}{path}.base_layer.{leaf}"
        adapters = _adapters(holder, f"{prefix}{path}.")
    return StoredWeight(stored, part.part, part.parts, part.per_head, transposed, adapters)


def _adapters(layer: Any, prefix: str) -> tuple[Adapter, ...]:
    if layer.merged:
        return ()
    found = []
    for adapter in layer.active_adapters:
        if adapter not in layer.lora_A:
            continue
        if adapter in layer.lora_variant:
            raise InvalidInputError(
                f"{prefix[:-1]} has an adapter of kind {type(layer.lora_variant[adapter]).__name__}"
                ", which is not of the form W + s B A: merge it into the weights first."
            )
        a, b = f"{prefix}lora_A.{adapter}.weight", f"{prefix}lora_B.{adapter}.weight"
        found.append(Adapter(a, b, float(layer.scaling[adapter])))
    return tuple(found)


def _difference(module: nn.Module) -> str:
    """Say in what the module's logits or output are not the bilinear forms of the products."""
    notes = []
    norms = [n for n in ("q_norm", "k_norm", "query_norm", "key_norm") if _acts(module, n)]
    if norms:
        notes.append(f"{' and '.join(norms)} act between W_Q, W_K and the logits")
    rotary = "position_embeddings" in inspect.signature(module.forward).parameters
    if rotary or any("rotary" in name or name == "rope" for name in vars(module)):
        notes.append("rotary positions: W_K W_Q^T is the logit form at relative position 0 only")
    if _acts(module, "gate"):
        notes.append("a gate acts between W_V and W_O")
    return "; ".join(notes)


def _acts(module: nn.Module, name: str) -> bool:
    return not isinstance(getattr(module, name, None), nn.Identity | None)


def display_name(name: str) -> str:
    """Name of a layer without the prefixes of wrappers (DDP, compile, peft)."""
    wrapped = True
    while wrapped:
        bare = reduce(str.removeprefix, _WRAPPERS, name)
        wrapped, name = bare != name, bare
    return name.removesuffix(".base_layer")


def check_trained(
    model: nn.Module,
    sources: Sequence[AttentionSource],
    *,
    allow_tied: bool = False,
    allow_frozen: bool = False,
) -> None:
    """Refuse weights whose change cannot be followed: all frozen, or one weight in two places.

    Raises
    ------
    InvalidInputError
        If no weight of any source is trained, or two sources share one.
    """
    lookup = model_lookup(model)
    # The weights are kept, so that no other can come to have the same id.
    owners: dict[int, tuple[str, Tensor]] = {}
    any_trained = False
    for source in sources:
        for name in source.parameter_names():
            weight = lookup(name)
            any_trained |= getattr(weight, "requires_grad", False)
            owner, _ = owners.setdefault(id(weight), (source.layer, weight))
            if owner != source.layer and not allow_tied:
                raise InvalidInputError(
                    f"layers {owner!r} and {source.layer!r} share the weight {name}: each change "
                    "would count twice. Choose one with layers=, or pass allow_tied=True."
                )
        weights = [lookup(weight.name) for weight in source.weights]
        if source.key.part == source.query.part and weights[0] is weights[1] and not allow_tied:
            raise InvalidInputError(
                f"layer {source.layer!r} uses {source.query.name} for both W_Q and W_K: they do "
                "not move independently. Pass allow_tied=True to follow their product all the same."
            )
    if not any_trained and not allow_frozen:
        raise InvalidInputError(
            "none of the attention weights is trained (requires_grad is False for all): their "
            "change stays 0. Unfreeze them, add adapters, or pass allow_frozen=True."
        )


def sources_from_names(
    weights: Mapping[str, Sequence[int]], n_heads: int
) -> tuple[AttentionSource, ...]:
    """Attention layers recognised from the names and shapes of saved weights alone.

    Parameters
    ----------
    weights : mapping of str to shape
        All names of the saved state.
    n_heads : int
        Number of query heads of every layer: names and shapes do not tell it.
    """
    found: dict[str, AttentionSource] = {}
    for layout in BUILT_IN:
        names = _names(layout)
        for key in weights:
            if not (key == names[0] or key.endswith(f".{names[0]}")):
                continue
            prefix = key.removesuffix(names[0])
            layer = display_name(prefix.removesuffix("."))
            if layer in found or any(prefix + name not in weights for name in names):
                continue
            transposed = layout.transposed
            if transposed is None:
                shapes = {
                    name: torch.empty(*weights[prefix + name], device="meta") for name in names
                }
                transposed = stored_transposed(layout, shapes)
            store = partial(_stored_by_name, prefix, transposed)
            found[layer] = _source(layer, n_heads, layout, store, note="")
    return tuple(found[layer] for layer in sorted(found, key=natural_order))


def _stored_by_name(prefix: str, transposed: bool, part: WeightSlice) -> StoredWeight:
    return StoredWeight(prefix + part.weight, part.part, part.parts, part.per_head, transposed)


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts layer 2 before layer 10."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]
