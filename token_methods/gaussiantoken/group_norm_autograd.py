"""The fused normalisation, and residual sums for it, as steps that gradients go through."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from token_methods.gaussiantoken.group_norm_triton import differentiate, fits, measure, normalise

__all__ = ["fits", "fused_group_norm", "fused_sum"]


def fused_sum(
    a: Float[Tensor, "batch channels height width"], b: Float[Tensor, "batch channels height width"], groups: int
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch parts 2 groups"]]:
    """`a + b` in channels_last, and the moments that `fused_group_norm` takes. Both have one type."""
    result: tuple[Tensor, Tensor] = _FusedSum.apply(a, b, groups)
    return result


def fused_group_norm(
    x: Float[Tensor, "batch channels height width"],
    scale: Float[Tensor, "channels"] | Float[Tensor, "batch channels"],
    shift: Float[Tensor, "channels"] | Float[Tensor, "batch channels"],
    groups: int,
    eps: float,
    swish: bool,
    moments: Float[Tensor, "batch parts 2 groups"] | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """`scale * normalised + shift` in the type of `x` and channels_last, times its own sigmoid if `swish`.

    `moments` are those of `x` from `fused_sum`. Differentiable once with respect to `x`, `scale` and `shift`.
    """
    result: Tensor = _FusedGroupNorm.apply(x, scale, shift, groups, eps, swish, moments)
    return result


class _FusedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        total, moments = measure(_in_channels_last(a), groups, _in_channels_last(b))
        ctx.mark_non_differentiable(moments)
        return total, moments

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return grad, grad, None


class _FusedGroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, swish: bool, moments: Tensor | None) -> Tensor:
        x, scale, shift = _in_channels_last(x), scale.contiguous(), shift.contiguous()
        if moments is None:
            _, moments = measure(x, groups)
        y, statistics = normalise(x, moments, scale, shift, eps, swish)
        ctx.save_for_backward(x, statistics, scale, shift)
        ctx.swish = swish
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, scale, shift = ctx.saved_tensors
        return *differentiate(grad, x, statistics, scale, shift, ctx.swish), *(None,) * 4


def _in_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
