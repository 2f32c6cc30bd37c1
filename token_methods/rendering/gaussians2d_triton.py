"""2D feature splatting on CUDA: one Triton kernel draws, one gives all gradients.

Since the splat is a plain sum, neither needs sorted lists. Forward, a program owns a tile of the map: it looks through the
Gaussians in chunks, writes down those that reach the tile, and adds them up. Backward, a program owns a Gaussian: it looks at
the pixels that the Gaussian reaches and sums in registers. So there are no atomic operations and the same inputs give the same
bits; nothing waits for the host, and both can be captured in a CUDA graph.

The forward pass looks at every pair of tile and Gaussian, but not of pixel and Gaussian; units, names and formulas are those of
`gaussians2d_torch`.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles the annotations of a kernel with it, and knows none but its own.

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from token_methods.rendering import gaussians2d_torch
from token_methods.rendering.kernel_launch import Launcher, power_of_two

MOST_CHANNELS = 16
"""Channels that a program holds in registers; more are drawn in groups."""
MOST_CHUNK = 256
"""Gaussians that a tile looks at together: two for each of a program's threads."""
MOST_PROGRAMS = 4096
"""Programs that draw; more tiles than that share them. What they write down takes 32 megabytes at most."""
RECORD = tl.constexpr(8)
"""Numbers that a tile writes down of a Gaussian: centre, whitening matrix, opacity, place in the chunk."""
UNROLL = tl.constexpr(4)
"""Gaussians whose numbers are read ahead together."""
TILE = tl.constexpr(gaussians2d_torch.TILE)
PIXELS = tl.constexpr(gaussians2d_torch.TILE**2)
WINDOW_ROWS = tl.constexpr(8)
WINDOW_COLUMNS = tl.constexpr(16)
"""Pixels around a Gaussian that the backward pass looks at together."""
WINDOW = tl.constexpr(8 * 16)
MIN_ALPHA = tl.constexpr(gaussians2d_torch.MIN_ALPHA)
MIN_SPREAD = tl.constexpr(math.sqrt(0.1))


def splat_fused(
    means: Float[Tensor, "batch n 2"],
    scales: Float[Tensor, "batch n 2"],
    rotations: Float[Tensor, "batch n 1"],
    features: Float[Tensor, "batch n channels"],
    opacities: Float[Tensor, "batch n 1"] | None,
    height: int,
    width: int,
) -> Float[Tensor, "batch channels height width"]:
    """Draw Gaussians (units as in `Gaussians2D`, float32 on one CUDA device, at least one) as a sum of alpha times feature.

    Differentiable once with respect to all tensors.
    """
    # An autograd function costs the host as much as the launch.
    draw: Callable[..., Tensor] = _SplatFused.apply if torch.is_grad_enabled() else _draw
    if features.shape[2] <= MOST_CHANNELS:
        return draw(means, scales, rotations, features, opacities, height, width)
    groups = features.split(MOST_CHANNELS, dim=-1)
    return torch.cat([draw(means, scales, rotations, group, opacities, height, width) for group in groups], dim=1)


def _draw(
    means: Tensor, scales: Tensor, rotations: Tensor, features: Tensor, opacities: Tensor | None, height: int, width: int
) -> Float[Tensor, "batch channels height width"]:
    means, scales, rotations, features = means.contiguous(), scales.contiguous(), rotations.contiguous(), features.contiguous()
    opacities = None if opacities is None else opacities.contiguous()
    batch, count, channels = features.shape
    tiles, programs, chunk, padded = _sizes(batch, count, channels, height, width)
    image = features.new_empty((batch, channels, height, width))
    records = features.new_empty((programs, chunk, RECORD.value))
    _launch_draw_tiles(
        programs,
        (means, scales, rotations, features, opacities, records, image),
        (tiles, count, channels, height, width, opacities is not None, padded, chunk),
    )
    return image


