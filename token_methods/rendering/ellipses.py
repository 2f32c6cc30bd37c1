"""2D Gaussians as ellipses of one standard deviation, on a picture and as a drawing (SVG).

They lie where `splat` puts a Gaussian's feature: a cell of the map is the square of the picture that has its place, and the splat's
coordinates are those of the cells' middles.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from token_methods.rendering.gaussians2d import Gaussians2D
from token_methods.rendering.gaussians2d_torch import project

FILLING = 0.2
"""Opacity of the inside of an ellipse; its outline is opaque."""
OUTLINE = 1.5
"""Width of the outline, in pixels."""
BLOCK = 64
"""Side of the squares of pixels that are drawn together."""


@dataclass(frozen=True)
class Ellipses:
    """Where Gaussians lie on a picture; x right, y down, in pixels, whose centres lie at +0.5."""

    centres: Float[Tensor, "batch n 2"]
    semi_axes: Float[Tensor, "batch n 2"]
    """One standard deviation along the longer axis, then along the shorter one."""
    angles: Float[Tensor, "batch n"]
    """From the x axis towards the y axis (clockwise to the eye) to the longer axis, in radians."""
    is_drawn: Bool[Tensor, "batch n"]
    """False for Gaussians that the splat does not draw: a scale of zero, or a number that is not finite."""


def picture_ellipses(gaussians: Gaussians2D, map_size: tuple[int, int], picture_size: tuple[int, int]) -> Ellipses:
    """The ellipses of Gaussians that are splatted onto a map, on a picture of any size that the map stands for.

    Args:
        gaussians: of each picture.
        map_size: height and width, in cells.
        picture_size: height and width, in pixels.
    """
    means, scales, rotations = (value.float() for value in (gaussians.means, gaussians.scales, gaussians.rotations))
    projection = project(means, scales, rotations, *map_size)
    zoom = means.new_tensor([picture_size[1] / map_size[1], picture_size[0] / map_size[0]])
    cos, sin = rotations.cos(), rotations.sin()
    axes = torch.stack([torch.cat([cos, -sin], dim=-1), torch.cat([sin, cos], dim=-1)], dim=-1) * scales[..., None, :] * zoom[:, None]
    is_drawn = (projection.radii > 0) & projection.centres.isfinite().all(dim=-1) & axes.flatten(-2).isfinite().all(dim=-1)
    # Cells that are not square shear an ellipse: its own axes are found again.
    directions, lengths, _ = torch.linalg.svd(axes.where(is_drawn[..., None, None], torch.eye(2, device=axes.device)))
    angles = torch.atan2(directions[..., 1, 0], directions[..., 0, 0])
    return Ellipses((projection.centres + 0.5) * zoom, lengths, angles, is_drawn)


@torch.no_grad()
def draw_ellipses(
    ellipses: Ellipses, colors: Float[Tensor, "batch n 3"], canvas: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch 3 height width"]:
    """Pictures with ellipses drawn over them, smooth at their edges, large ones first.

    Args:
        ellipses: in pixels of the canvas.
        colors: RGB of each ellipse.
        canvas: what is drawn upon, RGB.
    """
    order = _large_first(ellipses)
    drawn = ellipses.is_drawn.gather(1, order)
    centres, lengths = (value.gather(1, order[..., None].expand(-1, -1, 2)) for value in (ellipses.centres, ellipses.semi_axes))
    colors, angles = colors.gather(1, order[..., None].expand(-1, -1, 3)), ellipses.angles.gather(1, order)
    axes = torch.stack([angles.cos(), angles.sin(), -angles.sin(), angles.cos()], dim=-1).unflatten(-1, (2, 2))  # rows: longer, shorter
    whitening = axes / lengths.clamp_min(1e-6)[..., None]
    reach = (axes * lengths[..., None]).square().sum(dim=-2).sqrt() + OUTLINE / 2 + 1
    image = canvas.clone()
    height, width = canvas.shape[-2:]
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            block = image[..., top : top + BLOCK, left : left + BLOCK]
            size = centres.new_tensor([block.shape[-1], block.shape[-2]])
            offset = centres - size / 2 - centres.new_tensor([left, top])
            near = ((offset.abs() <= reach + size / 2).all(dim=-1) & drawn).any(dim=0).nonzero()[:, 0]
            if not len(near):
                continue
            rows = torch.arange(top, top + block.shape[-2], device=canvas.device) + 0.5
            columns = torch.arange(left, left + block.shape[-1], device=canvas.device) + 0.5
            pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)
            coverage = _coverage(pixels, centres[:, near], whitening[:, near]) * drawn[:, near, None]
            below = (1 - coverage).flip(1).cumprod(dim=1).flip(1)  # what is left after an ellipse and all above it
            above = torch.cat([below[:, 1:], torch.ones_like(below[:, :1])], dim=1)
            painted = colors[:, near].mT @ (coverage * above) + below[:, :1] * block.flatten(2)
            image[..., top : top + BLOCK, left : left + BLOCK] = painted.unflatten(-1, (len(rows), len(columns)))
    return image


def svg_document(
    ellipses: Ellipses,
    colors: Float[Tensor, "1 n 3"],
    titles: Sequence[str],
    picture_size: tuple[int, int],
    picture: Float[Tensor, "3 height width"] | None = None,
) -> str:
    """The ellipses of one picture as an SVG document, whose unit is the picture's pixel; large ones first.

    Args:
        ellipses: a batch of one.
        colors: RGB in [0, 1].
        titles: what is said of each ellipse when it is pointed at.
        picture_size: height and width, in pixels.
        picture: RGB in [0, 1] of any size, put behind them.

    Raises:
        ValueError: more than one picture, or another number of titles than of ellipses.
    """
    batch, count = ellipses.angles.shape
    if batch != 1 or len(titles) != count:
        raise ValueError(
            f"an SVG document shows one picture with a title for each ellipse, got {batch} with {count} and {len(titles)} titles"
        )
    height, width = picture_size
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>ellipse {{ fill-opacity: {FILLING}; stroke-width: {OUTLINE}; vector-effect: non-scaling-stroke; }}</style>",
    ]
    if picture is not None:
        lines.append(f'<image width="{width}" height="{height}" preserveAspectRatio="none" href="{_png_address(picture)}"/>')
    hexadecimal = ["#" + bytes(color).hex() for color in _bytes(colors[0]).tolist()]
    for index in _large_first(ellipses)[0].tolist():
        if not ellipses.is_drawn[0, index]:
            continue
        (x, y), (longer, shorter) = ellipses.centres[0, index].tolist(), ellipses.semi_axes[0, index].tolist()
        lines.append(
            f'<ellipse rx="{longer:.4f}" ry="{shorter:.4f}" '
            f'transform="translate({x:.4f} {y:.4f}) rotate({math.degrees(float(ellipses.angles[0, index])):.4f})" '
            f'fill="{hexadecimal[index]}" stroke="{hexadecimal[index]}"><title>{escape(titles[index])}</title></ellipse>'
        )
    return "\n".join([*lines, "</svg>\n"])


def _large_first(ellipses: Ellipses) -> Tensor:
    """Numbers [batch, n] in the order in which they are painted, so that none is hidden."""
    return ellipses.semi_axes.prod(dim=-1).argsort(dim=-1, descending=True, stable=True)


def _coverage(
    pixels: Float[Tensor, "pixels 2"], centres: Float[Tensor, "batch n 2"], whitening: Float[Tensor, "batch n 2 2"]
) -> Float[Tensor, "batch n pixels"]:
    """Opacity of each ellipse at each pixel."""
    white = (pixels - centres[:, :, None]) @ whitening.mT
    # Distance to the outline in pixels, to first order: (r² - 1) over the length of its gradient; deep inside it is very negative.
    slope = 2 * (white @ whitening).norm(dim=-1)
    distance = (white.square().sum(dim=-1) - 1) / slope.clamp_min(1e-6)
    return torch.maximum(FILLING * (0.5 - distance).clamp(0, 1), (OUTLINE / 2 + 0.5 - distance.abs()).clamp(0, 1))


def _bytes(values: Tensor) -> Tensor:
    """[0, 1] to whole numbers 0..255."""
    return (values.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def _png_address(picture: Float[Tensor, "3 height width"]) -> str:
    """A picture as text that stands where an address can stand."""
    file = io.BytesIO()
    Image.fromarray(_bytes(picture).permute(1, 2, 0).numpy()).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
