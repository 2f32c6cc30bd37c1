"""2D feature splatting in plain PyTorch: for CPUs, for float64, and for comparisons with the published kernels.

The map is cut into tiles of 16x16 pixels. Every tile gets the list of Gaussians that reach it, and all pairs of a tile's
pixels and its Gaussians are evaluated densely, a bounded number at a time; the backward pass evaluates them again.

A Gaussian is held by its whitening matrix, which takes an offset in pixels to (u, v), the distances along its own axes in
standard deviations. sigma = (u² + v²) / 2 cannot lose its digits or become negative as a quadratic form in x and y can.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TILE = 16
"""Side of a tile in pixels, as published: it decides which pixels a Gaussian reaches."""
MIN_ALPHA = 1 / 255
"""Smaller contributions are not drawn."""
LOWEST_EXPONENT = -80.0
"""Bound of the exponent: exp is slow where its result is subnormal, and nothing is drawn long before."""
BLOCK_PAIRS = 2**18
"""Pairs of pixel and Gaussian that are evaluated together: one megabyte per intermediate result."""
LIST_ENTRIES = 2**21
"""Pairs of tile and Gaussian that are listed together at most: 16 megabytes per list."""


class Projection(NamedTuple):
    """Gaussians as they lie on the map."""

    centres: Float[Tensor, "batch n 2"]
    """x and y in pixels."""
    whitening: Float[Tensor, "batch n 2 2"]
    """(u, v) = whitening @ (offset in pixels); its square whitening' whitening is the inverse covariance. 0 if not drawn."""
    radii: Int[Tensor, "batch n"]
    """Three standard deviations in pixels, rounded up; 0 if not drawn."""
    boxes: Int[Tensor, "batch n 4"]
    """First column, first row, last column + 1, last row + 1 of the tiles that the circle of that radius reaches."""


class _Block(NamedTuple):
    """Some tiles and a stretch of their lists: the unit of work. A list that has ended is filled up with the blank row."""

    tiles: Int[Tensor, " tiles"]
    gaussians: Int[Tensor, "tiles depth"]
    """Rows of the table."""
    is_last: Bool[Tensor, "tiles depth"]
    """Where a Gaussian is the last one of its tile."""


class _Pairs(NamedTuple):
    """What a block's Gaussians are at the pixels of its tiles."""

    u: Float[Tensor, "tiles depth pixels"]
    v: Float[Tensor, "tiles depth pixels"]
    unclamped: Float[Tensor, "tiles depth pixels"]
    """opacity exp(-sigma)."""
    alphas: Float[Tensor, "tiles depth pixels"]


def splat_tiles(
    means: Float[Tensor, "batch n 2"],
    scales: Float[Tensor, "batch n 2"],
    rotations: Float[Tensor, "batch n 1"],
    features: Float[Tensor, "batch n channels"],
    opacities: Float[Tensor, "batch n 1"] | None,
    height: int,
    width: int,
    limit: int | None = None,
    published_backward: bool = False,
) -> Float[Tensor, "batch channels height width"]:
    """Draw Gaussians (units as in `Gaussians2D`, all of one floating dtype) as a sum of alpha times feature.

    Differentiable once with respect to all tensors. On a CPU the same number of threads gives the same bits.

    Args:
        limit: draw only so many Gaussians of each tile, those of lowest index.
        published_backward: the gradients that the published kernels give. They count the cross term of the covariance twice,
            which makes those of scales and rotations wrong; unless there are three channels they leave out the last Gaussian
            of each tile; and they let gradients through where alpha is clamped to 1.
    """
    if opacities is None:
        opacities = torch.ones_like(rotations)
    image: Tensor = _SplatTiles.apply(means, scales, rotations, features, opacities, height, width, limit, published_backward)
    return image


@torch.no_grad()
def project(
    means: Float[Tensor, "batch n 2"], scales: Float[Tensor, "batch n 2"], rotations: Float[Tensor, "batch n 1"], height: int, width: int
) -> Projection:
    """Where the Gaussians lie on a map of this size; the radius is that of Kerbl et al. 2023 as published, not differentiable."""
    half = 0.5 * means.new_tensor([width, height])
    centres = half * means + half
    x, y = scales.square().unbind(-1)
    is_drawn = x * y > 0  # the determinant of the covariance
    spread = (0.5 * (x - y).abs()).clamp_min(math.sqrt(0.1))
    radii = (3 * (0.5 * (x + y) + spread).sqrt()).ceil()[..., None]
    tiles = means.new_tensor([math.ceil(width / TILE), math.ceil(height / TILE)])
    low, high = centres / TILE - radii / TILE, centres / TILE + radii / TILE + 1
    boxes = torch.cat([low, high], dim=-1).clamp_min(0).minimum(tiles.repeat(2)).nan_to_num(0)
    cos, sin = rotations.cos()[..., 0], rotations.sin()[..., 0]
    across, along = scales.where(is_drawn[..., None], 1).reciprocal().unbind(-1)
    whitening = torch.stack([cos * across, -sin * across, sin * along, cos * along], dim=-1)
    keep = is_drawn[..., None]
    return Projection(centres, (whitening * keep).unflatten(-1, (2, 2)), (radii * keep)[..., 0].nan_to_num(0).int(), (boxes * keep).long())


