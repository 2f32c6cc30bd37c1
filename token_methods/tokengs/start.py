"""A start of training whose Gaussians already cover the view.

The published start puts all Gaussians within a hundredth of the image and lets 150 000 steps move them. Here each Gaussian
token begins as the code of a place (an anchor) on a grid over the view, and the readout reads that place back: the Gaussians of
the token tile the surroundings of the anchor. Only initial values differ; names and shapes of the parameters are the published ones.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from token_methods.tokengs.config import TokenGSArchitecture

READOUT_NOISE = 0.01
"""Spread of the readout's weights on channels that the anchors do not use, so that tokens differ from the first step on."""


def anchor_grid(count: int) -> Float[Tensor, "count 2"]:
    """Centres of `count` cells that tile the square [-1, 1]^2 row by row, as even as the count allows."""
    rows = max(1, round(math.sqrt(count)))
    per_row = [count // rows + (index < count % rows) for index in range(rows)]
    centres = [
        (2 * (column + 0.5) / columns - 1, 2 * (row + 0.5) / rows - 1) for row, columns in enumerate(per_row) for column in range(columns)
    ]
    return torch.tensor(centres)


def fourier_code(places: Float[Tensor, "count 2"], channels: int) -> Float[Tensor, "count channels"]:
    """Sines and cosines of a place at doubling frequencies, unit variance; neighbours have similar codes."""
    octaves = max(1, min(6, channels // 4))
    frequencies = math.pi / 2 * 2.0 ** torch.arange(octaves)
    angles = places[:, :, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1) * math.sqrt(2)
    repeats = -(-channels // waves.shape[1])
    return waves.repeat(1, repeats)[:, :channels]


def anchored_tokens(architecture: TokenGSArchitecture) -> Float[Tensor, "tokens dim"]:
    """Gaussian tokens that carry their anchor in the first two channels, its Fourier code in a quarter, and noise in the rest."""
    dim, count = architecture.enc_embed_dim, architecture.num_gs_tokens
    places = anchor_grid(count)
    tokens = architecture.gs_token_std * torch.randn(count, dim)
    tokens[:, :2] = places
    coded = dim // 4
    tokens[:, 2 : 2 + coded] = architecture.gs_token_std * fourier_code(places, coded)
    return tokens


def anchor_readout_(architecture: TokenGSArchitecture, weight: Float[Tensor, "outputs dim"], bias: Float[Tensor, " outputs"]) -> None:
    """Fill the readout in place so that a token's Gaussians tile the cell of its anchor at `anchor_depth`.

    Positions pass through sign(x) * expm1(|x|); near the axis that is linear enough for a start, and exact inversion is
    impossible for a linear readout.
    """
    depth, half_width = architecture.anchor_depth, architecture.anchor_half_width
    assert depth is not None
    side = architecture.dec_patch_size
    cell = half_width / math.sqrt(architecture.num_gs_tokens)
    # Within +-half_width, raw = slope * x deviates from log1p(x) by a few hundredths: the slope that is right at the border.
    slope = math.log1p(half_width * depth)
    weight.normal_(std=READOUT_NOISE)
    rows = weight.view(side * side, 14, -1)
    rows[:, :2] = 0
    rows[:, 0, 0] = rows[:, 1, 1] = slope
    offsets = (anchor_grid(side * side) * cell * depth * slope / (half_width * depth)).to(bias)
    channels = bias.view(side * side, 14)
    channels.zero_()
    channels[:, 0:2] = offsets
    channels[:, 2] = _raw_position(depth - architecture.gaussian_z_offset)
    spacing = 2 * cell * depth / side
    channels[:, 6:9] = math.log(min(architecture.anchor_overlap * spacing, 0.9 * architecture.gaussian_scale_cap))
    channels[:, 6:9] += 1 - math.log(architecture.gaussian_scale_cap)
    channels[:, 9] = 1.0
    opacity = architecture.anchor_opacity
    channels[:, 13] = math.log(opacity / (1 - opacity)) + architecture.opacity_bias


def _raw_position(position: float) -> float:
    return math.copysign(math.log1p(abs(position)), position)
