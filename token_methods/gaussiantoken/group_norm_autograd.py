"""The fused normalisation as a step that gradients go through: eagerly an autograd function, in compiled graphs an operator."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from token_methods.gaussiantoken.group_norm_triton import differentiate, fits, normalise

__all__ = ["fits", "fused_group_norm"]


def fused_group_norm(
    x: Float[Tensor, "batch channels height width"],
    scale: Float[Tensor, "channels"] | Float[Tensor, "batch channels"],
    shift: Float[Tensor, "channels"] | Float[Tensor, "batch channels"],
    groups: int,
    eps: float,
    swish: bool,
) -> Float[Tensor, "batch channels height width"]:
    """`scale * normalised + shift` in the type of `x` and channels_last, times its own sigmoid if `swish`.

    Differentiable once with respect to `x`, `scale` and `shift`. In a graph that is compiled it is an operator of its own, so that the
    same kernels run there: a compiler would make a reduction over strided groups of it. Eagerly, a plain autograd function costs the
    host less.
    """
    if torch.compiler.is_compiling():
        y: Tensor = _operator(x, scale, shift, groups, eps, swish)[0]
        return y
    result: Tensor = _FusedGroupNorm.apply(x, scale, shift, groups, eps, swish)
    return result


class _FusedGroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, swish: bool) -> Tensor:
        x, scale, shift = x.contiguous(memory_format=torch.channels_last), scale.contiguous(), shift.contiguous()
        y, statistics = normalise(x, scale, shift, groups, eps, swish)
        ctx.save_for_backward(x, statistics, scale, shift)
        ctx.swish = swish
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, scale, shift = ctx.saved_tensors
        return *differentiate(grad, x, statistics, scale, shift, ctx.swish), None, None, None


# The same as an operator that a compiler does not look into.


@torch.library.custom_op(
    "nerfstudio_tokens::group_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor scale, Tensor shift, int groups, float eps, bool swish) -> (Tensor, Tensor)",
)
def _operator(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, swish: bool) -> tuple[Tensor, Tensor]:
    return normalise(x.contiguous(memory_format=torch.channels_last), scale.contiguous(), shift.contiguous(), groups, eps, swish)


@_operator.register_fake
def _operator_shapes(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, swish: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), x.new_empty(x.shape[0], 2, groups, dtype=torch.float32)


@torch.library.custom_op(
    "nerfstudio_tokens::group_norm_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor statistics, Tensor scale, Tensor shift, bool swish) -> (Tensor, Tensor, Tensor)",
)
def _backward_operator(
    grad: Tensor, x: Tensor, statistics: Tensor, scale: Tensor, shift: Tensor, swish: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, scale, shift = x.contiguous(memory_format=torch.channels_last), scale.contiguous(), shift.contiguous()
    x_grad, scale_grad, shift_grad = differentiate(grad, x, statistics, scale, shift, swish)
    # Views of one tensor, which an operator's results may not be.
    return x_grad, scale_grad.clone(memory_format=torch.contiguous_format), shift_grad.clone(memory_format=torch.contiguous_format)


@_backward_operator.register_fake
def _backward_operator_shapes(
    grad: Tensor, x: Tensor, statistics: Tensor, scale: Tensor, shift: Tensor, swish: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), scale.new_empty(scale.shape), shift.new_empty(shift.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, scale, shift, _, _, ctx.swish = inputs
    ctx.save_for_backward(x, output[1], scale, shift)
    ctx.mark_non_differentiable(output[1])


def _operator_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_operator(grad, *ctx.saved_tensors, ctx.swish), None, None, None


_operator.register_autograd(_operator_backward, setup_context=_keep)
