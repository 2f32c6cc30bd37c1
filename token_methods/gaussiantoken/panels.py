"""Pictures of a tokenizer at work: what it makes of images, where its tokens lie, and how it uses its codes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from token_methods.multiscene.panels import error_colours
from token_methods.rendering.ellipses import draw_ellipses, picture_ellipses
from token_methods.rendering.footprints import footprint_colors, footprints
from token_methods.rendering.gaussians2d import Gaussians2D

LEAST_HEIGHT = 128
"""Smaller pictures are enlarged to this many pixels and more, each pixel to a square."""
DIMMED = 0.3
"""Share of its light that the picture behind ellipses keeps: they have its colours."""
HISTOGRAM_SIZE = (160, 640)
"""Height and width of the picture of code usage."""
BAR = (0.96, 0.65, 0.14)
UNUSED = (0.35, 0.08, 0.12)

Picture = Float[Tensor, "height width 3"]
Images = Float[Tensor, "n 3 height width"]


def comparison(
    images: Images, reconstructions: Images, gaussians: Gaussians2D | None = None, map_size: tuple[int, int] | None = None
) -> Picture:
    """Rows of images, reconstructions, absolute errors, and, where Gaussians are given, these as ellipses of one standard deviation.

    Args:
        images: in [0, 1].
        reconstructions: in [0, 1]; clipped.
        gaussians: the tokens of every image.
        map_size: height and width of the feature map that they are splatted onto, in cells.
    """
    reconstructions = reconstructions.clamp(0, 1)
    rows = [_enlarged(row) for row in (images, reconstructions, error_colours(reconstructions, images))]
    if gaussians is not None and map_size is not None:
        rows.append(_ellipses(reconstructions, gaussians, map_size))
    return torch.cat([torch.cat(list(row.permute(0, 2, 3, 1)), dim=1) for row in rows], dim=0)


def code_histogram(indices: Int64[Tensor, "batch n"], codebook_size: int) -> Picture:
    """How often each code is used: bars from the most frequent code on the left to the rarest, heights logarithmic.

    The dark red part on the right stands for the codes that are not used at all.
    """
    height, width = HISTOGRAM_SIZE
    counts = torch.bincount(indices.flatten(), minlength=codebook_size).sort(descending=True).values
    columns = counts[torch.linspace(0, codebook_size - 1, width, device=counts.device).round().long()]
    heights = (1 + columns).log() / (1 + counts[0]).log() * height
    above = torch.arange(height, 0, -1, device=counts.device)[:, None]
    picture = torch.zeros(height, width, 3, device=counts.device)
    picture[:, columns == 0] = picture.new_tensor(UNUSED)
    picture[above <= heights.ceil()] = picture.new_tensor(BAR)
    return picture


def _ellipses(reconstructions: Images, gaussians: Gaussians2D, map_size: tuple[int, int]) -> Images:
    """Each in the mean colour under its footprint."""
    canvas = _enlarged(reconstructions)
    ellipses = picture_ellipses(gaussians, map_size, (canvas.shape[2], canvas.shape[3]))
    return draw_ellipses(ellipses, footprint_colors(footprints(gaussians, *map_size), ellipses.centres, canvas), DIMMED * canvas)


def _enlarged(images: Images) -> Images:
    times = -(-LEAST_HEIGHT // images.shape[2])
    return images.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
