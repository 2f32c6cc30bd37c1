"""Projection: 3D Gaussians seen by a camera become 2D ones (EWA splatting, Zwicker et al. 2001; Kerbl et al. 2023).

The formulas are those of gsplat 1.5.3 without anti-aliasing compensation. They are evaluated in float64: a
projection costs little beside compositing, and thin Gaussians seen along a diagonal lose many digits in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from token_methods.core.cameras import rigid_inverse
from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D, rotation_matrices

BLUR = 0.3
"""Variance in pixels² that is added to every projected Gaussian (gsplat's eps2d)."""
MIN_ALPHA = 1 / 255
"""A Gaussian contributes nothing to a pixel where its alpha is smaller."""
MAX_EXTENT = 3.33
"""Upper bound of the extent in standard deviations; alpha falls below 1/255 at 3.3290 even for opacity 1."""
JACOBIAN_MARGIN = 0.3
"""Beyond this share of half an image outside of it, the slope of the projection is held fixed."""


@dataclass(frozen=True)
class Splats:
    """Projected Gaussians: one row per pair of an image and a Gaussian that is seen there."""

    image: Int[Tensor, " splats"]
    """Image of the row: scene * views + view."""
    gaussian: Int[Tensor, " splats"]
    """Gaussian of the row within its scene."""
    centres: Float[Tensor, "splats 2"]
    """Projected centres in pixels."""
    depths: Float[Tensor, " splats"]
    """z in the camera's frame, in scene units."""
    covariances: Float[Tensor, "splats 3"]
    """Entries xx, xy, yy of the blurred 2D covariance, in pixels²."""
    extents: Float[Tensor, "splats 2"]
    """Half width and half height in pixels of the box outside which alpha < 1/255."""


def project(gaussians: Gaussians3D, views: Views, near: float, far: float) -> Splats:
    """Project every Gaussian of every scene into every view of that scene.

    Rows are ordered by image, then by Gaussian. Not seen, hence without a row: centres outside [near, far], boxes off
    the image, opacities below 1/255, numbers that are not finite. `centres`, `depths` and `covariances` are float64
    and differentiable with respect to means, quats, scales and the cameras.
    """
    assert views.camera_to_world is not None and views.intrinsics is not None
    world_to_camera = rigid_inverse(views.camera_to_world.double())
    rotation, translation = world_to_camera[..., :3, :3], world_to_camera[..., :3, 3]
    means = gaussians.means.double()

    with torch.no_grad():
        z = torch.einsum("bvi,bni->bvn", rotation[:, :, 2], means) + translation[:, :, 2, None]
        z = z.float()  # the cameras of the published renderer are float32, and so are its near and far tests
        scene, view, gaussian = ((z >= near) & (z > 0) & (z <= far) & gaussians.finite()[:, None]).nonzero(as_tuple=True)
    image = scene * views.num_views + view
    row = scene * gaussians.num_gaussians + gaussian

    # From here on one row per pair that passed: what was culled can send no NaN back.
    world = rotation.flatten(0, 1)[image]
    camera = (world @ means.flatten(0, 1)[row, :, None])[..., 0] + translation.flatten(0, 1)[image]
    x, y, z = camera.unbind(-1)
    fx, fy, cx, cy = views.intrinsics.double().flatten(0, 1)[image].unbind(-1)
    slope_x = _clamp_slope(x / z, fx, cx, views.width)
    slope_y = _clamp_slope(y / z, fy, cy, views.height)

    axes = rotation_matrices(gaussians.quats.double()) * gaussians.scales.double()[..., None, :]
    axes = axes.flatten(0, 1)[row]
    # (Jacobian of the projection) @ (world-to-camera rotation) @ (the Gaussian's own axes)
    scale = torch.stack([fx, fy], dim=-1)[..., None] / z[:, None, None]
    slope = torch.stack([slope_x, slope_y], dim=-1)[..., None]
    across, down = (scale * (world[:, :2] - slope * world[:, 2:]) @ axes).unbind(1)
    xx = across.square().sum(-1) + BLUR
    xy = (across * down).sum(-1)
    yy = down.square().sum(-1) + BLUR
    centres = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)

    with torch.no_grad():
        opacity = gaussians.opacities.double().flatten()[row]
        deviations = (2 * (opacity / MIN_ALPHA).log().clamp_min(0)).sqrt().clamp_max(MAX_EXTENT)
        extents = deviations[:, None] * torch.stack([xx, yy], dim=-1).sqrt()
        radii = extents.ceil()
        size = extents.new_tensor([views.width, views.height])
        on_image = ((centres + radii > 0) & (centres - radii < size)).all(-1)
        seen = (on_image & (opacity >= MIN_ALPHA) & (xx * yy - xy * xy > 0)).nonzero()[:, 0]
    covariances = torch.stack([xx, xy, yy], dim=-1)
    return Splats(image[seen], gaussian[seen], centres[seen], z[seen], covariances[seen], extents[seen])


def _clamp_slope(
    slope: Float[Tensor, " splats"], focal: Float[Tensor, " splats"], centre: Float[Tensor, " splats"], size: int
) -> Float[Tensor, " splats"]:
    """x/z (or y/z) held within the image and a margin around it."""
    margin = JACOBIAN_MARGIN * 0.5 * size / focal
    return slope.clamp(min=-(centre / focal + margin), max=(size - centre) / focal + margin)
