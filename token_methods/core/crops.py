"""From a picture of any size to the size of a network: the largest centred window, then an antialiased resize.

Pixels and intrinsics take the same way. Two conventions exist for the principal point:

- `"exact"`: the whole-pixel window that was cut is also what moves cx, cy. A point keeps its place to rounding error.
- `"published"`: cx, cy move by the unrounded half difference of the sizes, as the TokenGS publication does. Where that
  difference is odd the pixels are half a source pixel away from what the intrinsics say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

CropConvention = Literal["exact", "published"]


@dataclass(frozen=True)
class CropAndResize:
    """The largest centred window of a picture that has the wanted proportions, resized to the wanted size."""

    source_height: int
    source_width: int
    top: int
    left: int
    crop_height: int
    crop_width: int
    height: int
    width: int

    @classmethod
    def centred(cls, source_height: int, source_width: int, height: int, width: int) -> CropAndResize:
        """The window for a picture of `source_height` x `source_width`; offsets are rounded half to even."""
        ratio = min(source_height / height, source_width / width)
        crop_height, crop_width = max(1, int(height * ratio)), max(1, int(width * ratio))
        return cls(
            source_height=source_height,
            source_width=source_width,
            top=round((source_height - crop_height) / 2),
            left=round((source_width - crop_width) / 2),
            crop_height=crop_height,
            crop_width=crop_width,
            height=height,
            width=width,
        )

    def image(self, image: Float[Tensor, "channels source_height source_width"]) -> Float[Tensor, "channels height width"]:
        """Cut and resize (bilinear, antialiased, pixel centres at +0.5)."""
        if tuple(image.shape[-2:]) != (self.source_height, self.source_width):
            raise ValueError(f"expected {self.source_height} x {self.source_width} pixels, got {tuple(image.shape[-2:])}")
        window = image[..., self.top : self.top + self.crop_height, self.left : self.left + self.crop_width]
        if (self.crop_height, self.crop_width) == (self.height, self.width):
            return window.contiguous()
        return torch.nn.functional.interpolate(window[None], size=(self.height, self.width), mode="bilinear", antialias=True)[0]

    def intrinsics(self, intrinsics: Float[Tensor, "*batch 4"], convention: CropConvention = "exact") -> Float[Tensor, "*batch 4"]:
        """(fx, fy, cx, cy) in pixels of the source to pixels of the result."""
        if convention == "exact":
            shift_x, shift_y = -float(self.left), -float(self.top)
        else:
            shift_x, shift_y = (self.crop_width - self.source_width) / 2, (self.crop_height - self.source_height) / 2
        scale_x, scale_y = self.width / self.crop_width, self.height / self.crop_height
        fx, fy, cx, cy = intrinsics.unbind(-1)
        return torch.stack([fx * scale_x, fy * scale_y, (cx + shift_x) * scale_x, (cy + shift_y) * scale_y], dim=-1)