class _SplatTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        scales: Tensor,
        rotations: Tensor,
        features: Tensor,
        opacities: Tensor,
        height: int,
        width: int,
        limit: int | None,
        published_backward: bool,
    ) -> Float[Tensor, "batch channels height width"]:
        ctx.save_for_backward(means, scales, rotations, features, opacities)
        ctx.options = height, width, limit, published_backward
        with torch.autocast(means.device.type, enabled=False):
            projection = project(means, scales, rotations, height, width)
            table, colors = _tables(projection, opacities, features)
            down, across = math.ceil(height / TILE), math.ceil(width / TILE)
            tiles = features.new_zeros(len(means) * down * across, features.shape[2], TILE * TILE)
            for block in _blocks(projection.boxes, down, across, limit):
                alphas = _evaluate(table, block, down, across).alphas
                tiles.index_add_(0, block.tiles, colors[block.gaussians].mT @ alphas)
            canvas = tiles.view(len(means), down, across, -1, TILE, TILE).permute(0, 3, 1, 4, 2, 5)
            return canvas.reshape(len(means), features.shape[2], down * TILE, across * TILE)[..., :height, :width].contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "batch channels height width"]) -> tuple[Tensor | None, ...]:
        means, scales, rotations, features, opacities = ctx.saved_tensors
        height, width, limit, published = ctx.options
        batch, channels = grad.shape[:2]
        with torch.autocast(grad.device.type, enabled=False):
            projection = project(means, scales, rotations, height, width)
            table, colors = _tables(projection, opacities, features)
            down, across = math.ceil(height / TILE), math.ceil(width / TILE)
            padded = torch.nn.functional.pad(grad, (0, across * TILE - width, 0, down * TILE - height))
            tiles = padded.view(batch, channels, down, TILE, across, TILE).permute(0, 2, 4, 1, 3, 5)
            tiles = tiles.reshape(batch * down * across, channels, TILE * TILE)
            colors_grad, moments = torch.zeros_like(colors), colors.new_zeros(len(colors), 6)
            for block in _blocks(projection.boxes, down, across, limit):
                pairs = _evaluate(table, block, down, across)
                tiles_grad = tiles[block.tiles]
                gate = (pairs.alphas > 0) if published else (pairs.alphas > 0) & (pairs.unclamped <= 1)
                slope = torch.where(gate, -(colors[block.gaussians] @ tiles_grad) * pairs.unclamped, 0)  # d loss / d sigma
                block_colors_grad = pairs.alphas @ tiles_grad.mT
                block_moments = _moments(slope, pairs.u, pairs.v)
                if published and channels != 3:
                    block_colors_grad *= ~block.is_last[..., None]
                    block_moments *= ~block.is_last[..., None]
                rows = block.gaussians.flatten()
                colors_grad.index_add_(0, rows, block_colors_grad.flatten(0, 1))
                moments.index_add_(0, rows, block_moments.flatten(0, 1))
            moments = moments[:-1].view(batch, -1, 6)
            gradients = _geometry_gradients(moments, projection.whitening, scales, rotations, opacities, published)
            half = 0.5 * means.new_tensor([width, height])
        return half * gradients[0], *gradients[1:3], colors_grad[:-1].view_as(features), gradients[3], None, None, None, None


def _tables(projection: Projection, opacities: Tensor, features: Tensor) -> tuple[Float[Tensor, "rows 7"], Float[Tensor, "rows channels"]]:
    """Centre, whitening matrix and opacity of each Gaussian, and its features; the last row of each is blank."""
    table = torch.cat([projection.centres, projection.whitening.flatten(2), opacities], dim=-1).flatten(0, 1)
    colors = features.flatten(0, 1)
    return torch.cat([table, table.new_zeros(1, 7)]), torch.cat([colors, colors.new_zeros(1, colors.shape[1])])


