"""Finding the attention layers of a model, and the factors of their products."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Tensor, nn

from dynalyze._core.warn import warn
from dynalyze.errors import AttentionLeftOutWarning, InvalidInputError
from dynalyze.spectra.confirmation import confirmed
from dynalyze.spectra.layouts import AttentionLayout
from dynalyze.spectra.recognition import (
    Candidate,
    Layouts,
    looks_like_attention,
    recognise,
    resolve,
)
from dynalyze.spectra.sources import AttentionSource, Lookup, expand_heads

Layer = TypeVar("Layer", AttentionSource, Candidate)


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
    inputs: Any = None,
) -> tuple[AttentionProducts, ...]:
    """Factors of W_K W_Qᵀ and W_V W_Oᵀ of every attention layer of a model (eq. 1).

    Parameters
    ----------
    model : torch.nn.Module
        Any model; adapters of peft are added to the weights that they adapt.
    layouts : mapping of class or name pattern to AttentionLayout, optional
        Where other attention modules keep their weights; a key is a class, or a pattern such as
        ``"blocks.*.mixer"`` for the module's name. Tried instead of the built-in layouts.
    layers : str or sequence of str, optional
        Names or patterns of the layers wanted; all by default.
    inputs : tensor, tuple, list or mapping, optional
        What the model is called with (a mapping: by keyword), to see with which arguments it calls
        its attention modules; made up for models of timm and Hugging Face. A copy of the model is
        called once; copies of the attention modules confirm, with random weights, that their heads
        are where the layout says.

    Returns
    -------
    tuple of AttentionProducts
        In the order of the model's modules; detached copies, half precision as float32.

    Raises
    ------
    InvalidInputError
        If no attention is found, the forward pass of a module refutes every layout that its weights
        fit, or weights are quantized, packed, sharded, or do not divide into heads.

    Warns
    -----
    UnconfirmedLayoutWarning
        If a module could not be called, or refutes the layout that was declared for it.
    AttentionLeftOutWarning
        If other modules look like attention and are not recognised.
    """
    lookup = model_lookup(model)
    products = []
    for source in find_sources(model, layouts=layouts, layers=layers, inputs=inputs):
        factors = source.factors(lookup)
        expanded = {
            name: expand_heads(heads, source.n_heads).clone()
            for name, heads in vars(factors).items()
        }
        products.append(AttentionProducts(layer=source.layer, note=source.note, **expanded))
    return tuple(products)


def model_lookup(model: nn.Module) -> Lookup:
    """Tensor of a name in `model`, as it is now, also where adapters have been unloaded."""

    def lookup(name: str) -> Tensor:
        for now in (name, name.replace(".base_layer.", ".")):
            try:
                return resolve(model, now)
            except AttributeError:
                continue
        raise InvalidInputError(
            f"the model no longer has the weight {name}: make a new tracker after changing modules."
        )

    return lookup


def find_sources(
    model: nn.Module,
    *,
    layouts: Layouts | None = None,
    layers: str | Sequence[str] | None = None,
    inputs: Any = None,
) -> tuple[AttentionSource, ...]:
    """Attention layers of a model; see `attention_products`."""
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"model={type(model).__name__} must be a torch.nn.Module: for saved weights use "
            "track_checkpoints"
        )
    found = tuple(_walk(model, "", _checked(layouts)))
    if not found:
        raise InvalidInputError(
            f"no attention layer was recognised in {type(model).__name__}: say where its "
            "attention modules keep their weights, as in layouts={MyAttention: "
            'AttentionLayout("wq.weight", "wk.weight", "wv.weight", "wo.weight", "n_heads")}.'
        )
    if layers is None:
        _announce_left_out(model, found)
    return confirmed(model, select_layers(found, layers), inputs)


def _checked(layouts: Any) -> Layouts:
    if layouts is None:
        return {}
    is_layouts = isinstance(layouts, Mapping) and all(
        isinstance(key, str | type) and isinstance(layout, AttentionLayout)
        for key, layout in layouts.items()
    )
    if not is_layouts:
        raise InvalidInputError(
            f"layouts={layouts!r} must map classes of modules, or patterns for their names, to "
            "AttentionLayout, as in layouts={MyAttention: AttentionLayout(...)}"
        )
    return layouts


def _announce_left_out(model: nn.Module, found: Sequence[Candidate]) -> None:
    names = [candidate.name for candidate in found]
    left = [
        (name, module)
        for name, module in model.named_modules()
        if name
        and looks_like_attention(module)
        and not any(f"{other}.".startswith(f"{name}.") for other in names)
        and not any(f"{name}.".startswith(f"{other}.") for other in names)
    ]
    if left:
        name, module = left[0]
        warn(
            f"{len(left)} modules that have heads or are called attention are not recognised as "
            f"softmax attention and left out, the first being {name!r} ({type(module).__name__}): "
            "name the layers wanted in layers=, or say in layouts= where these keep their "
            "weights, if they have W_Q, W_K, W_V and W_O.",
            AttentionLeftOutWarning,
        )


def select_layers(
    sources: Sequence[Layer], layers: str | Sequence[str] | None
) -> tuple[Layer, ...]:
    """Sources or candidates whose layer matches one of the patterns."""
    if layers is None:
        return tuple(sources)
    patterns: Any = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise InvalidInputError(
            f"layers={layers!r} must be a name or pattern of layers, or a list of such, as in "
            'layers="encoder.*"'
        )
    chosen = tuple(s for s in sources if any(fnmatchcase(s.layer, p) for p in patterns))
    if not chosen:
        names = ", ".join(source.layer for source in sources)
        raise InvalidInputError(f"layers={layers!r} matches none of the attention layers: {names}.")
    return chosen


def _walk(module: nn.Module, name: str, layouts: Layouts) -> Iterator[Candidate]:
    candidate = recognise(module, name, layouts)
    if candidate is not None:
        yield candidate
        return
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name, layouts)


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
