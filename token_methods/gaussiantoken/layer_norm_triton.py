"""Layer normalisation of short rows on CUDA: Triton kernels, forward and backward.

Statistics of a row are computed as PyTorch's, from the squares of what is left without the mean. A backward pass is one launch: a
program gives the gradient of some rows of the input, and what they add to the gradients of scale and shift, which a sum over the
programs completes. There are no atomic operations: the same inputs give the same bits.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles the annotations of a kernel with it, and knows none but its own.

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from token_methods.rendering.kernel_launch import Launcher

LONGEST_ROW = 512
FORWARD_NUMBERS, BACKWARD_NUMBERS = 4096, 2048
"""Numbers of the input that a program looks at together."""
PROGRAMS = 1056
"""Of a backward pass, at most."""


def fits(x: Tensor) -> bool:
    """Whether the kernels can normalise these rows: float32, and as long as a power of two."""
    length = x.shape[-1]
    return x.dtype == torch.float32 and x.numel() > 0 and length <= LONGEST_ROW and length & (length - 1) == 0


def fused_layer_norm(
    x: Float[Tensor, "*rows dim"], scale: Float[Tensor, " dim"], shift: Float[Tensor, " dim"], eps: float
) -> Float[Tensor, "*rows dim"]:
    """Rows without their mean, over their deviation, times `scale`, plus `shift`. Differentiable once with respect to all three."""
    result: Tensor = _FusedLayerNorm.apply(x, scale, shift, eps)
    return result


class _FusedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        x, scale = x.contiguous(), scale.contiguous()
        dim = x.shape[-1]
        rows = x.numel() // dim
        y, statistics = torch.empty_like(x), x.new_empty((2, rows))
        block = FORWARD_NUMBERS // dim
        _launch_normalise(-(-rows // block), (x, y, statistics, scale, shift.contiguous()), (rows, eps, dim, block))
        ctx.save_for_backward(x, statistics, scale)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "*rows dim"]) -> tuple[Tensor | None, ...]:
        x, statistics, scale = ctx.saved_tensors
        dim = x.shape[-1]
        rows = x.numel() // dim
        block, part_rows, parts = _shares(rows, dim)
        x_grad, sums = torch.empty_like(x), x.new_empty((parts, 2, dim))
        _launch_differentiate(parts, (x, grad.contiguous(), x_grad, statistics, scale, sums), (rows, part_rows, dim, block))
        scale_grad, shift_grad = sums.sum(dim=0).unbind()
        return x_grad, scale_grad, shift_grad, None


@cache
def _shares(rows: int, dim: int) -> tuple[int, int, int]:
    """Rows of a block and of a program in the backward pass, and the number of programs."""
    block = BACKWARD_NUMBERS // dim
    part_rows = block * -(-rows // (block * PROGRAMS))
    return block, part_rows, -(-rows // part_rows)


@triton.jit
def _normalise(x, y, statistics, scale, shift, rows, eps, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """A block of rows, and the mean and reciprocal deviation of each."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, DIM)
    there = row < rows
    place = row[:, None].to(tl.int64) * DIM + column[None, :]
    value = tl.load(x + place, there[:, None], 0.0)
    mean = tl.sum(value, 1) / DIM
    value -= mean[:, None]
    inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value, 1) / DIM + eps)
    tl.store(statistics + row, mean, there)
    tl.store(statistics + rows + row, inverse, there)
    value = value * inverse[:, None] * tl.load(scale + column)[None, :] + tl.load(shift + column)[None, :]
    tl.store(y + place, value, there[:, None])


@triton.jit
def _differentiate(x, grad, x_grad, statistics, scale, sums, rows, part_rows, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of some rows, and what they add to those of scale and shift: [programs, 2, DIM]."""
    column = tl.arange(0, DIM)
    factor = tl.load(scale + column)[None, :]
    first = tl.program_id(0) * part_rows
    scale_sum = tl.zeros([BLOCK, DIM], tl.float32)
    shift_sum = tl.zeros([BLOCK, DIM], tl.float32)
    for start in range(first, tl.minimum(first + part_rows, rows), BLOCK):
        row = start + tl.arange(0, BLOCK)
        there = row < rows
        place = row[:, None].to(tl.int64) * DIM + column[None, :]
        mean, inverse = tl.load(statistics + row, there, 0.0), tl.load(statistics + rows + row, there, 0.0)
        normalised = (tl.load(x + place, there[:, None], 0.0) - mean[:, None]) * inverse[:, None]
        slope = tl.load(grad + place, there[:, None], 0.0)
        scale_sum += slope * normalised
        shift_sum += slope
        slope *= factor
        level, tilt = tl.sum(slope, 1) / DIM, tl.sum(slope * normalised, 1) / DIM
        tl.store(x_grad + place, inverse[:, None] * (slope - level[:, None] - normalised * tilt[:, None]), there[:, None])
    place = sums + tl.program_id(0) * 2 * DIM + column
    tl.store(place, tl.sum(scale_sum, 0))
    tl.store(place + DIM, tl.sum(shift_sum, 0))


_launch_normalise, _launch_differentiate = Launcher(_normalise, num_warps=4), Launcher(_differentiate, num_warps=4)
