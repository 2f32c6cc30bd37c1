"""Group normalisation with a scale, a shift and a swish on CUDA, in channels_last memory: Triton kernels, forward and backward.

PyTorch's own kernel copies channels_last to the other layout and, under autocast, to float32. These read and write the tensor as it
is: statistics and arithmetic are float32, what comes out has the type that went in, and the backward pass makes the normalised values
again from the input, so that nothing else is kept. A program owns some rows (pixels) of one image with all of their channels. There are
no atomic operations: the same inputs give the same bits.

Two launches each way. Forward: moments of parts of an image, which may be a residual sum that is made first; their union and the
result. Backward: the channels' sums of parts of an image (a sum over the parts gives the gradients of scale and shift); the gradient
of the input.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles the annotations of a kernel with it, and knows none but its own.

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from token_methods.rendering.kernel_launch import Launcher, power_of_two

TYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_CHANNELS = 1024
FORWARD_NUMBERS, BACKWARD_NUMBERS = 8192, 4096
"""Numbers of the input that a program looks at together."""
PROGRAMS = 2112
"""Enough to keep a GPU of a hundred multiprocessors busy; of more, each would sum up too little."""
MOST_PARTS = 64
"""Of an image. Each program of the second launch forward looks at the moments of all parts."""
LEAST_STEPS = 4
"""Blocks of rows that a part has, where there are so many: fewer are not worth a program."""
STAGES = {2: 3, 4: 1}
"""Blocks that are on their way from memory while one is worked on, by the bytes of a number: shared memory is small."""
SUMMING_WARPS, WRITING_WARPS = 4, 8
"""Of the programs of the first and of the second launch."""


def fits(x: Tensor, groups: int) -> bool:
    """Whether the kernels can normalise these values: some floats, in a number of channels per group that is a power of two."""
    channels = x.shape[1]
    return (
        x.dtype in TYPES
        and channels <= MOST_CHANNELS
        and channels % groups == 0
        and channels & (channels - 1) == 0
        and groups & (groups - 1) == 0
        and x.numel() > 0
    )


@cache
def _shares(batch: int, pixels: int, channels: int, numbers: int) -> tuple[int, int, int]:
    """Rows of a block, rows of a part of an image, and number of parts; no part is empty."""
    rows = max(1, numbers // channels)
    blocks = -(-pixels // rows)
    steps = max(-(-blocks * batch // PROGRAMS), -(-blocks // MOST_PARTS), min(LEAST_STEPS, blocks))
    return rows, rows * steps, -(-pixels // (rows * steps))


def measure(
    x: Float[Tensor, "batch channels height width"], groups: int, other: Float[Tensor, "batch channels height width"] | None = None
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch parts 2 groups"]]:
    """`x`, or the sum of `x` and `other`, and its moments for `normalise`. Both are in channels_last."""
    batch, channels, height, width = x.shape
    rows, part_rows, parts = _shares(batch, height * width, channels, FORWARD_NUMBERS)
    total = x if other is None else torch.empty_like(x, memory_format=torch.channels_last)
    moments = torch.empty((batch, parts, 2, groups), dtype=torch.float32, device=x.device)
    sizes = height * width, part_rows, parts, channels, groups, rows, STAGES[x.element_size()]
    _launch_measure(batch * parts, (x, other, total, moments), (*sizes, other is not None))
    return total, moments


def normalise(
    x: Float[Tensor, "batch channels height width"],
    moments: Float[Tensor, "batch parts 2 groups"],
    scale: Tensor,
    shift: Tensor,
    eps: float,
    swish: bool,
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch 2 groups"]]:
    """The result, and mean and reciprocal deviation of each group. `x` is in channels_last, scale and shift are contiguous."""
    batch, channels, height, width = x.shape
    groups = moments.shape[3]
    rows, part_rows, parts = _shares(batch, height * width, channels, FORWARD_NUMBERS)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    statistics = torch.empty((batch, 2, groups), dtype=torch.float32, device=x.device)
    constants = channels, groups, rows, STAGES[x.element_size()], power_of_two(parts), scale.ndim == 2, swish
    _launch_apply(batch * parts, (x, y, moments, statistics, scale, shift), (height * width, part_rows, parts, eps, *constants))
    return y, statistics


def differentiate(
    grad: Float[Tensor, "batch channels height width"],
    x: Float[Tensor, "batch channels height width"],
    statistics: Float[Tensor, "batch 2 groups"],
    scale: Tensor,
    shift: Tensor,
    swish: bool,
) -> tuple[Float[Tensor, "batch channels height width"], Tensor, Tensor]:
    """Gradients of `x`, scale and shift."""
    batch, channels, height, width = x.shape
    pixels, groups = height * width, statistics.shape[2]
    rows, part_rows, parts = _shares(batch, pixels, channels, BACKWARD_NUMBERS)
    grad = grad.contiguous(memory_format=torch.channels_last)
    x_grad = torch.empty_like(x, memory_format=torch.channels_last)
    part_sums = torch.empty((batch, parts, 2, channels), dtype=torch.float32, device=x.device)
    numbers = pixels, part_rows, parts, channels, groups, rows, STAGES[x.element_size()], scale.ndim == 2, swish
    _launch_sum_gradients(batch * parts, (x, grad, statistics, scale, shift, part_sums), numbers)
    sums = part_sums.sum(dim=1)
    _launch_input_gradient(batch * parts, (x, grad, x_grad, statistics, scale, shift, sums), numbers)
    shift_grad, scale_grad = (sums if scale.ndim == 2 else sums.sum(dim=0, keepdim=True)).unbind(dim=1)
    return x_grad, scale_grad.reshape(scale.shape).to(scale.dtype), shift_grad.reshape(shift.shape).to(shift.dtype)


@triton.jit
def _measure(
    x, other, total, moments, pixels, part_rows, parts,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each group in a part of an image: [batch, parts, 2, GROUPS]; if SUM, of a sum that is kept.

    Each place in the block follows its own mean (Welford 1962); they are united at the end. No square of a mean is subtracted.
    """
    image, first, last = _part(pixels, part_rows, parts)
    row = tl.arange(0, ROWS)
    offset = row[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    mean = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)
    seen = tl.zeros([ROWS], tl.float32)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        there = start + row < last
        own = (image * pixels + start) * CHANNELS + offset
        value = tl.load(x + own, there[:, None], 0.0).to(tl.float32)
        if SUM:
            rounded = (value + tl.load(other + own, there[:, None], 0.0).to(tl.float32)).to(total.dtype.element_ty)
            tl.store(total + own, rounded, there[:, None])
            value = rounded.to(tl.float32)
        seen += there.to(tl.float32)
        change = tl.where(there[:, None], value - mean, 0.0)
        mean += change * (1.0 / tl.maximum(seen, 1.0))[:, None]
        squares += change * (value - mean)
    count = (last - first).to(tl.float32) * (CHANNELS // GROUPS)
    group_mean = _of_groups(tl.sum(seen[:, None] * mean, 0), CHANNELS, GROUPS) / count
    away = mean - _to_channels(group_mean, CHANNELS, GROUPS)[None, :]
    group_squares = _of_groups(tl.sum(squares + seen[:, None] * away * away, 0), CHANNELS, GROUPS)
    place = moments + tl.program_id(0) * 2 * GROUPS + tl.arange(0, GROUPS)
    tl.store(place, group_mean)
    tl.store(place + GROUPS, group_squares)


@triton.jit
def _apply(
    x, y, moments, statistics, scale, shift, pixels, part_rows, parts, eps,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    PARTS: tl.constexpr, PER_IMAGE: tl.constexpr, SWISH: tl.constexpr,
):  # fmt: skip
    """Unites the moments of an image's parts and normalises one part."""
    image, first, last = _part(pixels, part_rows, parts)
    group = tl.arange(0, GROUPS)
    part = tl.arange(0, PARTS)
    size = tl.maximum(tl.minimum(pixels - part * part_rows, part_rows), 0).to(tl.float32)[:, None] * (CHANNELS // GROUPS)
    place = moments + (image * parts + part[:, None]) * 2 * GROUPS + group[None, :]
    part_mean = tl.load(place, (part < parts)[:, None], 0.0)
    part_squares = tl.load(place + GROUPS, (part < parts)[:, None], 0.0)
    count = 1.0 * pixels * (CHANNELS // GROUPS)  # one pixel is a constant, not a tensor
    mean = tl.sum(size * part_mean, 0) / count
    away = part_mean - mean[None, :]
    inverse = tl.rsqrt(tl.sum(part_squares + size * away * away, 0) / count + eps)
    if first == 0:
        tl.store(statistics + image * 2 * GROUPS + group, mean)
        tl.store(statistics + (image * 2 + 1) * GROUPS + group, inverse)

    channel_mean, factor = _to_channels(mean, CHANNELS, GROUPS), _to_channels(inverse, CHANNELS, GROUPS)
    channel = tl.arange(0, CHANNELS)
    own = channel + image * CHANNELS if PER_IMAGE else channel
    factor *= tl.load(scale + own).to(tl.float32)
    addend = tl.load(shift + own).to(tl.float32)
    row = tl.arange(0, ROWS)
    offset = row[:, None] * CHANNELS + channel[None, :]
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        there = (start + row < last)[:, None]
        begin = (image * pixels + start) * CHANNELS
        value = tl.load(x + begin + offset, there, 0.0).to(tl.float32)
        value = (value - channel_mean[None, :]) * factor[None, :] + addend[None, :]
        if SWISH:
            value *= tl.sigmoid(value)
        tl.store(y + begin + offset, value.to(y.dtype.element_ty), there)


@triton.jit
def _sum_gradients(
    x, grad, statistics, scale, shift, part_sums, pixels, part_rows, parts,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, PER_IMAGE: tl.constexpr, SWISH: tl.constexpr,
):  # fmt: skip
    """Gradients of shift and scale that one part of an image gives: [batch, parts, 2, CHANNELS]."""
    image, first, last = _part(pixels, part_rows, parts)
    mean, inverse = _statistics(statistics, image, CHANNELS, GROUPS)
    channel = tl.arange(0, CHANNELS)
    own = channel + image * CHANNELS if PER_IMAGE else channel
    factor, addend = tl.load(scale + own).to(tl.float32), tl.load(shift + own).to(tl.float32)
    row = tl.arange(0, ROWS)
    offset = row[:, None] * CHANNELS + channel[None, :]
    shift_sum = tl.zeros([ROWS, CHANNELS], tl.float32)
    scale_sum = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        place = (image * pixels + start) * CHANNELS + offset
        normalised, slope = _slopes(x, grad, place, start + row < last, mean, inverse, factor, addend, SWISH)
        shift_sum += slope
        scale_sum += slope * normalised
    place = part_sums + tl.program_id(0).to(tl.int64) * 2 * CHANNELS + channel
    tl.store(place, tl.sum(shift_sum, 0))
    tl.store(place + CHANNELS, tl.sum(scale_sum, 0))


@triton.jit
def _input_gradient(
    x, grad, x_grad, statistics, scale, shift, sums, pixels, part_rows, parts,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, PER_IMAGE: tl.constexpr, SWISH: tl.constexpr,
):  # fmt: skip
    """The gradient of one part of an image, out of `sums`: the gradients of shift and scale of the whole image, [batch, 2, CHANNELS]."""
    image, first, last = _part(pixels, part_rows, parts)
    mean, inverse = _statistics(statistics, image, CHANNELS, GROUPS)
    channel = tl.arange(0, CHANNELS)
    own = channel + image * CHANNELS if PER_IMAGE else channel
    factor, addend = tl.load(scale + own).to(tl.float32), tl.load(shift + own).to(tl.float32)
    count = 1.0 * pixels * (CHANNELS // GROUPS)  # one pixel is a constant, not a tensor
    total = sums + image * 2 * CHANNELS + channel
    # What a group's mean and deviation take away.
    level = _to_channels(_of_groups(factor * tl.load(total), CHANNELS, GROUPS) / count, CHANNELS, GROUPS)
    tilt = _to_channels(_of_groups(factor * tl.load(total + CHANNELS), CHANNELS, GROUPS) / count, CHANNELS, GROUPS)
    row = tl.arange(0, ROWS)
    offset = row[:, None] * CHANNELS + channel[None, :]
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        there = start + row < last
        place = (image * pixels + start) * CHANNELS + offset
        normalised, slope = _slopes(x, grad, place, there, mean, inverse, factor, addend, SWISH)
        value = inverse[None, :] * (slope * factor[None, :] - level[None, :] - normalised * tilt[None, :])
        tl.store(x_grad + place, value.to(x_grad.dtype.element_ty), there[:, None])


@triton.jit
def _part(pixels, part_rows, parts):
    """The program's image, and its first and last (exclusive) pixel."""
    first = tl.program_id(0) % parts * part_rows
    return (tl.program_id(0) // parts).to(tl.int64), first, tl.minimum(first + part_rows, pixels)


@triton.jit
def _of_groups(of_channels, CHANNELS: tl.constexpr, GROUPS: tl.constexpr):
    """Sums over each group's channels."""
    return tl.sum(tl.reshape(of_channels, (GROUPS, CHANNELS // GROUPS)), 1)


@triton.jit
def _to_channels(of_groups, CHANNELS: tl.constexpr, GROUPS: tl.constexpr):
    """Each channel's group's number."""
    return tl.reshape(tl.broadcast_to(of_groups[:, None], (GROUPS, CHANNELS // GROUPS)), (CHANNELS,))


@triton.jit
def _statistics(statistics, image, CHANNELS: tl.constexpr, GROUPS: tl.constexpr):
    """Mean and reciprocal deviation of the group of each channel."""
    own = statistics + image * 2 * GROUPS + tl.arange(0, CHANNELS) // (CHANNELS // GROUPS)
    return tl.load(own), tl.load(own + GROUPS)


@triton.jit
def _slopes(x, grad, place, there, mean, inverse, factor, addend, SWISH: tl.constexpr):
    """Normalised values of a block, and the loss's gradient before the swish, which is zero where there is no pixel."""
    normalised = (tl.load(x + place, there[:, None], 0.0).to(tl.float32) - mean[None, :]) * inverse[None, :]
    slope = tl.load(grad + place, there[:, None], 0.0).to(tl.float32)
    if SWISH:
        value = normalised * factor[None, :] + addend[None, :]
        sigmoid = tl.sigmoid(value)
        slope *= sigmoid * (1.0 + value * (1.0 - sigmoid))
    return normalised, slope


_launch_measure, _launch_sum_gradients = (Launcher(kernel, SUMMING_WARPS) for kernel in (_measure, _sum_gradients))
_launch_apply, _launch_input_gradient = (Launcher(kernel, WRITING_WARPS) for kernel in (_apply, _input_gradient))
