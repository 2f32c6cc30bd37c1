"""What each 2D Gaussian covers of its map, and what it covers of a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from token_methods.rendering.gaussians2d import Gaussians2D, splat


@torch.no_grad()
def footprints(gaussians: Gaussians2D, height: int, width: int) -> Float[Tensor, "batch n height width"]:
    """The weight that `splat` gives each Gaussian's feature at each cell: the features' sum with these weights is the map."""
    ones = gaussians.features.new_ones(gaussians.batch_size * gaussians.num_gaussians, 1, 1)

    def alone(value: Tensor) -> Tensor:
        return value.flatten(0, 1)[:, None]

    single = Gaussians2D(
        means=alone(gaussians.means),
        scales=alone(gaussians.scales),
        rotations=alone(gaussians.rotations),
        features=ones,
        opacities=None if gaussians.opacities is None else alone(gaussians.opacities),
    )
    return splat(single, height, width)[:, 0].unflatten(0, (gaussians.batch_size, gaussians.num_gaussians))


@torch.no_grad()
def footprint_colors(
    weights: Float[Tensor, "batch n map_height map_width"],
    centres: Float[Tensor, "batch n 2"],
    picture: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch n channels"]:
    """The mean colour of a picture under each footprint.

    A Gaussian that slips between the cells, or lies beside the map, weighs nothing anywhere: it gets the colour at its centre, or at the
    point of the picture nearest to it.

    Args:
        weights: footprints on the map that stands for the picture.
        centres: in pixels of the picture, x right and y down, pixel centres at +0.5.
        picture: any number of channels.
    """
    cells = F.adaptive_avg_pool2d(picture, (weights.shape[-2], weights.shape[-1]))
    total = weights.sum(dim=(-2, -1))
    means = torch.einsum("bnhw,bchw->bnc", weights, cells) / total.clamp_min(1e-12)[..., None]
    places = 2 * centres / centres.new_tensor([picture.shape[-1], picture.shape[-2]]) - 1
    sampled = F.grid_sample(picture, places[:, None].nan_to_num(0), mode="bilinear", padding_mode="border", align_corners=False)
    return means.where(total[..., None] > 0, sampled[:, :, 0].mT)