def _blocks(boxes: Int[Tensor, "batch n 4"], down: int, across: int, limit: int | None) -> Iterator[_Block]:
    """All pairs of tile and Gaussian, some images and rows of tiles after others, Gaussians in the order of their indices."""
    batch, count = boxes.shape[:2]
    rows = min(down, max(1, LIST_ENTRIES // max(1, count * across)))
    images = max(1, LIST_ENTRIES // max(1, count * across * rows))
    for image in range(0, batch, images):
        for top in range(0, down, rows):
            yield from _band_blocks(boxes[image : image + images], image, top, min(top + rows, down), down, across, limit, batch * count)


def _band_blocks(
    boxes: Int[Tensor, "images n 4"], image: int, top: int, bottom: int, down: int, across: int, limit: int | None, blank: int
) -> Iterator[_Block]:
    """The blocks of the rows of tiles `top` to `bottom` of the images from `image` on."""
    left, above, right, below = boxes.flatten(0, 1).unbind(-1)
    above, below = above.clamp(top, bottom), below.clamp(top, bottom)
    columns = right - left
    reached = columns.clamp_min(0) * (below - above).clamp_min(0)
    owner = torch.repeat_interleave(reached)
    place = torch.arange(len(owner), device=boxes.device) - (reached.cumsum(0) - reached)[owner]
    tile = (above[owner] + place // columns[owner]) * across + left[owner] + place % columns[owner]
    tile = tile + (image + owner // boxes.shape[1]) * (down * across)
    tile, order = tile.sort(stable=True)
    gaussians = owner[order] + image * boxes.shape[1]
    tiles, count = tile.unique_consecutive(return_counts=True)
    start = count.cumsum(0) - count
    if limit is not None:
        count = count.clamp_max(limit)
    # Tiles with lists of similar length go together, the longest first.
    longest = count.argsort(descending=True, stable=True)
    tiles, count, start = tiles[longest], count[longest], start[longest]
    lengths, first = count.tolist(), 0
    most = BLOCK_PAIRS // (TILE * TILE)
    while first < len(lengths):
        depth = min(lengths[first], most)
        some = slice(first, first + max(1, most // depth))
        for begin in range(0, lengths[first], depth):
            slots = torch.arange(begin, begin + depth, device=boxes.device)
            entry = (start[some, None] + slots).clamp_max(len(gaussians) - 1)
            yield _Block(tiles[some], torch.where(slots < count[some, None], gaussians[entry], blank), slots == count[some, None] - 1)
        first = some.stop


def _evaluate(table: Float[Tensor, "rows 7"], block: _Block, down: int, across: int) -> _Pairs:
    cell = block.tiles % (down * across)
    center_x, center_y, ux, uy, vx, vy, opacity = table[block.gaussians].unbind(-1)
    line = torch.arange(TILE, device=table.device)
    dx = center_x[..., None] - ((cell % across) * TILE)[:, None, None] - line
    dy = center_y[..., None] - ((cell // across) * TILE)[:, None, None] - line
    u = ((ux[..., None] * dx)[..., None, :] + (uy[..., None] * dy)[..., :, None]).flatten(2)
    v = ((vx[..., None] * dx)[..., None, :] + (vy[..., None] * dy)[..., :, None]).flatten(2)
    unclamped = (u * u).addcmul_(v, v).mul_(-0.5).clamp_min_(LOWEST_EXPONENT).exp_().mul_(opacity[..., None])
    # The comparison is false for NaN too.
    return _Pairs(u, v, unclamped, torch.where(unclamped >= MIN_ALPHA, unclamped.clamp_max(1), 0))


def _moments(slope: Tensor, u: Tensor, v: Tensor) -> Float[Tensor, "tiles depth 6"]:
    """Sums over the pixels of d loss / d sigma times 1, u, v, u², u v, v²."""
    slope_u, slope_v = slope * u, slope * v
    sums = [slope, slope_u, slope_v, slope_u * u, slope_u * v, slope_v * v]
    return torch.stack([values.sum(-1) for values in sums], dim=-1)


def _geometry_gradients(
    moments: Float[Tensor, "batch n 6"], whitening: Tensor, scales: Tensor, rotations: Tensor, opacities: Tensor, published: bool
) -> tuple[Float[Tensor, "batch n 2"], Float[Tensor, "batch n 2"], Float[Tensor, "batch n 1"], Float[Tensor, "batch n 1"]]:
    """Gradients of centres (in pixels), scales, rotations and opacities by the chain rule; 0 where nothing was drawn."""
    one, u, v, uu, uv, vv = moments.split(1, dim=-1)
    safe = scales.where(scales.prod(-1, keepdim=True) != 0, 1)
    first, second = safe.split(1, dim=-1)
    centres = (whitening.mT @ torch.cat([u, v], dim=-1)[..., None])[..., 0]
    scales_grad = -torch.cat([uu, vv], dim=-1) / safe
    rotations_grad = uv * (first / second - second / first)
    if published:
        # d loss / d covariance is -1/2 sum (slope p p') with p = whitening' (u, v); this is the sum of its off-diagonal entries.
        cos, sin = rotations.cos(), rotations.sin()
        cross = cos * sin * (uu / first**2 - vv / second**2) - (cos**2 - sin**2) * uv / (first * second)
        scales_grad = scales_grad + 2 * cos * sin * cross * torch.cat([-first, second], dim=-1)
        rotations_grad = rotations_grad + cross * (cos**2 - sin**2) * (second**2 - first**2)
    return centres, scales_grad, rotations_grad, -one / opacities.where(opacities != 0, 1)
