"""Pictures of any size to tokens and back, with a network that knows one size only: they are cut into tiles of that size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from token_methods.gaussiantoken.embedder import FinalRefinement
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.gaussiantoken.picture_tokens import PictureTokens, TokenGeometry, TokenLayout, codebook_fingerprint

PIXELS_PER_BATCH = {"cpu": 1 << 15, "cuda": 1 << 19}
"""Tiles that are computed together have so many pixels; a CPU is the faster the more of a batch fits into its caches."""


class ImageTokenizer:
    """Pictures to tokens and back.

    A picture is padded to whole tiles by repeating its last column and row, and cut back afterwards. Tiles of many pictures share a
    batch, so it pays to hand over several pictures at once.
    """

    def __init__(self, network: GaussianTokenNetwork) -> None:
        """The network is put in evaluation mode and runs where it is, in float32.

        Raises:
            ValueError: its Gaussians have opacities, which token files do not keep.
        """
        architecture = network.architecture
        if architecture.embedder is not None and architecture.embedder.has_opacity:
            raise ValueError("Gaussians with opacities cannot be kept as tokens: train a network without (has_opacity False)")
        self.network = network.eval()
        self.layout = token_layout(network)
        self.batch_size = max(1, PIXELS_PER_BATCH[self._device.type] // (self.layout.tile_height * self.layout.tile_width))

    def tokenize(self, picture: UInt8[np.ndarray, "height width 3"]) -> PictureTokens:
        """The tokens of a picture. Errors as those of `tokenize_all`."""
        return self.tokenize_all([picture])[0]

    def detokenize(self, tokens: PictureTokens) -> UInt8[np.ndarray, "height width 3"]:
        """The picture that tokens stand for. Errors as those of `detokenize_all`."""
        return self.detokenize_all([tokens])[0]

    @torch.inference_mode()
    def tokenize_all(self, pictures: Sequence[UInt8[np.ndarray, "height width 3"]]) -> list[PictureTokens]:
        """The tokens of several pictures, which may differ in size.

        Raises:
            ValueError: a picture is not uint8 [height, width, 3], or has no pixels.
        """
        for picture in pictures:
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
                raise ValueError(f"a picture must be uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}")
        if not pictures:
            return []
        tiles = torch.cat([cut(picture, self.layout) for picture in pictures])
        parts: list[list[Tensor]] = []
        for batch in tiles.split(self.batch_size):
            tokens, _ = self.network.tokenize(batch.to(self._device).float() / 127.5 - 1)
            shapes = tokens.gaussians
            geometry = [] if shapes is None else [shapes.means, shapes.scales, shapes.rotations]
            parts.append([value.cpu() for value in (tokens.indices, *geometry)])
        counts = [self.layout.num_tiles(*picture.shape[:2]) for picture in pictures]
        split = [[part.numpy() for part in torch.cat(column).split(counts)] for column in zip(*parts)]
        return [
            PictureTokens(picture.shape[0], picture.shape[1], indices, TokenGeometry(*geometry) if geometry else None)
            for picture, (indices, *geometry) in zip(pictures, zip(*split))
        ]

    @torch.inference_mode()
    def detokenize_all(self, pictures: Sequence[PictureTokens]) -> list[UInt8[np.ndarray, "height width 3"]]:
        """The pictures that several sets of tokens stand for.

        Raises:
            ValueError: codes or geometry that are not those of this network, see `GaussianTokenNetwork.tokens_from`.
        """
        if not pictures:
            return []
        columns = [torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*map(_parts, pictures))]
        tiles = [
            to_pixels(self.network.decode(self.network.tokens_from(*(part.to(self._device) for part in batch)))).cpu()
            for batch in zip(*(column.split(self.batch_size) for column in columns))
        ]
        counts = [len(picture.indices) for picture in pictures]
        return [join(own, picture.height, picture.width) for own, picture in zip(torch.cat(tiles).split(counts), pictures)]

    @property
    def _device(self) -> torch.device:
        return self.network.last_layer.device


def token_layout(network: GaussianTokenNetwork) -> TokenLayout:
    """What the tokens of a network look like."""
    architecture, scale_range = network.architecture, None
    if network.gs_embed is not None:
        last = network.gs_embed.layers[-1]
        assert isinstance(last, FinalRefinement)
        scale_range = (last.range_scheduler.smallest, float(last.range_scheduler.current_range_max))
    return TokenLayout(
        codebook_size=architecture.codebook_size,
        code_dim=architecture.code_dim,
        codebook_sha256=codebook_fingerprint(network.quantize.codebook),
        tile_height=architecture.image_size[0],
        tile_width=architecture.image_size[1],
        map_height=architecture.map_size[0],
        map_width=architecture.map_size[1],
        tokens_per_tile=architecture.num_tokens,
        scale_range=scale_range,
    )


def cut(picture: UInt8[np.ndarray, "height width 3"], layout: TokenLayout) -> UInt8[Tensor, "tiles 3 tile_height tile_width"]:
    """A picture as tiles, row by row."""
    height, width = picture.shape[:2]
    rows, columns = layout.tiling(height, width)
    below, right = rows * layout.tile_height - height, columns * layout.tile_width - width
    padded = torch.from_numpy(np.pad(picture, ((0, below), (0, right), (0, 0)), mode="edge"))
    tiles = padded.view(rows, layout.tile_height, columns, layout.tile_width, 3)
    return tiles.permute(0, 2, 4, 1, 3).flatten(0, 1)


def join(tiles: UInt8[Tensor, "tiles 3 tile_height tile_width"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The picture of tiles, without what sticks out of it."""
    columns = -(-width // tiles.shape[3])
    rows = tiles.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    return np.ascontiguousarray(rows.flatten(2, 3).flatten(0, 1)[:height, :width].numpy())


def to_pixels(images: Float[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch 3 height width"]:
    """Images in -1..1 as bytes, rounded; what lies outside is clamped."""
    return (images * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8)


def _parts(picture: PictureTokens) -> list[np.ndarray]:
    shapes = picture.geometry
    return [picture.indices, *(() if shapes is None else (shapes.means, shapes.scales, shapes.rotations))]
