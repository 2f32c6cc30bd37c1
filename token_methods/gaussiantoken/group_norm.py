"""Group normalisation with the swish that follows it, or with a scale and shift of each image: fused on CUDA where Triton is installed.

Elsewhere, and for values that the kernels do not take, PyTorch's own operators say the same. On CUDA the result has the type of the
input, under autocast too, so that convolutions before and after need no copy in another type; and it is in channels_last memory.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

HAS_TRITON = find_spec("triton") is not None
MOMENTS = "group_moments"
"""Attribute of a residual sum. Nothing changes such a sum in place."""


def norm_swish(x: Float[Tensor, "batch channels height width"], norm: nn.GroupNorm) -> Float[Tensor, "batch channels height width"]:
    """`norm`, which has a learned scale and shift, then swish."""
    kernels = _kernels(x, norm.num_groups)
    if kernels is None:
        return F.silu(norm(x))
    y: Tensor = kernels.fused_group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, True, _moments(x, norm.num_groups))
    return y


def norm_modulated(
    x: Float[Tensor, "batch channels height width"],
    scale: Float[Tensor, "batch channels"],
    shift: Float[Tensor, "batch channels"],
    groups: int,
    eps: float,
) -> Float[Tensor, "batch channels height width"]:
    """Normalised, times each image's own scale, plus its own shift; in the type of `x`, computed in that of the scale or float32."""
    kernels = _kernels(x, groups)
    if kernels is None:
        normalised = F.group_norm(x.to(scale.dtype), groups, eps=eps)
        return torch.addcmul(shift[..., None, None], scale[..., None, None], normalised).to(x.dtype)
    y: Tensor = kernels.fused_group_norm(x, scale, shift, groups, eps, False, _moments(x, groups))
    return y


def residual_sum(
    x: Float[Tensor, "batch channels height width"], y: Float[Tensor, "batch channels height width"], groups: int
) -> Float[Tensor, "batch channels height width"]:
    """`x + y`. The kernels measure it on the way and leave that with it, for the norm of `groups` groups that takes it next."""
    kernels = _kernels(x, groups) if x.dtype == y.dtype else None
    if kernels is None:
        return x + y
    total: Tensor
    total, moments = kernels.fused_sum(x, y, groups)
    setattr(total, MOMENTS, moments)
    return total


def is_fused(x: Float[Tensor, "batch channels height width"], groups: int) -> bool:
    """Whether values like these are normalised by the fused kernels."""
    return _kernels(x, groups) is not None


def _moments(x: Tensor, groups: int) -> Tensor | None:
    """What was measured of `x` when it was summed up."""
    moments: Tensor | None = getattr(x, MOMENTS, None)
    return moments if moments is not None and moments.shape[3] == groups else None


def _kernels(x: Tensor, groups: int) -> ModuleType | None:
    """The module of the fused normalisation if its CUDA kernels are there and take these values."""
    if not (x.is_cuda and HAS_TRITON):
        return None
    from token_methods.gaussiantoken import group_norm_autograd

    return group_norm_autograd if group_norm_autograd.fits(x, groups) else None
