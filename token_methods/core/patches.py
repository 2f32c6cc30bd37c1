"""Images to patch tokens."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """Cuts images into squares, maps each to a token, and normalises it (LayerNorm)."""

    def __init__(self, channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches dim"]:
        """Patches in row-major order.

        Raises:
            ValueError: the image size is not a multiple of the patch size.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image size {height} x {width} is not a multiple of the patch size {self.patch_size}; choose another size")
        return self.norm(self.proj(images).flatten(2).transpose(1, 2))
