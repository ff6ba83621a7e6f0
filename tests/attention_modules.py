"""Attention modules written by hand, for tests of what finds their weights."""

from torch import Tensor, nn


class SeparateProjections(nn.Module):
    """Multi-head self-attention with four Linear layers and no other weights."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.num_heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (
            f(x).reshape(n, t, self.num_heads, -1).transpose(1, 2)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o_proj(heads.transpose(1, 2).reshape(n, t, d))
