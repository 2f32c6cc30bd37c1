"""The Gaussians of an image as 3D Gaussians that lie in the plane of its picture, for viewers and files of splats."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from token_methods.rendering.ellipses import Ellipses
from token_methods.rendering.gaussians3d import Gaussians3D

OPACITY = 0.95
"""Of a flat splat whose token has none of its own: nearly opaque, with a logarithmic odds that files can hold."""
THICKNESS = 1e-3
"""Standard deviation across the plane, where the picture is one unit high."""


def flat_splats(
    ellipses: Ellipses,
    colors: Float[Tensor, "batch n 3"],
    picture_size: tuple[int, int],
    opacities: Float[Tensor, "batch n"] | None = None,
) -> Gaussians3D:
    """3D Gaussians in the plane z = 0, where `view_of_picture` hangs the picture: one unit high, its middle in the origin, y up.

    They show where tokens are and which colour is there. They are no reconstruction: tokens carry features, whose picture a decoder
    makes. Gaussians that the splat does not draw keep their number and are transparent.

    Args:
        ellipses: in pixels of the picture.
        colors: RGB in [0, 1].
        picture_size: height and width, in pixels.
        opacities: of the tokens, where they have them.
    """
    height, width = picture_size
    x, y = ellipses.centres.unbind(-1)
    means = torch.stack([(x - width / 2) / height, (height / 2 - y) / height, torch.zeros_like(x)], dim=-1)
    half = -ellipses.angles / 2  # the plane's y axis points up
    quats = torch.stack([half.cos(), torch.zeros_like(half), torch.zeros_like(half), half.sin()], dim=-1)
    strength = OPACITY * (torch.ones_like(x) if opacities is None else opacities)
    return Gaussians3D(
        means=means,
        quats=quats,
        scales=F.pad(ellipses.semi_axes / height, (0, 1), value=THICKNESS),
        opacities=strength * ellipses.is_drawn,
        colors=colors.clamp(0, 1),
    )
