"""The vision transformer against vit-pytorch's, with the same weights."""

import pytest

torch = pytest.importorskip("torch")

from dynalyze.training.vit import VisionTransformer, ViTShape  # noqa: E402

pytestmark = pytest.mark.usefixtures("working_torchvision")


def test_same_function_as_vit_pytorch() -> None:
    package = pytest.importorskip("vit_pytorch")
    shape = ViTShape(
        image_size=12, patch_size=4, n_layers=2, n_heads=3, width=24, mlp_width=40, head_width=10
    )
    ours = VisionTransformer(shape).double()
    theirs = package.ViT(
        image_size=12, patch_size=4, num_classes=10, dim=24, depth=2, heads=3, mlp_dim=40,
        dim_head=10,
    ).double()  # fmt: skip
    own = dict(ours.named_parameters())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        theirs.cls_token[0] = own["class_token"]
        theirs.pos_embedding.copy_(own["positions"])
        for ours_at, theirs_at in (("embedding", "to_patch_embedding"),):
            for index in range(3):
                for part in ("weight", "bias"):
                    theirs.get_parameter(f"{theirs_at}.{index + 1}.{part}").copy_(
                        own[f"{ours_at}.{index}.{part}"]
                    )
        for layer in range(2):
            block, theirs_block = f"blocks.{layer}", f"transformer.layers.{layer}"
            theirs.get_parameter(f"{theirs_block}.0.to_qkv.weight").copy_(
                torch.cat([own[f"{block}.attention.W_{x}.weight"] for x in "QKV"])
            )
            for part in ("weight", "bias"):
                pairs = {
                    f"{theirs_block}.0.norm.{part}": f"{block}.attention.norm.{part}",
                    f"{theirs_block}.0.to_out.0.{part}": f"{block}.attention.W_O.{part}",
                    f"{theirs_block}.1.net.0.{part}": f"{block}.mlp.0.{part}",
                    f"{theirs_block}.1.net.1.{part}": f"{block}.mlp.1.{part}",
                    f"{theirs_block}.1.net.4.{part}": f"{block}.mlp.3.{part}",
                }
                for name, source in pairs.items():
                    theirs.get_parameter(name).copy_(own[source])
        for part in ("weight", "bias"):
            theirs.get_parameter(f"transformer.norm.{part}").copy_(own[f"norm.{part}"])
            theirs.get_parameter(f"mlp_head.{part}").copy_(own[f"classifier.{part}"])
        images = torch.randn(3, 3, 12, 12).double()
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-10, atol=1e-11)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
