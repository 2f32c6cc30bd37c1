"""Reading a map at the points of deformable attention on CUDA: Triton kernels for what `attention.read_map` says, forward and backward.

A program takes some pairs of query and head, whose channels lie side by side, and keeps weights, points and what they read in
registers: nothing of the size of all points is written. The gradient of the map is summed up by atomic additions, in any order (as that
of PyTorch's `grid_sample`); everything else is the same every time.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles the annotations of a kernel with it, and knows none but its own.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from token_methods.rendering.kernel_launch import Launcher, power_of_two

MOST_CHANNELS = 128
"""Of a head."""
NUMBERS = 1024
"""Channels that a program reads together."""


def fits(values: Tensor, num_heads: int) -> bool:
    """Whether the kernels can read this map: float32, and heads whose number of channels is a power of two."""
    channels = values.shape[-1] // num_heads
    return values.dtype == torch.float32 and values.numel() > 0 and channels <= MOST_CHANNELS and channels & (channels - 1) == 0


def fused_read_map(
    values: Float[Tensor, "batch cells dim"],
    references: Float[Tensor, "*batch queries 2"],
    fixed_offset: Float[Tensor, "1 2"],
    offsets: Float[Tensor, "batch queries _"],
    logits: Float[Tensor, "batch queries _"],
    num_heads: int,
    map_size: tuple[int, int],
) -> Float[Tensor, "batch queries dim"]:
    """See `attention.read_map`. Differentiable once, but not with respect to `fixed_offset`."""
    result: Tensor = _FusedRead.apply(values, references, fixed_offset, offsets, logits, num_heads, *map_size)
    return result


class _FusedRead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        references: Tensor,
        fixed_offset: Tensor,
        offsets: Tensor,
        logits: Tensor,
        num_heads: int,
        height: int,
        width: int,
    ) -> Tensor:
        inputs = tuple(value.contiguous() for value in (values, references, fixed_offset, offsets, logits))
        seen = torch.empty((*logits.shape[:2], values.shape[2]), dtype=values.dtype, device=values.device)
        ctx.save_for_backward(*inputs)
        ctx.num_heads, ctx.map_size = num_heads, (height, width)
        programs, numbers = _sizes(inputs, num_heads, height, width)
        _launch_read(programs, (*inputs, seen), numbers)
        return seen

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "batch queries dim"]) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        values, references, _, offsets, logits = inputs
        value_grad, offset_grad, logit_grad = torch.zeros_like(values), torch.empty_like(offsets), torch.empty_like(logits)
        # Of each head; a query's heads look from one place, and all images from the same places if these have no batch axis.
        place_grad = logits.new_empty((*logits.shape[:2], ctx.num_heads, 2))
        programs, numbers = _sizes(inputs, ctx.num_heads, *ctx.map_size)
        _launch_differentiate(programs, (*inputs, grad.contiguous(), value_grad, offset_grad, logit_grad, place_grad), numbers)
        reference_grad = place_grad.sum(dim=2).sum_to_size(references.shape) if ctx.needs_input_grad[1] else None
        return value_grad, reference_grad, None, offset_grad, logit_grad, None, None, None


def _sizes(inputs: tuple[Tensor, ...], num_heads: int, height: int, width: int) -> tuple[int, tuple[int, ...]]:
    """Programs, and the numbers that both kernels take."""
    values, references, _, _, logits = inputs
    batch, queries = logits.shape[:2]
    channels, points = values.shape[2] // num_heads, logits.shape[2] // num_heads
    pairs, block = batch * queries * num_heads, max(1, NUMBERS // channels)
    numbers = (pairs, queries, height, width, references.ndim == 3, num_heads, points, power_of_two(points), channels, block)
    return -(-pairs // block), numbers


@triton.jit
def _read(
    values, references, fixed_offset, offsets, logits, seen, pairs, queries, height, width,
    OWN: tl.constexpr, HEADS: tl.constexpr, POINTS: tl.constexpr, SLOTS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`seen` of some pairs of query and head. OWN: each image has its own references. SLOTS: POINTS as a power of two."""
    pair, there, x, y, slot, weights, first = _look(
        references, logits, pairs, queries, height, width, OWN, HEADS, POINTS, SLOTS, CHANNELS, BLOCK
    )
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for point in tl.static_range(POINTS):
        dx, dy = _offset(fixed_offset, offsets, pair, there, point, POINTS)
        weight = tl.sum(tl.where(slot[None, :] == point, weights, 0.0), 1)
        left, top = tl.floor(x + dx), tl.floor(y + dy)
        right_share, lower_share = x + dx - left, y + dy - top
        for corner in tl.static_range(4):
            place, inside, share = _corner(left, top, right_share, lower_share, corner, there, first, height, width, HEADS, CHANNELS)
            total += (weight * share)[:, None] * tl.load(values + place[:, None] + channel[None, :], inside[:, None], 0.0)
    tl.store(seen + pair[:, None] * CHANNELS + channel[None, :], total, there[:, None])


