"""render(gaussians, views): the one call that draws 3D Gaussians. It picks the backend; nothing else does."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from token_methods.core.cameras import intrinsics_matrix, rigid_inverse
from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.tiles import rasterize_tiles


@dataclass(frozen=True)
class RenderedViews:
    """What a group of cameras sees."""

    images: Float[Tensor, "batch views 3 height width"]
    """RGB over the background, not clipped."""
    depths: Float[Tensor, "batch views 1 height width"]
    """Expected z-depth (accumulated depth / alpha), in scene units; 0 where nothing was hit."""
    alphas: Float[Tensor, "batch views 1 height width"]
    """Accumulated opacity in [0, 1]."""


def render(
    gaussians: Gaussians3D,
    views: Views,
    background: tuple[float, float, float] = (0.5, 0.5, 0.5),
    near: float = 0.025,
    far: float = 125.0,
) -> RenderedViews:
    """Draw every scene of a batch from all of its views.

    Always float32, also under autocast. On CUDA gsplat draws (all scenes in one call from version 1.5 on, one after
    another before), without waiting for the device; elsewhere the tile rasteriser of this package does, with the
    semantics of gsplat 1.5.3. Both are differentiable with respect to all fields of `gaussians` and to the cameras' poses.

    Args:
        gaussians: [batch, n] Gaussians, in the same frame as the cameras.
        views: [batch, views] OpenCV cameras with intrinsics in pixels at `views.height` x `views.width`.
        background: RGB behind everything.
        near: Gaussians whose centre is nearer than this (z, scene units) are not drawn.
        far: nor those farther than this.

    Raises:
        ValueError: the views have no cameras, or another number of scenes, or live on another device.
    """
    if views.camera_to_world is None or views.intrinsics is None:
        raise ValueError("render needs views with camera_to_world and intrinsics, got views without cameras")
    if views.batch_size != gaussians.batch_size:
        raise ValueError(f"render needs views of every scene: {gaussians.batch_size} scenes of Gaussians, views of {views.batch_size}")
    if views.camera_to_world.device != gaussians.device:
        raise ValueError(f"render needs one device: Gaussians are on {gaussians.device}, cameras on {views.camera_to_world.device}")
    with torch.autocast(gaussians.device.type, enabled=False):
        gaussians = gaussians.map(lambda value: value.float())
        draw = _rasterize_gsplat if gaussians.device.type == "cuda" else rasterize_tiles
        return RenderedViews(*draw(gaussians, views, background, near, far))


def _rasterize_gsplat(
    gaussians: Gaussians3D, views: Views, background: tuple[float, float, float], near: float, far: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, expected depths and alphas, by gsplat (Ye et al. 2024)."""
    assert views.camera_to_world is not None and views.intrinsics is not None
    scenes, num_views = views.batch_size, views.num_views
    # Filled on the device: a tensor made from Python numbers would wait for it.
    backgrounds = torch.cat([torch.full((scenes, num_views, 1), channel, device=gaussians.device) for channel in background], dim=-1)
    if gaussians.num_gaussians == 0:
        images = backgrounds[..., None, None].expand(-1, -1, -1, views.height, views.width)
        nothing = torch.zeros_like(images[:, :, :1])
        return images.clone(), nothing, nothing.clone()

    from gsplat import rasterization

    draw = functools.partial(
        rasterization,
        width=views.width,
        height=views.height,
        near_plane=near,
        far_plane=far,
        packed=False,
        render_mode="RGB+ED",
    )
    inputs = {
        "means": gaussians.means,
        "quats": gaussians.quats,
        "scales": gaussians.scales,
        "opacities": gaussians.opacities,
        "colors": gaussians.colors,
        "viewmats": rigid_inverse(views.camera_to_world.float()),
        "Ks": intrinsics_matrix(views.intrinsics.float()),
        "backgrounds": backgrounds,
    }
    version = gsplat_version()
    if version is not None and version >= (1, 5, 0):
        drawn, alphas, _ = draw(**inputs)
    else:  # gsplat 1.4 has no axis for scenes
        one_by_one = [draw(**{name: value[scene] for name, value in inputs.items()})[:2] for scene in range(scenes)]
        drawn, alphas = (torch.stack(parts) for parts in zip(*one_by_one, strict=True))
    drawn = drawn.movedim(-1, 2)
    return drawn[:, :, :3], drawn[:, :, 3:], alphas.movedim(-1, 2)


@functools.cache
def gsplat_version() -> tuple[int, int, int] | None:
    """Version of the installed gsplat, read without importing it; None when there is none."""
    try:
        release = importlib.metadata.version("gsplat")
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = [int(number) for number in re.findall(r"\d+", release)[:3]]
    major, minor, patch = numbers + [0] * (3 - len(numbers))
    return major, minor, patch


def gsplat_notice() -> str:
    """One sentence: which gsplat is installed, and what that means for weights that were trained with version 1.5.3."""
    version = gsplat_version()
    if version is None:
        return "gsplat is not installed: rendering on CUDA fails, rendering on the CPU does not need it."
    name = "gsplat " + ".".join(map(str, version))
    if version < (1, 5):
        return (
            f"{name} cuts Gaussians off at 3 standard deviations: pixels may deviate by up to 0.011 x opacity per Gaussian from "
            "gsplat 1.5.3, with which the published TokenGS weights were trained. `pip install gsplat==1.5.3` removes the difference."
        )
    if version < (1, 6):
        return f"{name} draws as the published TokenGS weights expect (trained with 1.5.3)."
    return (
        f"{name} caps the alpha of a Gaussian at 0.99, while the published TokenGS weights were trained with 0.999 (gsplat 1.5.3). "
        "`pip install gsplat==1.5.3` removes the difference."
    )
