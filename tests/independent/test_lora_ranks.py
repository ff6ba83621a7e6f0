"""Suggested LoRA ranks against dense decompositions, and in peft itself."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from attention_modules import SeparateProjections  # noqa: E402
from torch import nn  # noqa: E402

from dynalyze import spectra  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("working_torchvision"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class _Block(SeparateProjections):
    def __init__(self) -> None:
        super().__init__(width=12)
        self.mlp = nn.Linear(12, 20)


def _move(weight: torch.Tensor, values: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = len(values)
    left, right = (torch.linalg.qr(torch.randn(n, k, generator=generator))[0] for n in weight.shape)
    with torch.no_grad():
        weight += (left * torch.tensor(values)) @ right.mT


def test_rank_is_the_smallest_that_keeps_the_share() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_Block(), _Block())
    tracker = spectra.track(model)
    changes: dict[str, list[float]] = {
        "0.q_proj": [3.0, 1.2, 0.1],  # 9 of 10.45 is short of 0.89, 10.44 of 10.45 is not
        "0.v_proj": [3.0, 0.5],
        "1.o_proj": [1.0] * 10,
    }
    for seed, (name, values) in enumerate(changes.items()):
        _move(model.get_submodule(name).weight, values, seed)
    found = spectra.suggest_lora_ranks(tracker, share=0.89)
    assert found.rank_pattern == {r"^0\.q_proj": 2, r"^0\.v_proj": 1, r"^1\.o_proj": 9}
    kept = dict(zip(found.modules, found.kept, strict=True))
    np.testing.assert_allclose(kept["0.q_proj"], 10.44 / 10.45, rtol=1e-6)
    np.testing.assert_allclose(kept["1.o_proj"], 0.9, rtol=1e-6)
    assert found.n_parameters == 24 * (2 + 1 + 9)
    capped = spectra.suggest_lora_ranks(tracker, share=0.89, max_rank=4)
    assert capped.rank_pattern[r"^1\.o_proj"] == 4
    held = dict(zip(capped.modules, capped.kept, strict=True))
    np.testing.assert_allclose(held["1.o_proj"], 0.4, rtol=1e-6)
    assert "40.0%" in capped.summary()


def test_named_modules_and_saved_weights_give_the_same() -> None:
    model = nn.Sequential(_Block())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    _move(model[0].mlp.weight, [2.0, 1.0], 0)  # type: ignore[union-attr, arg-type]
    _move(model[0].q_proj.weight, [1.0], 1)  # type: ignore[union-attr, arg-type]
    by_state = spectra.suggest_lora_ranks(before, model.state_dict(), modules="*.mlp", share=1.0)
    by_model = spectra.suggest_lora_ranks(before, model, modules=["*.mlp"], share=0.99)
    assert by_model.rank_pattern == {r"^0\.mlp": 2}
    assert by_state.modules == by_model.modules == ("0.mlp",)
    attention = spectra.suggest_lora_ranks(before, model.state_dict())
    assert attention.rank_pattern == {r"^0\.q_proj": 1}


def _models() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    gpt2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 7, "n_positions": 8}
    llama = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 7,
    }  # fmt: skip
    return {
        "gpt2": transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt2)),
        "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama)),
    }


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_peft_builds_adapters_of_the_suggested_ranks(kind: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = _models()[kind]
    tracker = spectra.track(model)
    projections = [
        name
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj", "c_attn", "attn.c_proj"))
    ]
    for seed, name in enumerate(projections):
        _move(model.get_submodule(name).weight, [1.0] * (1 + seed % 4), seed)
    found = spectra.suggest_lora_ranks(tracker, share=1.0 - 1e-6)
    assert set(found.modules) == set(projections)
    adapted = peft.get_peft_model(model, found.config(lora_dropout=0.0, alpha_over_rank=2.0))
    built = {
        name.removeprefix("base_model.model."): module
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    assert set(built) == set(projections)
    for seed, name in enumerate(projections):
        assert built[name].r["default"] == 1 + seed % 4
        assert built[name].lora_A["default"].weight.shape[0] == 1 + seed % 4
        assert built[name].scaling["default"] == 2.0
    n_trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert n_trainable == found.n_parameters


def test_names_that_end_alike_get_their_own_ranks_and_no_other_module_is_adapted() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.ModuleDict({"q_proj": nn.Linear(12, 12), "encoder": _Block(), "decoder": _Block()})
    model["decoder"].inner = _Block()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wanted = {"q_proj": 1, "encoder.q_proj": 4, "decoder.inner.k_proj": 3}
    for seed, (name, rank) in enumerate(wanted.items()):
        _move(model.get_submodule(name).weight, [1.0] * rank, seed)
    found = spectra.suggest_lora_ranks(before, model, modules=list(wanted), share=0.999)
    adapted = peft.get_peft_model(model, found.config())
    built = {
        name.removeprefix("base_model.model."): module.r["default"]
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    assert built == wanted
