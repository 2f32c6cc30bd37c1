"""Tile rasteriser in plain PyTorch: the CPU backend, differentiable, with the semantics of gsplat 1.5.3.

Images are cut into small tiles. Every tile gets the list of Gaussians that reach it, front to back, and all pairs of
a tile's pixels and its Gaussians are evaluated densely. Tiles of similar list length are worked on together, in
blocks of limited depth and size, so that intermediate results stay in the processor's cache; a tile whose pixels are
all opaque is left. The backward pass evaluates the blocks again, from the last to the first.

Alpha compositing as published (Kerbl et al. 2023): alpha = min(0.999, opacity exp(-sigma)), nothing below 1/255; a
Gaussian after which less than 1e-4 of the light would pass is not drawn, nor is anything behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.projection import MIN_ALPHA, project
from token_methods.rendering.tile_lists import BLOCK_DEPTH, TILE, TileLists, tile_lists

MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4

PROJECTED_PAIRS = 2**18
"""Pairs of image and Gaussian that are projected together."""
MEAN_X, MEAN_Y, FACTOR_XX, FACTOR_XY, FACTOR_YY, LOG_OPACITY = range(6)
SHAPE = slice(0, 6)
FEATURES = slice(6, 10)
"""Columns of the parameter table that the compositing works on; features are RGB minus background, and depth."""


def rasterize_tiles(
    gaussians: Gaussians3D, views: Views, background: tuple[float, float, float], near: float, far: float
) -> tuple[
    Float[Tensor, "batch views 3 height width"],
    Float[Tensor, "batch views 1 height width"],
    Float[Tensor, "batch views 1 height width"],
]:
    """Images, expected z-depths and alphas of every view of every scene.

    Differentiable with respect to all fields of `gaussians` and to the cameras. Compositing runs in the dtype of the
    Gaussians (float32; float64 serves tests), projection in float64. On one machine the same number of threads gives
    the same bits.
    """
    views_at_once = min(views.num_views, max(1, PROJECTED_PAIRS // max(1, gaussians.num_gaussians)))
    scenes_at_once = max(1, PROJECTED_PAIRS // max(1, gaussians.num_gaussians * views_at_once))
    scenes = []
    for scene in range(0, views.batch_size, scenes_at_once):
        some = slice(scene, scene + scenes_at_once)
        groups = [views.scenes(some).select(slice(first, first + views_at_once)) for first in range(0, views.num_views, views_at_once)]
        scenes.append(torch.cat([_rasterize_group(gaussians.scenes(some), group, background, near, far) for group in groups], dim=1))
    canvas = torch.cat(scenes)
    images = canvas[:, :, :3] + canvas.new_tensor(background)[:, None, None]
    alphas = canvas[:, :, 4:5]
    return images, canvas[:, :, 3:4] / alphas.clamp_min(1e-10), alphas


def _rasterize_group(
    gaussians: Gaussians3D, views: Views, background: tuple[float, float, float], near: float, far: float
) -> Float[Tensor, "scenes views 5 height width"]:
    """RGB minus background, depth and alpha, accumulated."""
    splats = project(gaussians, views, near, far)
    row = splats.image // views.num_views * gaussians.num_gaussians + splats.gaussian
    opacities = gaussians.opacities.flatten()[row].double().clamp_min(1e-12)
    colors = gaussians.colors.flatten(0, 1)[row]
    # sigma = (factor_xx dx + factor_xy dy)² + (factor_yy dy)²: a sum of squares cannot lose its digits.
    xx, xy, yy = splats.covariances.unbind(-1)
    determinant = xx * yy - xy * xy
    table = torch.stack(
        [
            splats.centres[:, 0],
            splats.centres[:, 1],
            (0.5 * yy / determinant).sqrt(),
            -xy * (0.5 / (yy * determinant)).sqrt(),
            (0.5 / yy).sqrt(),
            opacities.log(),
        ],
        dim=-1,
    )
    table = torch.cat([table.to(colors.dtype), colors - colors.new_tensor(background), splats.depths[:, None].to(colors.dtype)], dim=-1)
    bands = []
    for lists in tile_lists(splats, views.batch_size * views.num_views, views.height, views.width):
        tiles: Tensor = _Composite.apply(table, lists)
        band = tiles.view(-1, lists.down, lists.across, 5, TILE, TILE).permute(0, 3, 1, 4, 2, 5)
        bands.append(band.reshape(views.batch_size, views.num_views, 5, lists.down * TILE, lists.across * TILE))
    return torch.cat(bands, dim=-2)[..., : views.height, : views.width]


@dataclass(frozen=True)
class _Block:
    """Some tiles, and a stretch of their lists: the unit of work."""

    tiles: Int[Tensor, " tiles"]
    splats: Int[Tensor, "tiles depth"]
    """Rows of the table; short lists are filled up with the table's last row, which is transparent."""
    shape: Float[Tensor, "tiles*depth 6"]
    """Shape columns of the table, centres relative to the middle of the tile."""
    features: Float[Tensor, "tiles depth 5"]
    """Feature columns and a column of ones, which accumulates to alpha."""
    alphas: Float[Tensor, "tiles depth pixels"]
    passing: Float[Tensor, "tiles depth pixels"]
    """1 - alpha."""
    transmittance: Float[Tensor, "tiles depth+1 pixels"]
    """Share of light that passes everything before a Gaussian; the last one passes the whole block."""
    weights: Float[Tensor, "tiles depth pixels"]
    """Share of a Gaussian in the pixel: alpha * transmittance, 0 from where the pixel is opaque."""


