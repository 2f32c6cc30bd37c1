"""Which Gaussians reach which tile of an image, front to back: the order in which the tile rasteriser works."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from token_methods.rendering.projection import Splats

TILE = 8
"""Side of a tile in pixels. Small Gaussians waste less of a small tile; larger ones need fewer list entries of a large one."""
BLOCK_DEPTH = 64
"""Gaussians of a tile that are evaluated before asking again whether its pixels are opaque."""
BLOCK_PAIRS = 2**17
"""Pairs of pixel and Gaussian that are evaluated together: half a megabyte per intermediate result."""
LIST_ENTRIES = 2**22
"""Pairs of tile and Gaussian that are listed together: 32 megabytes per list."""


@dataclass(frozen=True)
class TileLists:
    """For every tile in a band of every image, the splats that reach it from front to back."""

    top: int
    """First row of tiles of the band."""
    down: int
    across: int
    """Rows of tiles of the band, and tiles in each."""
    splats: Int[Tensor, " entries"]
    """Rows of the splats, the lists of all tiles one after another."""
    start: Int[Tensor, " tiles"]
    count: Int[Tensor, " tiles"]

    def centres(self, tiles: Int[Tensor, " chosen"]) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " chosen"]]:
        """x and y in pixels of the middle of some tiles."""
        cell = tiles % (self.down * self.across)
        return cell % self.across * TILE + TILE // 2, (self.top + cell // self.across) * TILE + TILE // 2

    def chunks(self) -> Iterator[Int[Tensor, " chosen"]]:
        """Groups of tiles with lists of similar length, longest first; tiles with empty lists are left out."""
        order = self.count.argsort(descending=True, stable=True)
        counts = self.count[order].tolist()
        first = 0
        while first < len(counts) and counts[first] > 0:
            size = max(1, BLOCK_PAIRS // (TILE * TILE * min(counts[first], BLOCK_DEPTH)))
            last = min(first + size, len(counts))
            while counts[last - 1] == 0:
                last -= 1
            yield order[first:last]
            first = last


@torch.no_grad()
def tile_lists(splats: Splats, images: int, height: int, width: int) -> Iterator[TileLists]:
    """Sort splats into tiles; images that would need very long lists come in several bands, from top to bottom.

    Order within a tile: depth as float32, then row (that is, Gaussian).
    """
    down, across = math.ceil(height / TILE), math.ceil(width / TILE)
    order = splats.depths.float().argsort(stable=True)
    centres, extents = splats.centres[order] - 0.5, splats.extents[order] + 1e-3  # pixel centres lie at +0.5
    low = ((centres - extents) / TILE).floor().long().clamp_min(0)
    high = torch.minimum(((centres + extents) / TILE).floor().long() + 1, torch.tensor([across, down]))
    entries = int((high - low).clamp_min(0).prod(-1).sum())
    rows = math.ceil(down / math.ceil(max(1, entries) / LIST_ENTRIES))
    for top in range(0, down, rows):
        bottom = min(top + rows, down)
        first_row = low[:, 1].clamp_min(top)
        rows_reached = (high[:, 1].clamp_max(bottom) - first_row).clamp_min(0)
        columns_reached = (high[:, 0] - low[:, 0]).clamp_min(0)
        reached = rows_reached * columns_reached
        owner = torch.repeat_interleave(reached)
        place = torch.arange(len(owner)) - (reached.cumsum(0) - reached)[owner]
        column = low[:, 0][owner] + place % columns_reached[owner]
        row = first_row[owner] + place // columns_reached[owner] - top
        tile = (splats.image[order][owner] * (bottom - top) + row) * across + column
        by_tile = tile.argsort(stable=True)
        count = torch.bincount(tile, minlength=images * (bottom - top) * across)
        yield TileLists(top, bottom - top, across, order[owner[by_tile]], count.cumsum(0) - count, count)
