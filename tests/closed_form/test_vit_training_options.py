"""Learning rates of the schedule, and the shapes and scales of the vision transformer."""

import math

import pytest

torch = pytest.importorskip("torch")

from dynalyze.training.vit import VisionTransformer, ViTOptions, ViTShape  # noqa: E402


def test_warm_up_then_cosine_cycles() -> None:
    options = ViTOptions(lr=0.5, n_epochs=10, warmup_epochs=2, n_cycles=2)
    rates = [options.lr_at(step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.05 * (k + 1) for k in range(10)])
    half = [0.25 * (1 + math.cos(math.pi * k / 20)) for k in range(20)]
    assert rates[10:] == pytest.approx(half + half)


def test_without_warm_up_the_first_rate_is_the_full_one() -> None:
    options = ViTOptions(lr=0.5, n_epochs=4, warmup_epochs=0)
    assert options.lr_at(0, 3) == 0.5
    assert options.lr_at(6, 3) == pytest.approx(0.25)


def test_the_paper_s_shape_has_the_paper_s_weights() -> None:
    model = VisionTransformer(ViTShape())
    assert sum(p.numel() for p in model.parameters()) == 15_816_298
    attention = model.blocks[5]["attention"]  # type: ignore[index]
    assert attention.W_K.weight.shape == (8 * 128, 512)
    assert attention.W_O.weight.shape == (512, 8 * 128)


def test_scale_multiplies_all_layers_but_the_token_embedding() -> None:
    full, small = (VisionTransformer(ViTShape.digits(), scale=s, seed=4) for s in (1.0, 0.125))
    for name, weight in full.state_dict().items():
        linear = name.startswith(("blocks", "classifier")) and "norm" not in name
        linear = linear and not name.endswith(("mlp.0.weight", "mlp.0.bias"))
        factor = 0.125 if linear else 1.0
        torch.testing.assert_close(small.state_dict()[name], factor * weight, rtol=0, atol=0)
    other = VisionTransformer(ViTShape.digits(), seed=5)
    assert not torch.equal(other.classifier.weight, full.classifier.weight)


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    VisionTransformer(ViTShape.digits(), seed=9)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