class _SplatFused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means: Tensor, scales: Tensor, rotations: Tensor, features: Tensor, opacities: Tensor | None, height: int, width: int
    ) -> Float[Tensor, "batch channels height width"]:
        ctx.save_for_backward(means, scales, rotations, features, opacities)
        return _draw(means, scales, rotations, features, opacities, height, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "batch channels height width"]) -> tuple[Tensor | None, ...]:
        means, scales, rotations, features, opacities = ctx.saved_tensors
        means, scales, rotations, features = means.contiguous(), scales.contiguous(), rotations.contiguous(), features.contiguous()
        opacities = None if opacities is None else opacities.contiguous()
        batch, count, channels = features.shape
        _, _, height, width = grad.shape
        widths = (2, 2, 1, channels) if opacities is None else (2, 2, 1, channels, 1)
        gradients = features.new_empty((batch, count, sum(widths)))  # one allocation, one argument
        _launch_differentiate_gaussian(
            batch * count,
            (means, scales, rotations, features, opacities, grad.contiguous(), gradients),
            (count, channels, height, width, opacities is not None, power_of_two(channels)),
        )
        parts = gradients.split_with_sizes(widths, dim=-1)
        return *parts, *(None,) * (7 - len(parts))


@cache
def _sizes(batch: int, count: int, channels: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Tiles, programs that draw them, Gaussians that these look at together, and channels, the last two as powers of two."""
    tiles = batch * -(-height // TILE.value) * -(-width // TILE.value)
    return tiles, min(MOST_PROGRAMS, tiles), min(MOST_CHUNK, max(16, power_of_two(count))), power_of_two(channels)


@triton.jit
def _draw_tiles(
    means,
    scales,
    rotations,
    features,
    opacities,
    records,
    image,
    tiles,
    count,
    channels,
    height,
    width,
    HAS_OPACITY: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """All channels of some of the tiles of all images. `records` is [programs, CHUNK, RECORD]: a notebook for each program."""
    across, down = tl.cdiv(width, TILE), tl.cdiv(height, TILE)
    pixel = tl.arange(0, PIXELS)
    channel = tl.arange(0, CHANNELS)
    lane = tl.arange(0, CHUNK)
    notebook = records + tl.program_id(0) * CHUNK * RECORD
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        index = (tile // (across * down)).to(tl.int64)
        column, row = tile % across, tile // across % down
        x, y = column * TILE + pixel % TILE, row * TILE + pixel // TILE
        total = tl.zeros([CHANNELS, PIXELS], tl.float32)
        for first in range(0, count, CHUNK):
            start = index * count + first
            present = first + lane < count
            center_x, center_y, left, above, right, below = _reach(means, scales, start + lane, present, height, width)
            # A box from `left` to `right`, both rounded down and the end exclusive, holds this tile; false for NaN.
            hit = (left < column + 1) & (right >= column + 1) & (above < row + 1) & (below >= row + 1)
            hits = tl.sum(hit.to(tl.int32), 0)
            if hits > 0:
                ux, uy, vx, vy = _whitening(scales, rotations, start + lane, hit)
                note = notebook + (tl.cumsum(hit.to(tl.int32), 0) - 1) * RECORD
                tl.store(note, center_x, hit)
                tl.store(note + 1, center_y, hit)
                tl.store(note + 2, ux, hit)
                tl.store(note + 3, uy, hit)
                tl.store(note + 4, vx, hit)
                tl.store(note + 5, vy, hit)
                if HAS_OPACITY:
                    tl.store(note + 6, tl.load(opacities + start + lane, hit, 0.0), hit)
                tl.store(note + 7, lane.to(tl.float32), hit)
                tl.debug_barrier()  # all notes are written before any is read
                for group in range(0, hits, UNROLL):
                    for slot in tl.static_range(UNROLL):
                        there = group + slot < hits
                        entry = notebook + (group + slot) * RECORD
                        dx, dy = tl.load(entry, there, 0.0) - x, tl.load(entry + 1, there, 0.0) - y
                        u = tl.load(entry + 2, there, 0.0) * dx + tl.load(entry + 3, there, 0.0) * dy
                        v = tl.load(entry + 4, there, 0.0) * dx + tl.load(entry + 5, there, 0.0) * dy
                        unclamped = tl.exp(-0.5 * (u * u + v * v))
                        if HAS_OPACITY:
                            unclamped *= tl.load(entry + 6, there, 0.0)
                        alpha = tl.where(unclamped >= MIN_ALPHA, tl.minimum(unclamped, 1.0), 0.0)
                        gaussian = start + tl.load(entry + 7, there, 0.0).to(tl.int32)
                        # No feature is read, but zeros, where no Gaussian is there.
                        feature = tl.load(features + gaussian * channels + channel, channel < tl.where(there, channels, 0), 0.0)
                        total += feature[:, None] * alpha[None, :]
                tl.debug_barrier()  # all notes are read before the next are written
        offset = (channel[:, None] * height + y[None, :]) * width + x[None, :]
        inside = (channel[:, None] < channels) & (y[None, :] < height) & (x[None, :] < width)
        tl.store(image + index * channels * height * width + offset, total, inside)


@triton.jit
def _differentiate_gaussian(
    means,
    scales,
    rotations,
    features,
    opacities,
    image_grad,
    gradients,
    count,
    channels,
    height,
    width,
    HAS_OPACITY: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """All gradients of one Gaussian: of its centre, scales, angle, features and opacity, in one row of `gradients`."""
    gaussian = tl.program_id(0).to(tl.int64)
    image = image_grad + gaussian // count * channels * height * width
    channel = tl.arange(0, CHANNELS)
    feature = tl.load(features + gaussian * channels + channel, channel < channels, 0.0)
    opacity = 1.0
    if HAS_OPACITY:
        opacity = tl.load(opacities + gaussian)
    first, second = tl.load(scales + 2 * gaussian), tl.load(scales + 2 * gaussian + 1)
    center_x, center_y, left, above, right, below = _reach(means, scales, gaussian, True, height, width)
    ux, uy, vx, vy = _whitening(scales, rotations, gaussian, first * first * (second * second) > 0)

    # The window of pixels: those of the tiles that are reached, as far as alpha can be above the cut, with a pixel to spare.
    drawn_sigmas = tl.sqrt(2 * tl.log(tl.maximum(opacity / MIN_ALPHA, 1.0)))
    cos, sin = ux * first, vx * second
    reach_x = drawn_sigmas * tl.sqrt(cos * cos * first * first + sin * sin * second * second) + 1
    reach_y = drawn_sigmas * tl.sqrt(sin * sin * first * first + cos * cos * second * second) + 1
    reached = (right >= 1) & (below >= 1) & (left * TILE < width) & (above * TILE < height)  # false for NaN
    x_first = tl.where(reached, tl.maximum(tl.maximum(tl.floor(left) * TILE, tl.floor(center_x - reach_x)), 0.0), 0.0).to(tl.int32)
    y_first = tl.where(reached, tl.maximum(tl.maximum(tl.floor(above) * TILE, tl.floor(center_y - reach_y)), 0.0), 0.0).to(tl.int32)
    x_last = tl.where(reached, tl.minimum(tl.minimum(tl.floor(right) * TILE, tl.ceil(center_x + reach_x)), width), 0.0).to(tl.int32)
    y_last = tl.where(reached, tl.minimum(tl.minimum(tl.floor(below) * TILE, tl.ceil(center_y + reach_y)), height), 0.0).to(tl.int32)

    pixel = tl.arange(0, WINDOW)
    sum_1 = tl.zeros([WINDOW], tl.float32)
    sum_u = tl.zeros([WINDOW], tl.float32)
    sum_v = tl.zeros([WINDOW], tl.float32)
    sum_uu = tl.zeros([WINDOW], tl.float32)
    sum_uv = tl.zeros([WINDOW], tl.float32)
    sum_vv = tl.zeros([WINDOW], tl.float32)
    sum_features = tl.zeros([CHANNELS, WINDOW], tl.float32)
    for y_start in range(y_first, y_last, WINDOW_ROWS):
        for x_start in range(x_first, x_last, WINDOW_COLUMNS):
            x, y = x_start + pixel % WINDOW_COLUMNS, y_start + pixel // WINDOW_COLUMNS
            inside = (x < x_last) & (y < y_last)
            offset = (channel[:, None] * height + y[None, :]) * width + x[None, :]
            grad = tl.load(image + offset, inside[None, :] & (channel[:, None] < channels), 0.0)
            dx, dy = center_x - x, center_y - y
            u, v = ux * dx + uy * dy, vx * dx + vy * dy
            unclamped = opacity * tl.exp(-0.5 * (u * u + v * v))
            drawn = inside & (unclamped >= MIN_ALPHA)
            sum_features += grad * tl.where(drawn, tl.minimum(unclamped, 1.0), 0.0)[None, :]
            value = tl.sum(grad * feature[:, None], 0)
            slope = tl.where(drawn & (unclamped <= 1.0), -value * unclamped, 0.0)  # d loss / d sigma
            slope_u, slope_v = slope * u, slope * v
            sum_1 += slope
            sum_u += slope_u
            sum_v += slope_v
            sum_uu += slope_u * u
            sum_uv += slope_u * v
            sum_vv += slope_v * v

    one, u_1, v_1 = tl.sum(sum_1, 0), tl.sum(sum_u, 0), tl.sum(sum_v, 0)
    uu, uv, vv = tl.sum(sum_uu, 0), tl.sum(sum_uv, 0), tl.sum(sum_vv, 0)
    is_flat = first * second == 0
    first, second = tl.where(is_flat, 1.0, first), tl.where(is_flat, 1.0, second)
    row = gradients + gaussian * (5 + channels + HAS_OPACITY)
    tl.store(row, 0.5 * width * (ux * u_1 + vx * v_1))
    tl.store(row + 1, 0.5 * height * (uy * u_1 + vy * v_1))
    tl.store(row + 2, -uu / first)
    tl.store(row + 3, -vv / second)
    tl.store(row + 4, uv * (first / second - second / first))
    tl.store(row + 5 + channel, tl.sum(sum_features, 1), channel < channels)
    if HAS_OPACITY:
        tl.store(row + 5 + channels, tl.where(opacity > 0, -one / opacity, 0.0))


@triton.jit
def _reach(means, scales, gaussian, present, height, width):
    """Centre in pixels, and the box of a circle of three standard deviations in tiles, not yet rounded; NaN if not drawn."""
    center_x = 0.5 * width * tl.load(means + 2 * gaussian, present, 0.0) + 0.5 * width
    center_y = 0.5 * height * tl.load(means + 2 * gaussian + 1, present, 0.0) + 0.5 * height
    first, second = tl.load(scales + 2 * gaussian, present, 0.0), tl.load(scales + 2 * gaussian + 1, present, 0.0)
    first, second = first * first, second * second
    # Rounded as IEEE says: three standard deviations of a Gaussian of whole-numbered scales are a whole number.
    radius = tl.ceil(3 * tl.sqrt_rn(0.5 * (first + second) + tl.maximum(0.5 * tl.abs(first - second), MIN_SPREAD)))
    radius = tl.where(first * second > 0, radius, float("nan"))
    x, y, radius = center_x / TILE, center_y / TILE, radius / TILE
    return center_x, center_y, x - radius, y - radius, x + radius + 1, y + radius + 1


@triton.jit
def _whitening(scales, rotations, gaussian, present):
    """The matrix that takes offsets in pixels to distances along the Gaussian's own axes in standard deviations; 0 if absent."""
    first, second = tl.load(scales + 2 * gaussian, present, 1.0), tl.load(scales + 2 * gaussian + 1, present, 1.0)
    angle = tl.load(rotations + gaussian, present, 0.0)
    cos, sin = tl.cos(angle), tl.sin(angle)
    return cos / first, -sin / first, sin / second, cos / second


_launch_draw_tiles = Launcher(_draw_tiles, num_warps=4)
_launch_differentiate_gaussian = Launcher(_differentiate_gaussian, num_warps=1)
