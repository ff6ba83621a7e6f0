"""Where attention modules keep W_Q, W_K, W_V and W_O: a declaration per kind of module."""

from dataclasses import dataclass, replace

from dynalyze.errors import InvalidInputError


@dataclass(frozen=True)
class WeightSlice:
    """One of several matrices stored as a single weight.

    Parameters
    ----------
    weight : str
        Name of the weight relative to the attention module, such as ``"qkv.weight"``.
    part, parts : int
        The matrix is part number `part` (from 0) of `parts` equal parts of the output axis.
    per_head : bool
        Whether the parts alternate head by head (GPT-NeoX) instead of following one another.
    """

    weight: str
    part: int = 0
    parts: int = 1
    per_head: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.part < self.parts:
            raise InvalidInputError(
                f"part={self.part!r} must lie in 0 … {self.parts - 1} for {self.weight!r} of "
                f"parts={self.parts!r}: number the parts from 0"
            )


@dataclass(frozen=True)
class AttentionLayout:
    """How one kind of attention module stores its weights.

    Parameters
    ----------
    query, key, value : str or WeightSlice
        Names of the weights relative to the module, such as ``"q_proj.weight"``.
    output : str or WeightSlice, optional
        The weight after the heads are put side by side; None: there is none, W_O = 1.
    n_heads : int or str, optional
        Number of query heads, or the (dotted) name of the module's attribute that holds it;
        None: the usual names are tried. Key and value heads are counted from the shapes.
    transposed : bool, optional
        Whether weights are stored (in, out) rather than as torch.nn.Linear does, (out, in);
        None: the shape of the fused query weight tells.
    """

    query: str | WeightSlice
    key: str | WeightSlice
    value: str | WeightSlice
    output: str | WeightSlice | None = None
    n_heads: int | str | None = None
    transposed: bool | None = False

    def slices(self) -> tuple[WeightSlice, WeightSlice, WeightSlice, WeightSlice | None]:
        """W_Q, W_K, W_V and W_O as slices."""
        query, key, value = (
            w if isinstance(w, WeightSlice) else WeightSlice(w)
            for w in (self.query, self.key, self.value)
        )
        output = WeightSlice(self.output) if isinstance(self.output, str) else self.output
        return query, key, value, output


def _fused(
    weight: str, output: str | None, *, transposed: bool | None = False, per_head: bool = False
) -> AttentionLayout:
    q, k, v = (WeightSlice(weight, part, 3, per_head) for part in range(3))
    return AttentionLayout(q, k, v, output, transposed=transposed)


def _apart(query: str, key: str, value: str, output: str) -> AttentionLayout:
    q, k, v, o = (f"{name}.weight" for name in (query, key, value, output))
    return AttentionLayout(q, k, v, o)


def variants(layout: AttentionLayout) -> tuple[AttentionLayout, ...]:
    """The layout, and where three parts are fused the one with the parts in the other order."""
    query, key, value = layout.query, layout.key, layout.value
    if not (
        isinstance(query, WeightSlice)
        and isinstance(key, WeightSlice)
        and isinstance(value, WeightSlice)
        and query.parts == key.parts == value.parts == 3
    ):
        return (layout,)
    query, key, value = (replace(w, per_head=not w.per_head) for w in (query, key, value))
    return layout, replace(layout, query=query, key=key, value=value)


BUILT_IN: tuple[AttentionLayout, ...] = (
    # torch.nn.MultiheadAttention, torch.nn.TransformerEncoder, torchvision
    _fused("in_proj_weight", "out_proj.weight"),
    AttentionLayout("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"),
    # timm, and the vision models written after it
    _fused("qkv.weight", "proj.weight"),
    # vit-pytorch: ViT, SimpleViT
    _fused("to_qkv.weight", "to_out.0.weight"),
    _fused("to_qkv.weight", "to_out.weight"),
    # Hugging Face: Llama and most decoders, ViT; CLIP, BART, OPT
    _apart("q_proj", "k_proj", "v_proj", "o_proj"),
    _apart("q_proj", "k_proj", "v_proj", "out_proj"),
    # Qwen3-Next: each head's queries, then its gate
    AttentionLayout(
        WeightSlice("q_proj.weight", 0, 2, per_head=True),
        "k_proj.weight",
        "v_proj.weight",
        "o_proj.weight",
    ),
    # GPT-2 (Conv1D) and nanoGPT (Linear); the cross attention of GPT-2
    AttentionLayout(
        "q_attn.weight",
        WeightSlice("c_attn.weight", 0, 2),
        WeightSlice("c_attn.weight", 1, 2),
        "c_proj.weight",
        transposed=None,
    ),
    _fused("c_attn.weight", "c_proj.weight", transposed=None),
    # BERT and its relatives; ViT as saved on the Hugging Face hub
    _apart("self.query", "self.key", "self.value", "output.dense"),
    _apart("attention.query", "attention.key", "attention.value", "output.dense"),
    # GPT-NeoX, Pythia
    _fused("query_key_value.weight", "dense.weight", per_head=True),
    # Phi; DistilBERT; ALBERT; MPT and ModernBERT
    _apart("q_proj", "k_proj", "v_proj", "dense"),
    _apart("q_lin", "k_lin", "v_lin", "out_lin"),
    _apart("query", "key", "value", "dense"),
    _fused("Wqkv.weight", "out_proj.weight"),
    _fused("Wqkv.weight", "Wo.weight"),
    # timm: class attention, CrossViT; EVA; Twins, PVT, VOLO; gated positions of ConViT
    _apart("q", "k", "v", "proj"),
    _apart("q_proj", "k_proj", "v_proj", "proj"),
    _apart("wq", "wk", "wv", "proj"),
    _apart("query", "key", "value", "proj"),
    AttentionLayout(
        "q.weight", WeightSlice("kv.weight", 0, 2), WeightSlice("kv.weight", 1, 2), "proj.weight"
    ),
    AttentionLayout(
        WeightSlice("qk.weight", 0, 2), WeightSlice("qk.weight", 1, 2), "v.weight", "proj.weight"
    ),
    # diffusers, T5, and the ViT of dynalyze.training
    _apart("to_q", "to_k", "to_v", "to_out.0"),
    _apart("q", "k", "v", "o"),
    _apart("W_Q", "W_K", "W_V", "W_O"),
)

# vit-pytorch with one head as wide as the model has no output weight. Such a layout also matches
# a part of other modules, so it is tried last, and only in models, never on names alone.
WITHOUT_OUTPUT: tuple[AttentionLayout, ...] = (_fused("to_qkv.weight", None),)

HEAD_COUNT_NAMES = (
    "num_heads",
    "n_heads",
    "heads",
    "num_attention_heads",
    "n_head",
    "self.num_attention_heads",
    "attention.num_attention_heads",
    "config.num_attention_heads",
)
