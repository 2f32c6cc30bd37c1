"""The Gaussian embedder of GaussianToken (Dong et al. 2025, arXiv 2501.15619, section 3.2): a feature map to 2D Gaussians.

Learned anchors, the same for every image, look at the map in a few blocks; each block's refinement moves them. Parameter names
are the published ones, and a layer's number counts attention, feed-forward layer and refinement of all blocks in one row.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from token_methods.gaussiantoken.attention import DecoderLayer, EncoderLayer, cell_centres, sine_positions
from token_methods.gaussiantoken.config import EmbedderArchitecture
from token_methods.gaussiantoken.layer_norm import LayerNorm
from token_methods.rendering.gaussians2d import Gaussians2D

SIGMOID_LIMIT = 9.21024
"""Logits are clamped here, so that activated values stay within 1e-4..0.9999."""
LAYERS_PER_BLOCK = 3
"""Attention, feed-forward layer, refinement."""


def limited_sigmoid(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Sigmoid within 1e-4..0.9999."""
    return logits.clamp(-SIGMOID_LIMIT, SIGMOID_LIMIT).sigmoid()


class ChannelScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return x * self.scale


def linear_stack(in_dim: int, dim: int, linears_per_norm: int, norms: int) -> list[nn.Module]:
    """Linear layers with ReLU, and a norm after every `linears_per_norm` of them."""
    layers: list[nn.Module] = []
    for _ in range(norms):
        for _ in range(linears_per_norm):
            layers += [nn.Linear(in_dim, dim), nn.ReLU()]
            in_dim = dim
        layers.append(LayerNorm(dim))
    return layers


def readout(dim: int, out_dim: int) -> nn.Sequential:
    """The network of refinement and features: two normed pairs of linear layers, a linear readout and its scale."""
    return nn.Sequential(*linear_stack(dim, dim, 2, 2), nn.Linear(dim, out_dim), ChannelScale(out_dim))


