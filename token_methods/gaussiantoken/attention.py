"""Deformable attention (Zhu et al. 2021, arXiv 2010.04159) over one feature map, and the two layers GaussianToken builds with it.

In pure torch, where `grid_sample` reads the map; fused on CUDA where Triton is installed. Positions are (x, y); a reference point of
(0, 0) is the map's upper left corner, (1, 1) its lower right one. Parameter names are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from token_methods.gaussiantoken.group_norm import HAS_TRITON
from token_methods.gaussiantoken.layer_norm import LayerNorm


def sine_positions(height: int, width: int, dim: int) -> Float[Tensor, "cells dim"]:
    """Sine embedding of every cell's row (first half of the channels) and column, row-major."""

    def along(cells: int) -> Tensor:
        positions = (torch.arange(cells) + 0.5) / (cells + 1e-6) * (2 * math.pi)
        frequencies = 10000 ** (-2 * (torch.arange(dim // 2) // 2) / (dim // 2))
        angles = positions[:, None] * frequencies
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)

    rows = along(height)[:, None].expand(-1, width, -1)
    columns = along(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def cell_centres(height: int, width: int) -> Float[Tensor, "cells 2"]:
    """Reference point of every cell of a map, row-major."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def mlp(dim: int, dropout: float) -> nn.Sequential:
    """The MLP of both layers; its parameters are at 0 and 3."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim), nn.Dropout(dropout))


class DeformableAttention(nn.Module):
    """Every query reads the map at a few points around its reference point and weighs them, per head.

    Besides the points that it chooses, a head reads one at a fixed offset from the reference.
    """

    def __init__(self, dim: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        # Meant to be zero, but the release's initialisation of everything around it makes it random, and then it is not trained.
        self.fixed_offsets = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 2)), requires_grad=False)
        self.sampling_offsets = nn.Linear(dim, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * (num_points + 1))
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset()

    def reset(self) -> None:
        """Point i of a head starts i cells away, in a direction of the head's own; all weigh the same."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())

    def forward(
        self,
        queries: Float[Tensor, "batch queries dim"],
        references: Float[Tensor, "*batch queries 2"],
        values: Float[Tensor, "batch cells dim"],
        map_size: tuple[int, int],
    ) -> Float[Tensor, "batch queries dim"]:
        """
        Args:
            queries: what looks.
            references: where it looks, 0..1 inside the map.
            values: what is looked at: the map's cells, row-major.
            map_size: its height and width, in cells.
        """
        seen = _reader(values, self.num_heads)(
            self.value_proj(values),
            references,
            self.fixed_offsets,
            self.sampling_offsets(queries),
            self.attention_weights(queries),
            self.num_heads,
            map_size,
        )
        return self.output_proj(seen)


def _reader(values: Tensor, num_heads: int) -> Callable[..., Tensor]:
    """`read_map`, or on CUDA the kernels that do the same at once."""
    if not (values.is_cuda and HAS_TRITON):
        return read_map
    from token_methods.gaussiantoken.attention_triton import fits, fused_read_map

    return fused_read_map if fits(values, num_heads) else read_map


def read_map(
    values: Float[Tensor, "batch cells dim"],
    references: Float[Tensor, "*batch queries 2"],
    fixed_offset: Float[Tensor, "1 2"],
    offsets: Float[Tensor, "batch queries _"],
    logits: Float[Tensor, "batch queries _"],
    num_heads: int,
    map_size: tuple[int, int],
) -> Float[Tensor, "batch queries dim"]:
    """What each head of each query reads: cells between which its points lie, interpolated, zero outside the map, and weighed.

    Args:
        values: the map's cells, row-major; each head reads its own channels.
        references: 0..1 inside the map.
        fixed_offset: of the first point of all heads, in cells.
        offsets: of the other points, in cells: by head, point, (x, y).
        logits: of the points' weights: by head, point.
        num_heads: how many.
        map_size: height and width, in cells.
    """
    height, width = map_size
    heads = (num_heads, -1)
    planes = values.mT.unflatten(1, heads).flatten(0, 1).unflatten(-1, map_size)
    weights = logits.unflatten(-1, heads).softmax(dim=-1)
    chosen = offsets.unflatten(-1, (*heads, 2))
    fixed = fixed_offset.expand(*chosen.shape[:3], 1, 2)
    cells = torch.cat([chosen.new_full((1,), width), chosen.new_full((1,), height)])
    points = 2 * (references[..., None, None, :] + torch.cat([fixed, chosen], dim=3) / cells) - 1
    read = F.grid_sample(planes, points.transpose(1, 2).flatten(0, 1), padding_mode="zeros", align_corners=False)
    mixed = (read * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(dim=-1)
    return mixed.unflatten(0, (-1, num_heads)).flatten(1, 2).mT


class EncoderLayer(nn.Module):
    """The cells of a map look at the map, then an MLP; norms come after the residual sums."""

    def __init__(self, dim: int, num_heads: int, num_points: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, num_heads, num_points)
        self.mlp = mlp(dim, dropout)
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        xavier_mlp_(self.mlp)

    def forward(
        self,
        cells: Float[Tensor, "batch cells dim"],
        positions: Float[Tensor, "cells dim"],
        references: Float[Tensor, "cells 2"],
        map_size: tuple[int, int],
    ) -> Float[Tensor, "batch cells dim"]:
        cells = self.norm1(cells + self.dropout(self.self_attn(cells + positions, references, cells, map_size)))
        return self.norm2(cells + self.mlp(cells))


class DecoderLayer(nn.Module):
    """Gaussians look at each other, then at the map, then an MLP; norms come after the residual sums."""

    def __init__(self, dim: int, num_heads: int, num_points: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.cross_attn = DeformableAttention(dim, num_heads, num_points)
        self.mlp = mlp(dim, dropout)
        self.norm1, self.norm2, self.norm3 = LayerNorm(dim), LayerNorm(dim), LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.self_attn.out_proj.weight)
        xavier_mlp_(self.mlp)

    def forward(
        self,
        tokens: Float[Tensor, "batch n dim"],
        positions: Float[Tensor, "batch n dim"],
        references: Float[Tensor, "batch n 2"],
        memory: Float[Tensor, "batch cells dim"],
        map_size: tuple[int, int],
    ) -> Float[Tensor, "batch n dim"]:
        queries = tokens + positions
        tokens = self.norm1(tokens + self.dropout(self.self_attn(queries, queries, tokens, need_weights=False)[0]))
        tokens = self.norm2(tokens + self.dropout(self.cross_attn(tokens + positions, references, memory, map_size)))
        return self.norm3(tokens + self.mlp(tokens))


def xavier_mlp_(layers: nn.Sequential) -> None:
    """Weights of the linear layers as published."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
