"""Multi-head attention with normalised queries and keys, on torch's fused kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class HeadNorm(nn.LayerNorm):
    """LayerNorm over the channels of one head, in the precision of its input.

    Autocast would run LayerNorm in float32 and so write every query and key at twice the size, only for attention to round
    them to bfloat16 again. Statistics are accumulated in float32 either way.
    """

    def forward(self, x: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def attend(
    queries: Float[Tensor, "batch heads n head_dim"],
    keys: Float[Tensor, "batch heads m head_dim"],
    values: Float[Tensor, "batch heads m head_dim"],
) -> Float[Tensor, "batch n dim"]:
    """softmax(q k^T / sqrt(head_dim)) v without a mask, heads joined again."""
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)


def split_heads(x: Float[Tensor, "batch n dim"], num_heads: int) -> Float[Tensor, "batch n heads head_dim"]:
    return x.unflatten(-1, (num_heads, -1))


class SelfAttention(nn.Module):
    """Attention of every token to every token, queries and keys normalised per head (one norm for all heads)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = HeadNorm(dim // num_heads)
        self.k_norm = HeadNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch n dim"]:
        queries, keys, values = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        queries, keys = self.q_norm(queries), self.k_norm(keys)
        return self.proj(attend(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)))
