"""Products and spectra on the real packages: each head against what the module itself computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402

from dynalyze import spectra  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("working_torchvision"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@dataclass
class Probe:
    """An attention module called on its own, and what it computed."""

    tokens: Tensor  # (B, N, d), what W_Q is applied to
    memory: Tensor  # (B, M, d_key), what W_K and W_V are applied to
    weights: Tensor  # (B, H, N, M), softmax of the logits
    output: Tensor  # (B, N, d_out)
    scale: float
    mask: Tensor | None = None


def _tokens(width: int, n: int = 5) -> Tensor:
    return torch.randn(2, n, width, generator=torch.Generator().manual_seed(1)).double()


def _input_of(module: nn.Module, call: Callable[[], Any]) -> tuple[Tensor, Any]:
    seen = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    result = call()
    hook.remove()
    return seen[0], result


def _mha(module: Any) -> Probe:
    x = _tokens(module.embed_dim)
    memory = _tokens(module.kdim, n=4) if module.kdim != module.embed_dim else x
    values = _tokens(module.vdim, n=4) if module.kdim != module.embed_dim else x
    output, weights = module(x, memory, values, need_weights=True, average_attn_weights=False)
    return Probe(x, memory, weights, output, module.head_dim**-0.5)


def _timm(module: Any) -> Probe:
    module.fused_attn = False
    x = _tokens(module.qkv.in_features)
    weights, output = _input_of(module.attn_drop, lambda: module(x))
    return Probe(x, x, weights, output, module.scale)


def _vit_pytorch(module: Any) -> Probe:
    x = _tokens(module.to_qkv.in_features)
    weights = []
    hook = module.attend.register_forward_hook(lambda _, __, out: weights.append(out))
    tokens, output = _input_of(module.to_qkv, lambda: module(x))
    hook.remove()
    return Probe(tokens, tokens, weights[0], output, module.scale)


def _hugging_face(width: int, **inputs: Any) -> Callable[[Any], Probe]:
    def probe(module: Any) -> Probe:
        x = _tokens(width)
        output, weights = module(x, **inputs)[:2]
        return Probe(x, x, weights, output, module.scaling)

    return probe


def _gpt2(module: Any) -> Probe:
    causal = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
    x = _tokens(module.embed_dim)
    if module.is_cross_attention:
        memory = _tokens(module.embed_dim, n=4)
        output, weights = module(x, encoder_hidden_states=memory)
        return Probe(x, memory, weights, output, module.scaling)
    output, weights = module(x, attention_mask=causal[None, None])
    return Probe(x, x, weights, output, module.scaling, causal)


def _llama(module: Any) -> Probe:
    # All tokens at position 0: there the rotation is the identity, and the logits are bilinear.
    x = _tokens(module.config.hidden_size)
    one = torch.ones(2, 5, module.head_dim, dtype=torch.float64)
    output, weights = module(x, position_embeddings=(one, 0 * one), attention_mask=None)
    return Probe(x, x, weights, output, module.scaling)


def _multihead() -> nn.Module:
    return nn.MultiheadAttention(24, 3, batch_first=True)


def _multihead_cross() -> nn.Module:
    return nn.MultiheadAttention(24, 3, kdim=18, vdim=18, batch_first=True)


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 2, 32, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _torchvision() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    return models.VisionTransformer(8, 4, 2, 2, 24, 32)


def _timm_vit(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        timm = pytest.importorskip("timm.models.vision_transformer")
        return timm.VisionTransformer(
            img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=4, **options
        )

    return build


def _vit(name: str, heads: int, dim_head: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        package = pytest.importorskip("vit_pytorch")
        from vit_pytorch.simple_vit import SimpleViT

        kind = SimpleViT if name == "SimpleViT" else package.ViT
        return kind(
            image_size=8, patch_size=4, num_classes=4, dim=24, depth=2, heads=heads,
            mlp_dim=32, dim_head=dim_head,
        )  # fmt: skip

    return build


def _hf(kind: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{kind}Config")(**options, attn_implementation="eager")
        return getattr(transformers, f"{kind}Model")(config)

    return build


_HF_VIT = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
_LLAMA = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "intermediate_size": 32, "vocab_size": 11,
}  # fmt: skip
_GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 11, "n_positions": 8}
_BERT = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32,
    "vocab_size": 11,
}  # fmt: skip
_NEOX = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32,
    "vocab_size": 11, "rotary_pct": 0.25,
}  # fmt: skip

CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Probe], str]] = {
    "nn.MultiheadAttention": (_multihead, _mha, "MultiheadAttention"),
    "nn.MultiheadAttention, kdim": (_multihead_cross, _mha, "MultiheadAttention"),
    "nn.TransformerEncoder": (_encoder, _mha, "MultiheadAttention"),
    "torchvision ViT": (_torchvision, _mha, "MultiheadAttention"),
    "timm ViT": (_timm_vit(), _timm, "Attention"),
    "vit-pytorch ViT": (_vit("ViT", 3, 10), _vit_pytorch, "Attention"),
    "vit-pytorch ViT, no W_O": (_vit("ViT", 1, 24), _vit_pytorch, "Attention"),
    "vit-pytorch SimpleViT": (_vit("SimpleViT", 3, 10), _vit_pytorch, "Attention"),
    "Hugging Face ViT": (_hf("ViT", **_HF_VIT), _hugging_face(24), "ViTAttention"),
    "Hugging Face GPT-2": (_hf("GPT2", **_GPT2), _gpt2, "GPT2Attention"),
    "Hugging Face GPT-2, cross": (
        _hf("GPT2", **_GPT2, add_cross_attention=True), _gpt2, "GPT2Attention",
    ),
    "Hugging Face Llama": (_hf("Llama", **_LLAMA), _llama, "LlamaAttention"),
    "Hugging Face BERT": (_hf("Bert", **_BERT), _hugging_face(24), "BertSelfAttention"),
}  # fmt: skip


def _build(case: str) -> nn.Module:
    torch.manual_seed(0)
    model = CASES[case][0]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


def _move(model: nn.Module, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((size * noise).to(parameter))


@pytest.mark.parametrize("case", CASES)
def test_products_are_the_module_s_own_logits_and_output(case: str) -> None:
    model = _build(case).double()
    modules = [m for m in model.modules() if type(m).__name__ == CASES[case][2]]
    products = spectra.attention_products(model)
    assert len(products) == len(modules) > 0
    for module, product in zip(modules, products, strict=True):
        with torch.no_grad():
            probe = CASES[case][1](module)
        # The code's logits X W_Q W_Kᵀ Xᵀ: the transpose of the paper's product.
        logits = probe.tokens[:, None] @ product.key_query().mT @ probe.memory[:, None].mT
        if probe.mask is not None:
            logits = logits + probe.mask
        weights = torch.softmax(probe.scale * logits, -1)
        # transformers takes the softmax in single precision, whatever the weights' type.
        tolerance = 1e-6 if case.startswith("Hugging Face") else 1e-12
        torch.testing.assert_close(weights, probe.weights, rtol=tolerance, atol=tolerance)
        if case != "Hugging Face BERT":
            heads = weights @ probe.memory[:, None] @ product.value_output()
            torch.testing.assert_close(heads.sum(1), probe.output, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("spectrum", ["leading", "full"])
@pytest.mark.parametrize("case", CASES)
def test_tracked_spectra_equal_a_dense_svd_per_head(case: str, spectrum: str) -> None:
    model = _build(case).float()
    start = spectra.attention_products(model)
    tracker = spectra.track(model, n_values=5, spectrum=spectrum)
    _move(model, 0.02, seed=2)
    tracker.step()
    history = tracker.history
    end = spectra.attention_products(model)
    for layer, (before, after) in enumerate(zip(start, end, strict=True)):
        for p, name in enumerate(("key_query", "value_output")):
            then = getattr(_double(before), name)()
            change = getattr(_double(after), name)() - then
            values = torch.linalg.svdvals(change).numpy()
            heads = history.layer == layer
            largest = values[:, :1]
            np.testing.assert_array_less(
                np.abs(history.singular_values[1, p, heads] - values[:, :5]) / largest, 1e-6
            )
            ranks = (values**2).sum(-1) / largest[:, 0] ** 2
            np.testing.assert_allclose(history.stable_rank[1, p, heads], ranks, rtol=2e-6)
            initial = torch.linalg.svdvals(then).numpy()[
                :, : history.initial_singular_values.shape[-1]
            ]
            np.testing.assert_allclose(
                history.initial_singular_values[p, heads], initial, atol=1e-6 * initial.max()
            )


def _double(product: Any) -> Any:
    factors = {k: getattr(product, k).double() for k in ("W_K", "W_Q", "W_V", "W_O")}
    return spectra.AttentionProducts(product.layer, note="", **factors)
