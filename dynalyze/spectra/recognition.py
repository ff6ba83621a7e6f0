"""Recognising attention: a module by where its weights are, saved weights by their names."""

import re
from collections.abc import Callable, Mapping, Sequence
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
    variants,
)
from dynalyze.spectra.sources import Adapter, AttentionSource, StoredWeight

Layouts: TypeAlias = Mapping[str | type[nn.Module], AttentionLayout]
FROM_NAMES = "layout taken from the names of the saved weights: pass model= to have it confirmed"
_WRAPPERS = ("module.", "base_model.model.", "_forward_module.")


def resolve(root: Any, name: str) -> Any:
    """Attribute of a dotted name, such as ``attn.qkv.weight``."""
    return reduce(getattr, name.split("."), root)


@dataclass(frozen=True)
class Candidate:
    """A module that may be attention, with the layouts that its weights fit, likeliest first."""

    module: nn.Module
    name: str
    sources: tuple[AttentionSource, ...]
    declared: bool  # by the user

    @property
    def layer(self) -> str:
        """Name to show."""
        return display_name(self.name)


def recognise(module: nn.Module, name: str, layouts: Layouts) -> Candidate | None:
    """Layouts that the weights of a module fit, by `layouts` or the built-in ones; None if none.

    Raises
    ------
    InvalidInputError
        If a layout declared for the module does not fit it, or peft has adapted the whole of an
        nn.MultiheadAttention.
    """
    for key, layout in layouts.items():
        declared = fnmatchcase(name, key) if isinstance(key, str) else isinstance(module, key)
        if declared:
            source = _match(module, name, layout)
            if source is None:
                raise InvalidInputError(
                    f"layouts[{key!r}] does not fit module {name!r} ({type(module).__name__}): "
                    f"it needs the matrices {', '.join(_names(layout))} and a number of heads."
                )
            return Candidate(module, name, (source,), declared=True)
    if hasattr(module, "lora_A") and isinstance(module.base_layer, nn.MultiheadAttention):
        # peft 0.21 adds the output adapter twice there, in training as well as when merging.
        raise InvalidInputError(
            f"{display_name(name)} is an nn.MultiheadAttention adapted by peft as a whole, whose "
            "weights in use are not W + s B A in every version of peft: save merged copies of the "
            "model (merge_and_unload) and pass them to track_checkpoints."
        )
    # Differential attention subtracts two softmaxes: its queries are not one per head. A compiled
    # module shows the attributes of the one that it wraps, which is found inside it.
    if hasattr(module, "lambda_q1") or "_orig_mod" in module._modules:
        return None
    matches = (
        _match(module, name, variant)
        for layout in BUILT_IN + WITHOUT_OUTPUT
        for variant in variants(layout)
    )
    sources = tuple(source for source in matches if source is not None)
    return Candidate(module, name, sources, declared=False) if sources else None


def _names(layout: AttentionLayout) -> list[str]:
    return list(dict.fromkeys(s.weight for s in layout.slices() if s is not None))


def _match(module: nn.Module, name: str, layout: AttentionLayout) -> AttentionSource | None:
    try:
        if any(resolve(module, weight) is None for weight in _names(layout)):
            return None
        n_heads = _count_heads(module, layout)
    except AttributeError:
        return None
    if n_heads is None:
        return None
    prefix = f"{name}." if name else ""
    transposed = layout.transposed
    if transposed is None:
        transposed = _stored_transposed(layout, {w: resolve(module, w) for w in _names(layout)})
    return _source(
        display_name(name),
        n_heads,
        layout,
        lambda part: _stored(module, prefix, part, transposed),
    )


def _source(
    layer: str,
    n_heads: int,
    layout: AttentionLayout,
    store: Callable[[WeightSlice], StoredWeight],
    note: str = "",
) -> AttentionSource:
    query, key, value, output = layout.slices()
    last = None if output is None else store(output)
    return AttentionSource(layer, n_heads, store(query), store(key), store(value), last, note)