class _Composite(torch.autograd.Function):
    """Table of splats -> accumulated features of all tiles, [tiles, 5, pixels]."""

    @staticmethod
    def forward(ctx: Any, table: Float[Tensor, "splats 10"], lists: TileLists) -> Float[Tensor, "tiles 5 pixels"]:
        table = _with_transparent_row(table)
        result = table.new_zeros(len(lists.count), 5, TILE * TILE)
        stretches = []
        for tiles in lists.chunks():
            transmittance = table.new_ones(len(tiles), TILE * TILE)
            longest = int(lists.count[tiles[0]])
            for depth in range(0, longest, BLOCK_DEPTH):
                if depth > 0:
                    live = (lists.count[tiles] > depth) & (transmittance.amax(-1) > MIN_TRANSMITTANCE)
                    tiles, transmittance = tiles[live], transmittance[live]
                    if len(tiles) == 0:
                        break
                block = _evaluate(table, lists, tiles, depth, transmittance)
                result[tiles] += block.features.mT @ block.weights
                stretches.append((tiles, depth, transmittance))
                transmittance = block.transmittance[:, -1]
        ctx.save_for_backward(table)
        ctx.lists, ctx.stretches = lists, stretches
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "tiles 5 pixels"]) -> tuple[Tensor, None]:
        (table,) = ctx.saved_tensors
        table_grad = torch.zeros_like(table)
        behind = grad.new_zeros(len(grad), TILE * TILE)  # gradient-weighted sum of what lies behind, per pixel
        for tiles, depth, transmittance in reversed(ctx.stretches):
            block = _evaluate(table, ctx.lists, tiles, depth, transmittance)
            rows = _backward_block(block, grad[tiles], behind)
            table_grad.index_add_(0, block.splats.flatten(), rows)
        return table_grad[:-1], None


def _with_transparent_row(table: Float[Tensor, "splats 10"]) -> Float[Tensor, "splats+1 10"]:
    blank = table.new_zeros(1, table.shape[1])
    blank[:, LOG_OPACITY] = -100
    return torch.cat([table, blank])


def _pixels(dtype: torch.dtype) -> tuple[Float[Tensor, " pixels"], Float[Tensor, " pixels"]]:
    """x and y of a tile's pixel centres, relative to the tile's middle."""
    line = torch.arange(TILE, dtype=dtype) - (TILE - 1) / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x.flatten(), y.flatten()


