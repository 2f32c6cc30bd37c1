"""Pictures that hang in the plane z = 0 of the world, and how cameras see them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from token_methods.core.views import Views
from token_methods.rendering.rasterize import RenderedViews


def view_of_picture(
    picture: Float[Tensor, "batch 3 height width"], views: Views, background: tuple[float, float, float] = (0.5, 0.5, 0.5)
) -> RenderedViews:
    """What cameras see of a picture that is one unit high, centred in the origin, x to its right, y up, facing +z.

    A camera at (0, 0, 1) that looks down with focal length = height in pixels sees every pixel where it is; between pixels the picture
    is interpolated. From behind it is seen mirrored.

    Args:
        picture: RGB.
        views: OpenCV cameras of each picture.
        background: RGB beside the picture.

    Raises:
        ValueError: the views have no cameras.
    """
    if views.camera_to_world is None or views.intrinsics is None:
        raise ValueError("a picture is looked at by cameras: these views have none")
    height, width = picture.shape[-2:]
    rows = torch.arange(views.height, device=picture.device) + 0.5
    columns = torch.arange(views.width, device=picture.device) + 0.5
    focal, centre = views.intrinsics[..., None, None, :2], views.intrinsics[..., None, None, 2:]
    pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    rays = F.pad((pixels - centre) / focal, (0, 1), value=1.0) @ views.camera_to_world[..., None, :3, :3].mT
    origin = views.camera_to_world[..., None, None, :3, 3]
    depth = -origin[..., 2] / torch.where(rays[..., 2] == 0, torch.full_like(rays[..., 2], 1e-12), rays[..., 2])
    hit = (origin + depth[..., None] * rays)[..., :2]
    places = hit * hit.new_tensor([2 * height / width, -2.0])
    inside = (depth > 0) & (places.abs() <= 1).all(dim=-1)
    count = views.num_views
    sampled = F.grid_sample(
        picture.repeat_interleave(count, dim=0), places.flatten(0, 1), mode="bilinear", padding_mode="border", align_corners=False
    ).unflatten(0, (-1, count))
    alphas = inside[:, :, None].to(picture.dtype)
    images = sampled * alphas + (1 - alphas) * picture.new_tensor(background)[:, None, None]
    return RenderedViews(images=images, depths=(depth[:, :, None] * alphas), alphas=alphas)
