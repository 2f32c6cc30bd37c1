"""The tokens of a picture of any size, and what must be known of a network to understand them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor


@dataclass(frozen=True)
class TokenGeometry:
    """Where the Gaussians of a picture are, tile by tile."""

    means: Float32[np.ndarray, "tiles n 2"]
    """Within -1..1 of the tile's feature map, x right and y down."""
    scales: Float32[np.ndarray, "tiles n 2"]
    """Standard deviations in cells of the feature map, along the Gaussian's own axes."""
    rotations: Float32[np.ndarray, "tiles n 1"]
    """Radians."""


@dataclass(frozen=True)
class PictureTokens:
    """A picture as tokens. Tiles go row by row from the top left; the last column and row may stick out of the picture."""

    height: int
    """Of the picture, in pixels."""
    width: int
    indices: Int64[np.ndarray, "tiles n"]
    """Each token's code."""
    geometry: TokenGeometry | None
    """None for the baseline, whose tokens are the cells of the map, row by row."""


@dataclass(frozen=True)
class TokenLayout:
    """What the tokens of one network look like; only a network of the same layout understands them."""

    codebook_size: int
    """Number of codes."""
    code_dim: int
    """Channels of a code."""
    codebook_sha256: str
    """Of the codebook's bytes, see `codebook_fingerprint`."""
    tile_height: int
    """Of the images that the network sees, in pixels."""
    tile_width: int
    map_height: int
    """Of the feature map, in cells."""
    map_width: int
    tokens_per_tile: int
    scale_range: tuple[float, float] | None
    """Smallest and largest standard deviation, in cells: what a network can give, or what is in a file. None for the baseline."""

    @property
    def index_bits(self) -> int:
        """Bits that tell one code from all others."""
        return max(1, (self.codebook_size - 1).bit_length())

    def tiling(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles that cover a picture."""
        return -(-height // self.tile_height), -(-width // self.tile_width)

    def num_tiles(self, height: int, width: int) -> int:
        """Tiles that cover a picture."""
        rows, columns = self.tiling(height, width)
        return rows * columns

    def differences(self, other: TokenLayout) -> Iterator[str]:
        """In words, where two networks differ for their tokens. The range of scales does not count: it is told with the tokens."""
        for what, own, others in (
            ("codes", (self.codebook_size, self.code_dim), (other.codebook_size, other.code_dim)),
            ("pixels of a tile", (self.tile_width, self.tile_height), (other.tile_width, other.tile_height)),
            ("cells of the feature map", (self.map_width, self.map_height), (other.map_width, other.map_height)),
        ):
            if own != others:
                yield f"{own[0]} x {own[1]} {what} instead of {others[0]} x {others[1]}"
        if self.tokens_per_tile != other.tokens_per_tile:
            yield f"{self.tokens_per_tile} tokens per tile instead of {other.tokens_per_tile}"
        if (self.scale_range is None) != (other.scale_range is None):
            yield "cells for tokens instead of Gaussians" if self.scale_range is None else "Gaussians for tokens instead of cells"
        if self.codebook_sha256 != other.codebook_sha256:
            yield f"the codebook {self.codebook_sha256[:8]} instead of {other.codebook_sha256[:8]}"


def codebook_fingerprint(codebook: Tensor) -> str:
    """SHA-256 of the codes as little-endian float32, code after code."""
    return hashlib.sha256(codebook.detach().cpu().numpy().astype("<f4").tobytes()).hexdigest()