def _evaluate(
    table: Float[Tensor, "splats+1 10"],
    lists: TileLists,
    tiles: Int[Tensor, " tiles"],
    depth: int,
    transmittance: Float[Tensor, "tiles pixels"],
) -> _Block:
    remaining = lists.count[tiles] - depth
    slots = torch.arange(min(int(remaining.max()), BLOCK_DEPTH))
    filled = slots < remaining[:, None]
    entry = (lists.start[tiles, None] + depth + slots).clamp_max(len(lists.splats) - 1)
    splats = torch.where(filled, lists.splats[entry], len(table) - 1)
    rows = table.index_select(0, splats.flatten())
    middle_x, middle_y = lists.centres(tiles)
    rows[:, MEAN_X] -= middle_x.repeat_interleave(len(slots))
    rows[:, MEAN_Y] -= middle_y.repeat_interleave(len(slots))
    shape = rows[:, SHAPE]
    mean_x, mean_y, factor_xx, factor_xy, factor_yy, log_opacity = shape.unbind(-1)

    x, y = _pixels(table.dtype)
    first = torch.stack([factor_xx * mean_x + factor_xy * mean_y, -factor_xx, -factor_xy], dim=-1) @ torch.stack([torch.ones_like(x), x, y])
    second = torch.stack([factor_yy * mean_y, -factor_yy], dim=-1) @ torch.stack([torch.ones_like(x), y])
    power = torch.sub(log_opacity[:, None], first.square_().addcmul_(second, second), out=first)
    # exp is slow where its result is subnormal, hence the lower bound far below 1/255; the upper one is the cap.
    alphas = power.clamp_(-10, math.log(MAX_ALPHA)).exp_()
    alphas = torch.threshold_(alphas, _just_below(MIN_ALPHA, table.dtype), 0.0).view(len(tiles), len(slots), -1)

    passing = 1 - alphas
    transmittance = torch.cat([transmittance[:, None], passing], dim=1).cumprod(1)
    weights = alphas * transmittance[:, :-1]
    weights = _zero_unless_above(weights, transmittance[:, 1:], MIN_TRANSMITTANCE)
    features = torch.cat([rows[:, FEATURES], torch.ones_like(rows[:, :1])], dim=-1).view(len(tiles), len(slots), 5)
    return _Block(tiles, splats, shape, features, alphas, passing, transmittance, weights)


def _backward_block(
    block: _Block, grad: Float[Tensor, "tiles 5 pixels"], behind: Float[Tensor, "all_tiles pixels"]
) -> Float[Tensor, "tiles*depth 10"]:
    """Gradient of the table's rows that a block uses. `behind` moves on to the front of the block."""
    value = block.features @ grad  # what a full weight of each Gaussian would add to the loss
    weighted = block.weights * value
    after = weighted.flip(1).cumsum(1).flip(1)
    after += behind[block.tiles, None]
    behind[block.tiles] = after[:, 0]
    after -= weighted
    # d loss / d alpha = T value - (what lies behind) / (1 - alpha), times alpha for the derivative by log alpha
    slope = value.mul_(block.transmittance[:, :-1]).sub_(after.div_(block.passing)).mul_(block.alphas)
    slope = _zero_unless_above(slope, block.weights, 0.0)
    slope = _zero_unless_above(slope, block.passing, (1 - MAX_ALPHA) * (1 + 1e-4))  # no gradient through the cap

    x, y = _pixels(grad.dtype)
    moments = slope.view(-1, TILE * TILE) @ torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=-1)
    one, sx, sy, sxx, sxy, syy = moments.unbind(-1)
    mean_x, mean_y, factor_xx, factor_xy, factor_yy, _ = block.shape.unbind(-1)
    offset = factor_xx * mean_x + factor_xy * mean_y
    first = -2 * (offset * one - factor_xx * sx - factor_xy * sy)
    first_x = -2 * (offset * sx - factor_xx * sxx - factor_xy * sxy)
    first_y = -2 * (offset * sy - factor_xx * sxy - factor_xy * syy)
    second = -2 * factor_yy * (mean_y * one - sy)
    second_y = -2 * factor_yy * (mean_y * sy - syy)
    shape = torch.stack(
        [
            factor_xx * first,
            factor_xy * first + factor_yy * second,
            mean_x * first - first_x,
            mean_y * first - first_y,
            mean_y * second - second_y,
            one,
        ],
        dim=-1,
    )
    features = (block.weights @ grad[:, :4].mT).flatten(0, 1)
    return torch.cat([shape, features], dim=-1)


def _zero_unless_above(values: Tensor, of: Tensor, threshold: float) -> Tensor:
    """`values` where `of` > `threshold`, else 0: the one masking operation that PyTorch runs in a single fast pass."""
    return torch.ops.aten.threshold_backward(values, of, threshold)


def _just_below(value: float, dtype: torch.dtype) -> float:
    """Largest number of `dtype` below `value` rounded to it."""
    return float(torch.nextafter(torch.tensor(value, dtype=dtype), torch.tensor(0.0, dtype=dtype)))
