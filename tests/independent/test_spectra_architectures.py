"""Where heads are in models of timm and Hugging Face, held against each model's own gradients.

The output of a head depends on W_V and W_O through W_V W_Oᵀ alone if and only if every loss has
W_Vᵀ ∂W_V = (W_Oᵀ ∂W_O)ᵀ (the derivative of L along W_V G, W_O G⁻ᵀ), the law by which the factors
stay balanced; likewise W_Kᵀ ∂W_K = (W_Qᵀ ∂W_Q)ᵀ. Both are taken here by autograd through the whole
model, which shares nothing with the probe of single modules that the library believes. A layer
without a note must fulfil both; where a note says that something acts in between, the identity it
speaks of must fail: notes are neither missing nor false.
"""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402

from dynalyze import spectra  # noqa: E402
from dynalyze.errors import InvalidInputError  # noqa: E402
from dynalyze.spectra.attention import find_sources  # noqa: E402
from dynalyze.spectra.recognition import resolve  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("working_torchvision"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:::(timm|transformers|torch)"),
    pytest.mark.filterwarnings("ignore::dynalyze.errors.AttentionLeftOutWarning"),
]

ROTARY, NORM, COSINE, POOL = "rotary", "act between W_Q, W_K", "cosine", "act on the tokens"
CHANNELS, COUPLED, OTHER = "between channels", "heads act on one another", "W_K W_Q^T alone"

# name: (options, number of layers, what the notes of some of its layers say)
TIMM: dict[str, tuple[dict[str, Any], int, str]] = {
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 2, ""),
    "tiny_vit_5m_224": ({"depths": (1, 1, 2, 1)}, 4, ""),
    "convit_tiny": ({"depth": 3, "img_size": 32, "local_up_to_layer": 2}, 3, ""),
    "eva02_tiny_patch14_224": ({"img_size": 28, "depth": 2}, 2, ROTARY),
    "eva02_base_patch14_224": (
        {"img_size": 28, "depth": 2, "embed_dim": 64, "num_heads": 4}, 2, ROTARY,
    ),
    "xcit_nano_12_p16_224": ({"img_size": 32, "depth": 2}, 4, CHANNELS),
    "swinv2_tiny_window8_256": (
        {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 24, "window_size": 2}, 4, COSINE,
    ),
    "maxxvitv2_nano_rw_256": ({}, 7, ""),
    "vit_small_patch16_dinov3": ({}, 12, ROTARY),
    "davit_tiny": ({}, 12, CHANNELS),
    "mvitv2_tiny": ({}, 10, POOL),
    "hiera_tiny_224": ({}, 12, POOL),
    "samvit_base_patch16_224": ({"depth": 3, "global_attn_indexes": (2,)}, 3, OTHER),
    "swinv2_cr_tiny_224": ({}, 12, COSINE),
    "swin_tiny_patch4_window7_224": ({}, 12, ""),
    "deit_tiny_patch16_224": ({}, 12, ""),
    "deit3_small_patch16_224": ({}, 12, ""),
    "beit_base_patch16_224": ({"depth": 2}, 2, ""),
    "beitv2_base_patch16_224": ({"depth": 2}, 2, ""),
    "cait_xxs24_224": ({"depth": 3}, 5, COUPLED),
    "crossvit_tiny_240": ({}, 21, ""),
    "coat_tiny": ({}, 26, CHANNELS),
    "pit_ti_224": ({}, 12, ""),
    "pvt_v2_b0": ({}, 8, ""),
    "twins_pcpvt_small": ({}, 16, ""),
    "twins_svt_small": ({}, 18, ""),
    "visformer_tiny": ({}, 8, ""),
    "vitamin_small_224": ({}, 14, ""),
    "volo_d1_224": ({}, 16, ""),
    "vit_relpos_small_patch16_224": ({}, 12, ""),
    "vit_so150m2_patch16_reg1_gap_256": ({"depth": 2}, 2, ""),
    "edgenext_xx_small": ({}, 3, CHANNELS),
    "mobilevit_xxs": ({}, 9, ""),
    "coatnet_nano_rw_224": ({}, 9, ""),
    "naflexvit_base_patch16_gap": ({"depth": 2}, 2, ""),
}  # fmt: skip
QUICK = {name for name, (options, _, _) in TIMM.items() if {"img_size", "depths"} & set(options)}

_TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": 40,
}  # fmt: skip
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40}
_SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 40,
}  # fmt: skip
# The default implementation multiplies in single precision only.
_EAGER = {"experts_implementation": "eager"}
_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, **_EAGER}
_LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_HYBRID = {**_GROUPED, "num_hidden_layers": 4}
_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 40, "vocab_size": 40}
HUGGING_FACE: dict[str, tuple[dict[str, Any], int, str]] = {
    "XLM": (_XLM, 2, ""),
    "OlmoHybrid": ({**_HYBRID, **_LINEAR}, 1, NORM),
    "GPTBigCode": ({**_GPT, "multi_query": False}, 2, ""),
    "GPT2": (_GPT, 2, ""),
    "Llama": (_GROUPED, 2, ROTARY),
    "GPTNeoX": (_TEXT, 2, ROTARY),
    "StableLm": ({**_GROUPED, "qk_layernorm": True}, 2, NORM),
    "Persimmon": (_TEXT, 2, NORM),
    "Llama4Text": ({**_GROUPED, **_EXPERTS, "head_dim": 8, "intermediate_size_mlp": 48}, 2, NORM),
    "DINOv3ViT": (_IMAGE, 2, ROTARY),
    "Olmo2": (_GROUPED, 2, NORM),
    "Bert": (_TEXT, 2, ""),
    "T5": (
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 40},
        6, "",
    ),
    "ViT": (_IMAGE, 2, ""),
    "Bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40}, 2, ""),
    "Roberta": (_TEXT, 2, ""),
    "DistilBert": (
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 40}, 2, "",
    ),
    "Albert": ({**_TEXT, "embedding_size": 16}, 1, ""),
    "Electra": ({**_TEXT, "embedding_size": 16}, 2, ""),
    "Bart": (_SEQ2SEQ, 3, ""),
    "MBart": (_SEQ2SEQ, 3, ""),
    "OPT": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
         "vocab_size": 40, "word_embed_proj_dim": 32}, 2, "",
    ),
    "Mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 40}, 2, ""),
    "GPTJ": ({**_GPT, "rotary_dim": 4}, 2, ROTARY),
    "GPTNeo": (
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48,
         "attention_types": [[["global", "local"], 1]], "vocab_size": 40}, 2, "",
    ),
    "Mistral": (_GROUPED, 2, ROTARY),
    "Mixtral": ({**_GROUPED, **_EXPERTS}, 2, ROTARY),
    "Qwen2": (_GROUPED, 2, ROTARY),
    "Qwen3": ({**_GROUPED, "head_dim": 8}, 2, NORM),
    "Gemma": ({**_GROUPED, "head_dim": 8}, 2, ROTARY),
    "Gemma2": ({**_GROUPED, "head_dim": 8}, 2, ROTARY),
    "Gemma3Text": ({**_GROUPED, "head_dim": 8}, 2, NORM),
    "Phi": (_TEXT, 2, ROTARY),
    "Olmoe": ({**_GROUPED, "num_experts": 2, "num_experts_per_tok": 1, **_EAGER}, 2, NORM),
    "Cohere": ({**_GROUPED, "use_qk_norm": True}, 2, NORM),
    "Starcoder2": (_GROUPED, 2, ROTARY),
    "Granite": (_GROUPED, 2, ROTARY),
    "Nemotron": (_GROUPED, 2, ROTARY),
    "SmolLM3": ({**_GROUPED, "pad_token_id": 0}, 2, ROTARY),
    "Glm": ({**_GROUPED, "head_dim": 8, "pad_token_id": 0}, 2, ROTARY),
    "GptOss": ({**_GROUPED, **_EXPERTS, "head_dim": 8}, 2, ROTARY),
    "ModernBert": ({**_TEXT, "pad_token_id": 0}, 2, ROTARY),
    "Flaubert": (_XLM, 2, ""),
    "Qwen3Next": (
        {**_HYBRID, **_LINEAR, **_EAGER, "head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1,
         "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}, 1, "V W_O",
    ),
    "BioGpt": (_TEXT, 2, ""),
    "Esm": ({**_TEXT, "pad_token_id": 0}, 2, ""),
    "DeiT": (_IMAGE, 2, ""),
    "Dinov2": (_IMAGE, 2, ""),
    "Beit": (_IMAGE, 2, ""),
    "Swin": (
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2,
         "image_size": 16, "patch_size": 2}, 2, "",
    ),
    "Swinv2": (
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2,
         "image_size": 16, "patch_size": 2}, 2, COSINE,
    ),
}  # fmt: skip
_QUICK_CONFIGS = 14


