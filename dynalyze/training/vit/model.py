"""The vision transformer of the paper's experiments, with W_Q, W_K, W_V, W_O as separate layers."""

from dataclasses import dataclass, fields, replace
from typing import Any

from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import as_positive_int

nn = torch.nn


@dataclass(frozen=True, kw_only=True)
class ViTShape:
    """Sizes of a vision transformer; the defaults are the paper's for CIFAR."""

    image_size: int = 32
    n_channels: int = 3
    n_classes: int = 10
    patch_size: int = 4
    n_layers: int = 6
    n_heads: int = 8
    width: int = 512
    mlp_width: int = 512
    head_width: int = 128

    def __post_init__(self) -> None:
        for field in fields(self):
            number = as_positive_int(getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, number)
        if self.image_size % self.patch_size:
            raise InvalidInputError(
                f"patch_size={self.patch_size} must divide image_size={self.image_size}."
            )

    @classmethod
    def for_images(cls, image_shape: tuple[int, int, int], n_classes: int) -> "ViTShape":
        """Return the default shape for images of (channels, height, width).

        That is `digits` for 8 × 8 images, `imagenet` from 128 × 128 on, and the paper's shape for
        CIFAR in between, fitted to channels, size and classes.
        """
        channels, size, _ = image_shape
        shape = cls.digits() if size == 8 else cls.imagenet() if size >= 128 else cls()
        return replace(shape, image_size=size, n_channels=channels, n_classes=n_classes)

    @classmethod
    def digits(cls) -> "ViTShape":
        """Return a small shape for 8 × 8 grey images, trained in under a minute on one core."""
        return cls(
            image_size=8, n_channels=1, patch_size=2, n_layers=2, n_heads=4, width=64,
            mlp_width=64, head_width=16,
        )  # fmt: skip

    @classmethod
    def imagenet(cls) -> "ViTShape":
        """ViT-B/16, the paper's shape for ImageNet."""
        return cls(
            image_size=224, n_classes=1000, patch_size=16, n_layers=12, n_heads=12, width=768,
            mlp_width=3072, head_width=64,
        )  # fmt: skip


class Attention(nn.Module):
    """Multi-head self-attention (eq. 1) after a layer norm, without biases but for the output's."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        inner = shape.n_heads * shape.head_width
        self.n_heads = shape.n_heads
        self.norm = nn.LayerNorm(shape.width)
        self.W_Q = nn.Linear(shape.width, inner, bias=False)
        self.W_K = nn.Linear(shape.width, inner, bias=False)
        self.W_V = nn.Linear(shape.width, inner, bias=False)
        self.W_O = nn.Linear(inner, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (B, N, width) to tokens."""
        tokens = self.norm(x)
        q, k, v = (
            weight(tokens).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for weight in (self.W_Q, self.W_K, self.W_V)
        )
        heads = nn.functional.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.W_O(heads.transpose(1, 2).flatten(2))
        return out


class VisionTransformer(nn.Module):
    """A vision transformer that classifies by a class token.

    The architecture is that of vit-pytorch's ``ViT``: layer norm before attention and MLP and at
    the end, GELU, learned positions, no dropout.

    Parameters
    ----------
    shape : ViTShape
        Sizes.
    scale : float
        Factor on the initial values of all layers but the token embedding (patch projection,
        positions and class token): the linear layers of attention and MLP and the classifier.
        Gains of layer norms stay 1.
    seed : int
        Seed of the initial weights, of which nothing else depends; the same seed at another scale
        gives the same weights times a factor.
    """

    def __init__(self, shape: ViTShape, *, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise InvalidInputError(f"scale must be positive and finite, got {scale}.")
        self.shape = shape
        n_patches = (shape.image_size // shape.patch_size) ** 2
        n_pixels = shape.n_channels * shape.patch_size**2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Sequential(
                nn.LayerNorm(n_pixels), nn.Linear(n_pixels, shape.width), nn.LayerNorm(shape.width)
            )
            self.class_token = nn.Parameter(torch.randn(shape.width))
            self.positions = nn.Parameter(torch.randn(n_patches + 1, shape.width))
            self.blocks = nn.ModuleList(
                nn.ModuleDict({"attention": Attention(shape), "mlp": _mlp(shape)})
                for _ in range(shape.n_layers)
            )
            self.norm = nn.LayerNorm(shape.width)
            self.classifier = nn.Linear(shape.width, shape.n_classes)
        with torch.no_grad():
            for part in (self.blocks, self.classifier):
                for layer in part.modules():
                    if isinstance(layer, nn.Linear):
                        for parameter in layer.parameters():
                            parameter.mul_(scale)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, channels, size, size) to logits (B, n_classes)."""
        size = self.shape.patch_size
        # Each patch as pixels by channels, row after row
        patches = images.unfold(2, size, size).unfold(3, size, size)  # (B, C, n, n, size, size)
        tokens = self.embedding(patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2))
        first = self.class_token.expand(len(tokens), 1, -1)
        x = torch.cat([first, tokens], 1) + self.positions
        for block in self.blocks:
            parts: Any = block
            x = x + parts["attention"](x)
            x = x + parts["mlp"](x)
        logits: torch.Tensor = self.classifier(self.norm(x)[:, 0])
        return logits


def _mlp(shape: ViTShape) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(shape.width),
        nn.Linear(shape.width, shape.mlp_width),
        nn.GELU(),
        nn.Linear(shape.mlp_width, shape.width),
    )
