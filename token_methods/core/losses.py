"""Differentiable losses that several methods share. All of them compute in float32, whatever autocast they run under."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from token_methods.core.cameras import rigid_inverse
from token_methods.core.views import Views

SSIM_WINDOW_SIZE = 11
_HALF_WINDOW = (0.001028380123898387, 0.0075987582094967365, 0.036000773310661316, 0.10936068743467331, 0.21300552785396576)
_FUSED_SSIM_WINDOW = (*_HALF_WINDOW, 0.26601171493530273, *reversed(_HALF_WINDOW))
"""Gaussian of sigma 1.5 over 11 pixels (Wang et al. 2004), digit for digit as fused-ssim has it; its sum is 3e-8 short of 1."""
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def window_mean(images: Float[Tensor, "n c height width"], window: Float[Tensor, " size"], padding: int) -> Float[Tensor, "n c h w"]:
    """Mean around every pixel, weighted by `window` along rows and columns; `padding` zeros are added on each side."""
    channels = images.shape[1]
    rows = F.conv2d(images, window.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, padding), groups=channels)
    return F.conv2d(rows, window.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(padding, 0), groups=channels)


@lru_cache(maxsize=8)
def _fused_ssim_window(device: torch.device) -> Float[Tensor, "11"]:
    """The window on a device; kept, since sending it there makes the host wait."""
    return torch.tensor(_FUSED_SSIM_WINDOW, device=device)


def ssim(prediction: Float[Tensor, "n c height width"], target: Float[Tensor, "n c height width"]) -> Float[Tensor, " n"]:
    """Structural similarity of each image pair as fused-ssim trains with it: zero padding, clamped variances and map.

    Images in [0, 1]. The gradient goes to `prediction` only. For reporting use `metrics.structural_similarity`.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        x, y = prediction.float(), target.detach().float()
        window, padding = _fused_ssim_window(x.device), SSIM_WINDOW_SIZE // 2
        mean_y, mean_yy = window_mean(torch.cat([y, y * y], dim=1), window, padding).chunk(2, dim=1)
        mean_x, mean_xx, mean_xy = window_mean(torch.cat([x, x * x, x * y], dim=1), window, padding).chunk(3, dim=1)
        variance_x = (mean_xx - mean_x * mean_x).clamp(min=0)
        variance_y = (mean_yy - mean_y * mean_y).clamp(min=0)
        covariance = mean_xy - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x * mean_x + mean_y * mean_y + SSIM_C1)
        structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
        return (luminance * structure).clamp(-1, 1).mean(dim=(1, 2, 3))


def outside_distance(means: Float[Tensor, "batch n 3"], views: Views, limit: float) -> Float[Tensor, " batch"]:
    """How far points lie outside the nearest view's image: TokenGS's visibility loss.

    Distance beyond the image border, x plus y, in half image sizes; the smallest over the views; at most `limit` where
    `limit` > 0; mean over the points. As published, points behind a camera project like those before it.
    """
    assert views.camera_to_world is not None, "visibility needs cameras"
    assert views.intrinsics is not None
    with torch.autocast(means.device.type, enabled=False):
        world_to_camera = rigid_inverse(views.camera_to_world)
        points = means.float()[:, None] @ world_to_camera[..., :3, :3].transpose(-1, -2) + world_to_camera[..., None, :3, 3]
        x, y, z = points.unbind(-1)
        # Division by exactly zero would put NaN into the gradient even where the distance is clamped.
        z = torch.where(z.abs() < 1e-12, torch.full_like(z, 1e-12), z)
        fx, fy, cx, cy = views.intrinsics[..., None].unbind(2)
        column = (fx * x / z + cx).nan_to_num(0.0, 1e6, -1e6) * (2 / views.width) - 1
        row = (fy * y / z + cy).nan_to_num(0.0, 1e6, -1e6) * (2 / views.height) - 1
        distance = ((column.abs() - 1).relu() + (row.abs() - 1).relu()).amin(dim=1)
        if limit > 0:
            distance = distance.clamp(max=limit)
        return distance.mean(dim=1)