def _stored_transposed(layout: AttentionLayout, weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights are stored (in, out): the fused weight's long side tells."""
    fused = next(part for part in layout.slices() if part is not None and part.parts > 1)
    n_rows, n_columns = weights[fused.weight].shape
    return n_columns == fused.parts * n_rows


def _count_heads(module: nn.Module, layout: AttentionLayout) -> int | None:
    if isinstance(layout.n_heads, int):
        return layout.n_heads
    for name in HEAD_COUNT_NAMES if layout.n_heads is None else (layout.n_heads,):
        try:
            count = resolve(module, name)
        except AttributeError:
            continue
        if isinstance(count, int) and count > 0:
            return count
    return None


def looks_like_attention(module: nn.Module) -> bool:
    """Whether a module holds matrices, and says that it has heads or is called attention.

    Numbers of heads have many names beside those that layouts go by, such as ``num_v_heads`` of
    linear attention.
    """
    counts = (value for name, value in vars(module).items() if re.search("heads?$", name))
    several = any(isinstance(n, int) and n > 1 for n in counts)
    called = re.search("(Attention|Attn)$", type(module).__name__) is not None
    return (several or called) and sum(weight.ndim >= 2 for weight in module.parameters()) >= 2


def _stored(
    module: nn.Module,
    prefix: str,
    part: WeightSlice,
    transposed: bool,
) -> StoredWeight:
    """One slice as stored, with the adapters that peft put around the layer that holds it."""
    path, _, leaf = part.weight.rpartition(".")
    holder = resolve(module, path) if path else module
    stored = prefix + part.weight
    own = holder._parameters if isinstance(holder, nn.Module) else {}
    if f"{leaf}_orig" in own or f"{leaf}_g" in own:
        raise InvalidInputError(
            f"{stored} is computed anew by each forward pass (torch.nn.utils.weight_norm, "
            "spectral_norm or prune), so that it is behind what the optimizer has changed: use "
            "torch.nn.utils.parametrizations, or make the weights permanent (prune.remove)."
        )
    if hasattr(holder, "base_layer"):
        stored = f"{prefix}{path}.base_layer.{leaf}"
    adapted_by = partial(_adapters, module, path, f"{prefix}{path}.") if path else None
    if adapted_by is not None:
        adapted_by()  # refuses kinds that are not W + s B A
    return StoredWeight(stored, part.part, part.parts, part.per_head, transposed, adapted_by)


def _adapters(module: nn.Module, path: str, prefix: str) -> tuple[Adapter, ...]:
    """What the layer at `path`, which peft may have wrapped by now, adds to its stored weight."""
    layer: Any = resolve(module, path)
    if not hasattr(layer, "base_layer"):
        return ()
    kind = type(layer).__name__
    low_rank = isinstance(getattr(layer, "lora_A", None), nn.ModuleDict)
    variants_of = getattr(layer, "lora_variant", {})
    if layer.disable_adapters:  # what is merged is taken out again at the next call
        in_use = [(name, -1.0) for name in layer.merged_adapters]
    else:
        in_use = [] if layer.merged else [(name, 1.0) for name in layer.active_adapters]
    found = []
    for adapter, sign in in_use:
        if not low_rank or adapter in variants_of:
            kind = type(variants_of[adapter]).__name__ if adapter in variants_of else kind
            raise InvalidInputError(
                f"{prefix[:-1]} has an adapter of kind {kind}, which is not of the form W + s B A: "
                "merge it into the weights first (merge_and_unload)."
            )
        if adapter in layer.lora_A:
            a, b = f"{prefix}lora_A.{adapter}.weight", f"{prefix}lora_B.{adapter}.weight"
            found.append(Adapter(a, b, sign * float(layer.scaling[adapter])))
    return tuple(found)


def display_name(name: str) -> str:
    """Name of a layer without the prefixes of wrappers (DDP, compile, peft)."""
    name = ".".join(part for part in name.split(".") if part != "_orig_mod")
    wrapped = True
    while wrapped:
        bare = reduce(str.removeprefix, _WRAPPERS, name)
        wrapped, name = bare != name, bare
    return name.removesuffix(".base_layer")


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
                transposed = _stored_transposed(layout, shapes)
            store = partial(_stored_by_name, prefix, transposed)
            found[layer] = _source(layer, n_heads, layout, store, note=FROM_NAMES)
    return tuple(found[layer] for layer in sorted(found, key=natural_order))


def _stored_by_name(prefix: str, transposed: bool, part: WeightSlice) -> StoredWeight:
    return StoredWeight(prefix + part.weight, part.part, part.parts, part.per_head, transposed)


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts layer 2 before layer 10."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]