class FeatureLifter(nn.Module):
    """A feature map as a row of cells."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        projection = nn.Conv2d(dim, dim, 1)
        nn.init.xavier_uniform_(projection.weight)
        projection.bias = nn.Parameter(torch.zeros(dim))
        self.input_proj = nn.Sequential(projection, nn.GroupNorm(32, dim))

    def forward(self, feature_map: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch cells dim"]:
        return self.input_proj(feature_map).flatten(2).mT


class GaussianLifter(nn.Module):
    """The Gaussians that every image starts from: anchors (before activation) and what they know (nothing; not trained)."""

    def __init__(self, architecture: EmbedderArchitecture) -> None:
        super().__init__()
        count, dim = architecture.num_gaussians, architecture.embed_dim
        xy, scales = (torch.rand(2, count, 2).clamp(1e-4, 0.9999)).logit()
        opacity = torch.full((count, int(architecture.has_opacity)), 0.1).logit()
        # In this order as published, though everything else reads the rotation before the scales. Refinement replaces both.
        self.anchor = nn.Parameter(torch.cat([xy, scales, torch.zeros(count, 1), opacity, torch.randn(count, dim)], dim=-1))
        self.instance_feature = nn.Parameter(torch.zeros(count, dim), requires_grad=False)

    def forward(self, batch_size: int) -> tuple[Float[Tensor, "batch n anchor"], Float[Tensor, "batch n dim"]]:
        return self.anchor.expand(batch_size, -1, -1), self.instance_feature.expand(batch_size, -1, -1)


class ContentStart(nn.Module):
    """Starts every Gaussian in its own part of the map: at the centre of what happens there, knowing the feature of that place.

    Content in the place of one learned start is the idea of GPSToken (Zhang et al. 2025, arXiv 2509.01109), which partitions images by
    entropy. Here the parts are equal and the place within each is the mean position of its cells, weighted by how much each differs
    from its neighbours. There is nothing to learn in it.
    """

    def __init__(self, count: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.map_size = map_size
        height, width = map_size
        rows = min((rows for rows in range(1, count + 1) if count % rows == 0), key=lambda rows: abs(rows * rows * width - count * height))
        self.grid = (rows, count // rows)

    def forward(
        self, anchor: Float[Tensor, "batch n anchor"], memory: Float[Tensor, "batch cells dim"], centres: Float[Tensor, "cells 2"]
    ) -> tuple[Float[Tensor, "batch n anchor"], Float[Tensor, "batch n dim"]]:
        """The anchors with other positions, and features; `memory` is the map, row-major, `centres` where its cells are, 0..1."""
        plane = memory.mT.unflatten(-1, self.map_size)
        smooth = F.avg_pool2d(F.pad(plane, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        activity = (plane - smooth).square().sum(dim=1, keepdim=True) + 1e-6
        weighted = torch.cat([activity, activity * centres.mT.unflatten(-1, self.map_size)], dim=1)
        mass, x, y = F.adaptive_avg_pool2d(weighted, self.grid).flatten(2).unbind(dim=1)
        places = torch.stack([x / mass, y / mass], dim=-1).detach()
        features = F.grid_sample(plane, 2 * places[:, None] - 1, padding_mode="border", align_corners=False)[:, :, 0].mT
        return torch.cat([places.logit(1e-4), anchor[..., 2:]], dim=-1), features


class AnchorEncoder(nn.Module):
    """Embeds anchors, each of their parts on its own."""

    def __init__(self, architecture: EmbedderArchitecture) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.split = [2, 1, 2, int(architecture.has_opacity), dim]
        self.xy_fc, self.scale_fc, self.rot_fc, self.feature_fc, self.output_fc = (
            nn.Sequential(*linear_stack(size, dim, 1, 2)) for size in (2, 2, 1, dim, dim)
        )
        self.opacity_fc = nn.Sequential(*linear_stack(1, dim, 1, 2)) if architecture.has_opacity else None

    def forward(self, anchor: Float[Tensor, "batch n anchor"]) -> Float[Tensor, "batch n dim"]:
        xy, rotation, scales, opacity, feature = anchor.split(self.split, dim=-1)
        embedding = self.xy_fc(xy) + self.scale_fc(scales) + self.rot_fc(rotation)
        if self.opacity_fc is not None:
            embedding = embedding + self.opacity_fc(opacity)
        return self.output_fc(embedding + self.feature_fc(feature))


class MapEncoder(nn.Module):
    """Deformable self-attention of the feature map."""

    def __init__(self, architecture: EmbedderArchitecture) -> None:
        super().__init__()
        layer = EncoderLayer(architecture.embed_dim, architecture.num_heads, architecture.num_points, architecture.dropout)
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(architecture.num_encoder_layers)])

    def forward(
        self,
        cells: Float[Tensor, "batch cells dim"],
        positions: Float[Tensor, "cells dim"],
        references: Float[Tensor, "cells 2"],
        map_size: tuple[int, int],
    ) -> Float[Tensor, "batch cells dim"]:
        for layer in self.layers:
            cells = layer(cells, positions, references, map_size)
        return cells


class GaussianAttention(nn.Module):
    """Gaussians look at each other and at the map around them; first layer of a block."""

    def __init__(self, architecture: EmbedderArchitecture) -> None:
        super().__init__()
        self.residual_mode = architecture.residual_mode
        layer = DecoderLayer(architecture.embed_dim, architecture.num_heads, architecture.num_points, architecture.dropout)
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(architecture.num_decoder_layers)])
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(
        self,
        features: Float[Tensor, "batch n dim"],
        embedding: Float[Tensor, "batch n dim"],
        anchor: Float[Tensor, "batch n anchor"],
        memory: Float[Tensor, "batch cells dim"],
        map_size: tuple[int, int],
    ) -> Float[Tensor, "batch n out"]:
        seen, references = features, limited_sigmoid(anchor[..., :2])
        for layer in self.layers:
            seen = layer(seen, embedding, references, memory, map_size)
        seen = self.dropout(seen)
        return seen + features if self.residual_mode == "add" else torch.cat([seen, features], dim=-1)


class FeedForward(nn.Module):
    """Second layer of a block. The residual is of the normalised input."""

    def __init__(self, architecture: EmbedderArchitecture) -> None:
        super().__init__()
        dim = architecture.embed_dim
        in_dim = dim if architecture.residual_mode == "add" else 2 * dim
        self.pre_norm_layer = LayerNorm(in_dim)
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(in_dim, 4 * dim), nn.ReLU()), nn.Linear(4 * dim, dim))
        self.identity_fc = nn.Linear(in_dim, dim)

    def forward(self, features: Float[Tensor, "batch n in"]) -> Float[Tensor, "batch n dim"]:
        features = self.pre_norm_layer(features)
        return self.identity_fc(features) + self.layers(features)


class ScaleRange(nn.Module):
    """The range of standard deviations, in cells of the map; its upper end shrinks while training goes on, faster for large Gaussians.

    Both numbers are buffers, so that training resumes exactly; published checkpoints lack `ema`.
    """

    current_range_max: Float[Tensor, ""]
    ema: Float[Tensor, ""]
    """Running mean of the scales, in cells."""

    def __init__(self, smallest: float = 0.1, initial_largest: float = 4.0, final_largest: float = 3.0) -> None:
        super().__init__()
        self.smallest, self.final_largest = smallest, final_largest
        self.shrinkage, self.averaging = 1e-3, 0.01
        self.register_buffer("current_range_max", torch.tensor(initial_largest))
        self.register_buffer("ema", torch.tensor((smallest + initial_largest) / 2))

    def forward(self, shares: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Scales in cells for shares 0..1 of the range. In training the range shrinks afterwards."""
        scales = self.smallest + (self.current_range_max - self.smallest) * shares
        if self.training:
            self.update(scales.detach().mean())
        return scales

    @torch.no_grad()
    def update(self, mean_scale: Float[Tensor, ""]) -> None:
        """One step of the schedule; `mean_scale` in cells. Processes that train together share their mean."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            mean_scale = mean_scale / dist.get_world_size()
            dist.all_reduce(mean_scale)
        largest = self.current_range_max
        self.ema.copy_(self.averaging * mean_scale + (1 - self.averaging) * self.ema)
        step = self.shrinkage * (self.ema - (largest + self.smallest) / 2).clamp(min=0.01)
        largest.copy_(torch.where(largest > self.final_largest, (largest - step).clamp(min=self.final_largest), largest))


class Refinement(nn.Module):
    """Third layer of a block: moves the anchors and replaces everything but their position."""

    def __init__(self, architecture: EmbedderArchitecture) -> None:
        super().__init__()
        self.layers = readout(architecture.embed_dim, architecture.anchor_dim)

    def forward(
        self,
        features: Float[Tensor, "batch n dim"],
        embedding: Float[Tensor, "batch n dim"],
        anchor: Float[Tensor, "batch n anchor"],
    ) -> Float[Tensor, "batch n anchor"]:
        change = self.layers(features + embedding)
        return torch.cat([anchor[..., :2] + change[..., :2], change[..., 2:]], dim=-1)


class FinalRefinement(Refinement):
    """The last block's, which also activates the anchors."""

    def __init__(self, architecture: EmbedderArchitecture, code_dim: int) -> None:
        super().__init__(architecture)
        self.split = [2, 1, 2, int(architecture.has_opacity), architecture.embed_dim]
        self.range_scheduler = ScaleRange(architecture.smallest_scale, architecture.initial_largest_scale, architecture.final_largest_scale)
        self.to_features = readout(architecture.embed_dim, code_dim)

    def activate(self, anchor: Float[Tensor, "batch n anchor"]) -> Gaussians2D:
        xy, rotation, scales, opacity, feature = anchor.split(self.split, dim=-1)
        return Gaussians2D(
            means=2 * limited_sigmoid(xy) - 1,
            scales=self.range_scheduler(limited_sigmoid(scales)),
            rotations=math.pi * limited_sigmoid(rotation),
            features=self.to_features(feature),
            opacities=limited_sigmoid(opacity) if opacity.shape[-1] else None,
        )