@triton.jit
def _differentiate(
    values, references, fixed_offset, offsets, logits, grad, value_grad, offset_grad, logit_grad, place_grad,
    pairs, queries, height, width,
    OWN: tl.constexpr, HEADS: tl.constexpr, POINTS: tl.constexpr, SLOTS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All gradients that some pairs of query and head give."""
    pair, there, x, y, slot, weights, first = _look(
        references, logits, pairs, queries, height, width, OWN, HEADS, POINTS, SLOTS, CHANNELS, BLOCK
    )
    channel = tl.arange(0, CHANNELS)
    slope = tl.load(grad + pair[:, None] * CHANNELS + channel[None, :], there[:, None], 0.0)
    weight_grads = tl.zeros([BLOCK, SLOTS], tl.float32)
    place_x = tl.zeros([BLOCK], tl.float32)
    place_y = tl.zeros([BLOCK], tl.float32)
    for point in tl.static_range(POINTS):
        dx, dy = _offset(fixed_offset, offsets, pair, there, point, POINTS)
        weight = tl.sum(tl.where(slot[None, :] == point, weights, 0.0), 1)
        left, top = tl.floor(x + dx), tl.floor(y + dy)
        right_share, lower_share = x + dx - left, y + dy - top
        read = tl.zeros([BLOCK], tl.float32)
        along_x = tl.zeros([BLOCK], tl.float32)
        along_y = tl.zeros([BLOCK], tl.float32)
        for corner in tl.static_range(4):
            place, inside, share = _corner(left, top, right_share, lower_share, corner, there, first, height, width, HEADS, CHANNELS)
            cell = place[:, None] + channel[None, :]
            agreement = tl.sum(slope * tl.load(values + cell, inside[:, None], 0.0), 1)
            read += share * agreement
            along_x += agreement * (lower_share if corner // 2 == 1 else 1.0 - lower_share) * (1.0 if corner % 2 == 1 else -1.0)
            along_y += agreement * (right_share if corner % 2 == 1 else 1.0 - right_share) * (1.0 if corner // 2 == 1 else -1.0)
            tl.atomic_add(value_grad + cell, (weight * share)[:, None] * slope, inside[:, None])
        weight_grads += tl.where(slot[None, :] == point, read[:, None], 0.0)
        place_x += weight * along_x
        place_y += weight * along_y
        if point > 0:
            own = offset_grad + (pair * (POINTS - 1) + point - 1) * 2
            tl.store(own, weight * along_x, there)
            tl.store(own + 1, weight * along_y, there)
    mean = tl.sum(weights * weight_grads, 1)
    own = logit_grad + pair[:, None] * POINTS + slot[None, :]
    tl.store(own, weights * (weight_grads - mean[:, None]), there[:, None] & (slot[None, :] < POINTS))
    tl.store(place_grad + 2 * pair, place_x * width, there)
    tl.store(place_grad + 2 * pair + 1, place_y * height, there)


@triton.jit
def _look(
    references, logits, pairs, queries, height, width,
    OWN: tl.constexpr, HEADS: tl.constexpr, POINTS: tl.constexpr, SLOTS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pairs, where they look from (in cells, from the middle of the first), the weights of their points, and the map's first channel."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = pair < pairs
    query = pair // HEADS
    own = references + 2 * (query if OWN else query % queries)
    x, y = tl.load(own, there, 0.0) * width - 0.5, tl.load(own + 1, there, 0.0) * height - 0.5
    slot = tl.arange(0, SLOTS)
    logit = tl.load(logits + pair[:, None] * POINTS + slot[None, :], there[:, None] & (slot[None, :] < POINTS), 0.0)
    logit = tl.where(slot[None, :] < POINTS, logit, float("-inf"))
    weights = tl.exp(logit - tl.max(logit, 1)[:, None])
    weights /= tl.sum(weights, 1)[:, None]
    first = ((query // queries).to(tl.int64) * height * width * HEADS + pair % HEADS) * CHANNELS
    return pair, there, x, y, slot, weights, first


@triton.jit
def _offset(fixed_offset, offsets, pair, there, point: tl.constexpr, POINTS: tl.constexpr):
    """Of a point of each pair, in cells."""
    if point == 0:
        dx, dy = tl.load(fixed_offset + 0 * pair), tl.load(fixed_offset + 0 * pair + 1)
    else:
        own = offsets + (pair * (POINTS - 1) + point - 1) * 2
        dx, dy = tl.load(own, there, 0.0), tl.load(own + 1, there, 0.0)
    return dx, dy


@triton.jit
def _corner(
    left, top, right_share, lower_share, corner: tl.constexpr, there, first, height, width, HEADS: tl.constexpr, CHANNELS: tl.constexpr
):
    """A cell around each point: its first channel, whether it is on the map, and its share."""
    column, row = left + corner % 2, top + corner // 2
    inside = there & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = first + tl.where(inside, row * width + column, 0.0).to(tl.int32) * (HEADS * CHANNELS)
    share = (right_share if corner % 2 == 1 else 1.0 - right_share) * (lower_share if corner // 2 == 1 else 1.0 - lower_share)
    return place, inside, share


_launch_read, _launch_differentiate = Launcher(_read, num_warps=4), Launcher(_differentiate, num_warps=4)
