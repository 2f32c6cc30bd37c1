"""Gaussians2D: tokens of an image as 2D Gaussians with features, and how they become a feature map.

The splat of GaussianToken (Dong et al. 2025, arXiv 2501.15619, section 3.3), which is that of GaussianImage (Zhang et al. 2024,
arXiv 2403.08551) with features in place of colours: a plain sum, without order, transmittance or background.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from token_methods.rendering.gaussians2d_torch import splat_tiles

PUBLISHED_TILE_LIMIT = 256
"""Gaussians of a tile that the published kernel for three channels draws."""


@dataclass(frozen=True)
class Gaussians2D:
    """Activated 2D Gaussians of a batch of images."""

    means: Float[Tensor, "batch n 2"]
    """Centres, x right and y down: -1 is the middle of the first pixel, 1 lies one pixel beyond the middle of the last."""
    scales: Float[Tensor, "batch n 2"]
    """Standard deviations along the Gaussian's own axes, in pixels of the map that is drawn."""
    rotations: Float[Tensor, "batch n 1"]
    """Angles in radians; the first axis points to (cos, -sin), that is, positive angles turn from right to up."""
    features: Float[Tensor, "batch n channels"]
    """Unbounded."""
    opacities: Float[Tensor, "batch n 1"] | None = None
    """None stands for 1 everywhere."""

    def __post_init__(self) -> None:
        if self.means.ndim != 3 or self.features.ndim != 3:
            raise ValueError(
                f"Gaussians2D needs means [batch, n, 2] and features [batch, n, channels], "
                f"got {list(self.means.shape)} and {list(self.features.shape)}"
            )
        batch, count, _ = self.means.shape
        trailing = {"means": 2, "scales": 2, "rotations": 1, "features": self.features.shape[2], "opacities": 1}
        for name, width in trailing.items():
            value = getattr(self, name)
            if value is not None and value.shape != (batch, count, width):
                raise ValueError(f"Gaussians2D.{name} must be {[batch, count, width]}, got {list(value.shape)}")

    @property
    def batch_size(self) -> int:
        return self.means.shape[0]

    @property
    def num_gaussians(self) -> int:
        return self.means.shape[1]

    @property
    def num_channels(self) -> int:
        return self.features.shape[2]

    @property
    def device(self) -> torch.device:
        return self.means.device

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields that are there, as `Gaussians2D(*tensors)` takes them."""
        fields = (self.means, self.scales, self.rotations, self.features)
        return fields if self.opacities is None else (*fields, self.opacities)

    def map(self, function: Callable[[Tensor], Tensor]) -> Gaussians2D:
        """Apply one function, which keeps the trailing axis, to every field that is there."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: function(value) for name, value in fields.items() if value is not None})

    def to(self, device: torch.device | str) -> Gaussians2D:
        return self.map(lambda value: value.to(device))

    def detach(self) -> Gaussians2D:
        return self.map(lambda value: value.detach())


def splat(gaussians: Gaussians2D, height: int, width: int, published: bool = False) -> Float[Tensor, "batch channels height width"]:
    """The feature map of every image of the batch: at each pixel the sum of alpha times feature over the Gaussians.

    alpha = min(1, opacity exp(-sigma)), sigma half the squared distance in standard deviations; pixels have whole-number
    coordinates. What is below 1/255 is not drawn, nor is a Gaussian outside the 16x16 tiles that a circle of three standard
    deviations reaches. Gaussians of a scale of zero, or with a number that is not finite in their shape, are not drawn.

    Computes in float32, under autocast too (in float64 if a field is); the gradients to all fields are exact. On CUDA the
    Triton kernels draw; otherwise, and for float64, torch does.

    Args:
        published: draw as the published kernels do: with three channels only the first 256 Gaussians of a tile, and with the
            two errors of their backward pass (see `gaussians2d_torch.splat_tiles`). For comparisons with published results.

    Raises:
        ValueError: the map has no pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a feature map needs at least one pixel, got height {height} and width {width}")
    means, scales, rotations, features, opacities = _one_type(gaussians)
    if published:
        limit = PUBLISHED_TILE_LIMIT if gaussians.num_channels == 3 else None
        return splat_tiles(means, scales, rotations, features, opacities, height, width, limit, published_backward=True)
    kernels = _cuda_kernels() if means.is_cuda and means.dtype == torch.float32 and features.numel() else None
    draw: Callable[..., Tensor] = splat_tiles if kernels is None else kernels.splat_fused
    return draw(means, scales, rotations, features, opacities, height, width)


def _one_type(gaussians: Gaussians2D) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """All fields in the type that they are drawn in."""
    means, scales, rotations, features, opacities = (
        gaussians.means, gaussians.scales, gaussians.rotations, gaussians.features, gaussians.opacities,
    )  # fmt: skip
    dtypes = {means.dtype, scales.dtype, rotations.dtype, features.dtype, means.dtype if opacities is None else opacities.dtype}
    if dtypes == {torch.float32}:
        return means, scales, rotations, features, opacities
    dtype = reduce(torch.promote_types, dtypes, torch.float32)
    opacities = None if opacities is None else opacities.to(dtype)
    return means.to(dtype), scales.to(dtype), rotations.to(dtype), features.to(dtype), opacities


@cache
def _cuda_kernels() -> ModuleType | None:
    """The module of the CUDA kernels, None where Triton is not installed."""
    try:
        from token_methods.rendering import gaussians2d_triton
    except ImportError:
        return None
    return gaussians2d_triton