class GaussianEmbedder(nn.Module):
    """A feature map to Gaussians. Float32 whatever autocast it runs under."""

    positions: Float[Tensor, "cells dim"]
    cells: Float[Tensor, "cells 2"]

    def __init__(self, architecture: EmbedderArchitecture, code_dim: int, map_size: tuple[int, int]) -> None:
        """
        Args:
            architecture: what it is made of.
            code_dim: channels of the features that Gaussians get.
            map_size: height and width of the feature map, in cells.
        """
        super().__init__()
        self.map_size = map_size
        self.fm_lifter = FeatureLifter(architecture.embed_dim)
        self.gaussian_lifter = GaussianLifter(architecture)
        self.content_start = ContentStart(architecture.num_gaussians, map_size) if architecture.start == "content" else None
        self.anchor_encoder = AnchorEncoder(architecture)
        self.attn_encoder = MapEncoder(architecture)
        attention, feed_forward = GaussianAttention(architecture), FeedForward(architecture)
        last = FinalRefinement(architecture, code_dim)
        layers: list[nn.Module] = []
        for block in range(architecture.num_blocks):
            refinement = last if block == architecture.num_blocks - 1 else Refinement(architecture)
            # All blocks start from the same weights, as published.
            refinement.layers.load_state_dict(last.layers.state_dict())
            layers += [copy.deepcopy(attention), copy.deepcopy(feed_forward), refinement]
        self.layers = nn.ModuleList(layers)
        self.register_buffer("positions", sine_positions(*map_size, architecture.embed_dim), persistent=False)
        self.register_buffer("cells", cell_centres(*map_size), persistent=False)

    def forward(self, feature_map: Float[Tensor, "batch dim height width"]) -> Gaussians2D:
        """
        Returns:
            Gaussians with means within -1..1 of the map, scales in its cells, and features before quantisation.

        Raises:
            ValueError: the map has another size than the embedder was built for.
        """
        if feature_map.shape[-2:] != torch.Size(self.map_size):
            raise ValueError(f"feature map of {tuple(feature_map.shape[-2:])} cells, but the embedder was built for {self.map_size}")
        with torch.autocast(feature_map.device.type, enabled=False):
            memory = self.attn_encoder(self.fm_lifter(feature_map.float()), self.positions, self.cells, self.map_size)
            anchor, features = self.gaussian_lifter(len(feature_map))
            if self.content_start is not None:
                anchor, features = self.content_start(anchor, memory, self.cells)
            for first in range(0, len(self.layers), LAYERS_PER_BLOCK):
                attention, feed_forward, refinement = self.layers[first : first + LAYERS_PER_BLOCK]
                embedding = self.anchor_encoder(anchor)
                features = feed_forward(attention(features, embedding, anchor, memory, self.map_size))
                anchor = refinement(features, embedding, anchor)
            last = self.layers[-1]
            assert isinstance(last, FinalRefinement)
            return last.activate(anchor)