def _timm(name: str) -> tuple[nn.Module, dict[str, Any]]:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, **TIMM[name][0])
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if name.startswith("naflex"):
        size = (64, 64)
    height, width = size or model.pretrained_cfg["input_size"][1:]
    return _Image(model), {"image": torch.randn(1, 3, height, width)}


class _Image(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        # The class token of CoaT alone does not see what acts between the others.
        return (
            self.net.forward_features(image) if "CoaT" in str(type(self.net)) else self.net(image)
        )


def _hugging_face(name: str) -> tuple[nn.Module, dict[str, Any]]:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        **HUGGING_FACE[name][0], attn_implementation="eager"
    )
    model = getattr(transformers, f"{name}Model")(config)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    if model.main_input_name == "pixel_values":
        return model, {"pixel_values": torch.randn(1, 3, 16, 16)}
    inputs = {"input_ids": tokens, "use_cache": False}
    return model, inputs | ({"decoder_input_ids": tokens} if config.is_encoder_decoder else {})


def _randomized(model: nn.Module) -> nn.Module:
    """Random weights, no zeros: what starts at zero acts too; biases are outside the products."""
    generator = torch.Generator().manual_seed(4)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                fan_in = parameter[0].numel()
                parameter.copy_(noise / fan_in**0.5)
    return model


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if isinstance(output, dict) else output
    return [t for v in values or () if v is not None for t in _tensors(v)]


def _imbalance(left: Tensor, d_left: Tensor, right: Tensor, d_right: Tensor) -> float:
    """Relative violation of Aᵀ ∂A = (Bᵀ ∂B)ᵀ, summed over the query heads of a group."""
    groups = left.shape[0]
    one = left.mT @ d_left
    other = (right.mT @ d_right).mT
    other = other.reshape(groups, -1, *other.shape[1:]).sum(1)
    # Sizes of the terms before they cancel
    size = left.norm() * d_left.norm() + right.norm() * d_right.norm()
    return float((one - other).norm() / size)


def _held_against_gradients(
    build: Callable[[str], tuple[nn.Module, dict[str, Any]]], name: str, n_layers: int, note: str
) -> None:
    torch.manual_seed(0)
    model, inputs = build(name)
    model = _randomized(model)
    sources = find_sources(model)
    assert len(sources) == n_layers
    inputs = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    generator = torch.Generator().manual_seed(6)
    loss = torch.zeros((), dtype=torch.float64)
    for output in _tensors(model(**inputs)):
        if output.requires_grad:
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            loss = loss + (output * weights).sum()
    loss.backward()
    notes = {source.note for source in sources}
    assert any(note in n for n in notes) if note else notes == {""}, notes
    for source in sources:
        now = source.factors(lambda n: resolve(model, n))
        grads = source.factors(lambda n: resolve(model, n).grad)
        (k, q), (v, o) = now.pairs()
        (dk, dq), (dv, do) = grads.pairs()
        assert min(float(g.norm()) for g in (dk, dq, dv, do)) > 0, source.layer
        # transformers takes softmaxes in single precision, whatever the weights' type.
        logits, output = _imbalance(k, dk, q, dq), _imbalance(v, dv, o, do)
        about_output = "V W_O" in source.note or CHANNELS in source.note
        about_logits = (
            bool(source.note.replace(COUPLED, ""))
            and source.note != ""
            and (
                "W_K" in source.note
                or COSINE in source.note
                or POOL in source.note
                or CHANNELS in source.note
            )
        )
        assert (logits < 1e-6) != about_logits, (source.layer, logits, source.note)
        assert (output < 1e-6) != about_output, (source.layer, output, source.note)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TIMM]
)
def test_heads_and_notes_of_timm(name: str) -> None:
    _held_against_gradients(_timm, name, *TIMM[name][1:])


@pytest.mark.parametrize(
    "name",
    [
        n if i < _QUICK_CONFIGS else pytest.param(n, marks=pytest.mark.slow)
        for i, n in enumerate(HUGGING_FACE)
    ],
)
def test_heads_and_notes_of_hugging_face(name: str) -> None:
    _held_against_gradients(_hugging_face, name, *HUGGING_FACE[name][1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nest_tiny", "gcvit_xxtiny"])
def test_heads_elsewhere_are_refused_with_how_to_declare_them(name: str) -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(InvalidInputError, match=r"does not keep its heads .* as in layouts=\{'"):
        spectra.attention_products(timm.create_model(name))
