"""Modules whose weights have familiar names and other meanings: refused, or read as they are."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402

from dynalyze import spectra  # noqa: E402
from dynalyze.errors import (  # noqa: E402
    AttentionLeftOutWarning,
    InvalidInputError,
    UnconfirmedLayoutWarning,
)


class Fused(nn.Module):
    """Attention with a fused weight, whose parts and heads lie as `order` and `heads` say."""

    def __init__(self, order: str = "qkv", heads: str = "first", claimed: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_heads, self.order, self.heads = claimed, order, heads
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        z = self.qkv(x)
        if self.heads == "interleaved":  # per head: its query, its key, its value
            parts = z.reshape(n, t, 4, 3, 6).permute(3, 0, 2, 1, 4)
        elif self.heads == "last":
            parts = z.reshape(n, t, 3, 6, 4).permute(2, 0, 4, 1, 3)
        else:
            parts = z.reshape(n, t, 3, 4, 6).permute(2, 0, 3, 1, 4)
        named = dict(zip(self.order, parts, strict=True))
        out = nn.functional.scaled_dot_product_attention(named["q"], named["k"], named["v"])
        if self.heads == "permuted":
            out = out[:, [2, 0, 3, 1]]
        out = out.transpose(1, 2)
        return self.proj((out.mT if self.heads == "output last" else out).reshape(n, t, d))


class Grouped(nn.Module):
    """Grouped queries: head h reads group h // 2, or h % 2 where the groups are tiled."""

    def __init__(self, *, tiled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_heads, self.tiled = 4, tiled
        self.q_proj, self.o_proj = nn.Linear(24, 24), nn.Linear(24, 24)
        self.k_proj, self.v_proj = nn.Linear(24, 12), nn.Linear(24, 12)

    def forward(self, hidden_states: Tensor) -> Tensor:
        n, t, d = hidden_states.shape
        q, k, v = (
            f(hidden_states).reshape(n, t, -1, 6).transpose(1, 2)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        groups = [0, 1, 0, 1] if self.tiled else [0, 0, 1, 1]
        out = nn.functional.scaled_dot_product_attention(q, k[:, groups], v[:, groups])
        return self.o_proj(out.transpose(1, 2).reshape(n, t, d))


@pytest.mark.parametrize("order", ["kqv", "qvk", "vkq", "kvq", "vqk"])
def test_parts_in_another_order_are_refused(order: str) -> None:
    with pytest.raises(InvalidInputError, match=r"does not keep its heads .* as in layouts=\{"):
        spectra.attention_products(nn.Sequential(Fused(order)))


@pytest.mark.parametrize("heads", ["last", "permuted", "output last"])
def test_heads_in_another_order_are_refused(heads: str) -> None:
    with pytest.raises(InvalidInputError, match=r"'0' \(Fused\) does not keep its heads"):
        spectra.attention_products(nn.Sequential(Fused(heads=heads)))


@pytest.mark.parametrize("claimed", [1, 2, 8, 12])
def test_a_wrong_number_of_heads_is_refused(claimed: int) -> None:
    with pytest.raises(InvalidInputError, match=r"does not keep its heads"):
        spectra.track(nn.Sequential(Fused(claimed=claimed)))


def test_tiled_groups_are_refused_and_repeated_ones_are_read() -> None:
    assert spectra.attention_products(Grouped(tiled=False))[0].note == ""
    with pytest.raises(InvalidInputError, match=r"does not keep its heads"):
        spectra.attention_products(Grouped(tiled=True))


def test_parts_interleaved_per_head_are_read_as_they_are() -> None:
    module = Fused(heads="interleaved")
    (found,) = spectra.attention_products(module)
    assert found.note == ""
    query, key = module.qkv.weight[18:24], module.qkv.weight[24:30]  # of head 1
    torch.testing.assert_close(found.key_query()[1], (key.T @ query).detach())


def test_one_layer_that_is_refused_can_be_left_out() -> None:
    model = nn.Sequential(Fused(), Fused("kqv"))
    assert spectra.track(model, layers="0").history.layer_names == ("0",)


def test_a_declaration_is_believed_with_a_warning_if_the_module_refutes_it() -> None:
    part = spectra.WeightSlice
    wrong = spectra.AttentionLayout(
        part("qkv.weight", 0, 3), part("qkv.weight", 1, 3), part("qkv.weight", 2, 3), "proj.weight"
    )
    right = spectra.AttentionLayout(
        part("qkv.weight", 1, 3), part("qkv.weight", 0, 3), part("qkv.weight", 2, 3), "proj.weight"
    )
    model = nn.Sequential(Fused("kqv"))
    with pytest.warns(UnconfirmedLayoutWarning, match=r"'0' \(Fused\) does not bear out"):
        spectra.attention_products(model, layouts={Fused: wrong})
    assert spectra.attention_products(model, layouts={Fused: right})[0].note == ""


class Noisy(Fused):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, training=True)


def test_a_module_that_draws_random_numbers_in_evaluation_is_read_and_draws_as_before() -> None:
    state = torch.get_rng_state()
    assert spectra.attention_products(Noisy())[0].note == ""
    torch.manual_seed(0)
    Fused()
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    model = Noisy()
    spectra.attention_products(model)
    assert torch.equal(torch.get_rng_state(), after)


class Odd(Fused):
    def forward(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return weights["scale"] * super().forward(x)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Odd()

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, {"scale": torch.ones(24)})


def test_a_module_that_cannot_be_called_is_announced_and_inputs_confirm_it() -> None:
    with pytest.warns(UnconfirmedLayoutWarning, match=r"'attn' \(Odd\) could not .* Pass inputs="):
        (found,) = spectra.attention_products(Around())
    assert "layout not confirmed" in found.note
    (found,) = spectra.attention_products(Around(), inputs=torch.randn(2, 5, 24))
    assert found.note == ""
    history = spectra.track(Around(), inputs={"x": torch.randn(2, 5, 24)}).history
    assert history.notes == ("",)


@pytest.mark.parametrize("count", ["num_heads", "num_v_heads", "n_mamba_heads", "nhead", None])
def test_modules_that_look_like_attention_and_are_not_recognised_are_announced(
    count: str | None,
) -> None:
    class LinearAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head_dim = nn.Linear(4, 4), nn.Linear(4, 4), 2

    class Mixer(LinearAttention):
        pass

    left: Any = Mixer() if count else LinearAttention()
    if count:
        setattr(left, count, 2)
    model: Any = nn.Sequential(Fused(), left)
    with pytest.warns(AttentionLeftOutWarning, match=r"1 modules .* '1' \((Mixer|LinearAtt)"):
        spectra.attention_products(model)
    spectra.attention_products(model, layers="0")
    spectra.attention_products(nn.Sequential(Fused(), Mixer()))


@pytest.mark.parametrize("layers", [3, [1], b"0", {"0": 1}])
def test_layers_that_are_no_patterns_are_refused_in_words(layers: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"layers=.* must be a name or pattern of layers"):
        spectra.track(nn.Sequential(Fused()), layers=layers)


@pytest.mark.parametrize("layouts", [3, [1], {Fused: "qkv"}, {3: None}, "mixer"])
def test_layouts_that_are_no_mapping_of_modules_are_refused_in_words(layouts: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"layouts=.* must map classes of modules"):
        spectra.track(nn.Sequential(Fused()), layouts=layouts)


def test_layers_of_one_class_whose_private_settings_or_buffers_differ_are_asked_each() -> None:
    class Ordered(Fused):
        def __init__(self, interleaved: bool, rows: Tensor) -> None:
            super().__init__()
            self._interleaved = interleaved
            self.register_buffer("rows", rows)

        def forward(self, x: Tensor) -> Tensor:
            z = self.qkv(x)[..., self.rows]
            shape = (4, 3, 6) if self._interleaved else (3, 4, 6)
            z = z.reshape(*x.shape[:2], *shape)
            parts = z.permute(3, 0, 2, 1, 4) if self._interleaved else z.permute(2, 0, 3, 1, 4)
            out = nn.functional.scaled_dot_product_attention(*parts)
            return self.proj(out.transpose(1, 2).reshape(x.shape))

    plain = torch.arange(72)
    apart = plain.reshape(4, 3, 6).transpose(0, 1).flatten()
    layers = [Ordered(False, plain), Ordered(True, plain), Ordered(False, apart)]
    found = spectra.attention_products(nn.Sequential(*layers))
    for layer, products in zip(layers, found, strict=True):
        weight = layer.qkv.weight.detach()
        first = layer is layers[0]
        queries = weight[:24].reshape(4, 6, 24) if first else weight.reshape(4, 3, 6, 24)[:, 0]
        torch.testing.assert_close(products.W_Q, queries.mT)
