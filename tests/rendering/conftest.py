"""A second renderer, written from the formulas alone: dense, all pairs, float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D

Drawn = tuple[Tensor, Tensor, Tensor]


def draw_densely(
    gaussians: Gaussians3D, views: Views, background: tuple[float, float, float] = (0.5, 0.5, 0.5), near: float = 0.025, far: float = 125.0
) -> Drawn:
    """Images, expected depths, alphas: every Gaussian at every pixel, sorted by depth."""
    assert views.camera_to_world is not None and views.intrinsics is not None
    behind = torch.tensor(background, dtype=torch.float64)
    frames = []
    for b in range(views.batch_size):
        w, x, y, z = (gaussians.quats[b] / gaussians.quats[b].norm(dim=-1, keepdim=True)).double().unbind(-1)
        rotation = torch.stack(
            [
                torch.stack([1 - 2 * (y**2 + z**2), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
                torch.stack([2 * (x * y + w * z), 1 - 2 * (x**2 + z**2), 2 * (y * z - w * x)], -1),
                torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x**2 + y**2)], -1),
            ],
            -2,
        )
        covariance = rotation @ torch.diag_embed(gaussians.scales[b].double() ** 2) @ rotation.mT
        for v in range(views.num_views):
            viewmat = torch.linalg.inv(views.camera_to_world[b, v].double())
            fx, fy, cx, cy = views.intrinsics[b, v].double()
            camera = gaussians.means[b].double() @ viewmat[:3, :3].T + viewmat[:3, 3]
            drawn = (camera[:, 2] >= near) & (camera[:, 2] <= far)
            order = torch.arange(len(camera))[drawn]
            order = order[camera[drawn][:, 2].float().argsort(stable=True)]
            x, y, z = camera[order].unbind(-1)
            tx, ty = (
                z * (a / z).clamp(-(c / f + 0.15 * size / f), (size - c) / f + 0.15 * size / f)
                for a, f, c, size in ((x, fx, cx, views.width), (y, fy, cy, views.height))
            )
            zero = torch.zeros_like(z)
            jacobian = torch.stack([torch.stack([fx / z, zero, -fx * tx / z**2], -1), torch.stack([zero, fy / z, -fy * ty / z**2], -1)], -2)
            turned = jacobian @ viewmat[:3, :3]
            cov2 = turned @ covariance[order] @ turned.mT + 0.3 * torch.eye(2, dtype=torch.float64)
            conic = torch.linalg.inv(cov2)
            rows, columns = torch.meshgrid(
                torch.arange(views.height).double() + 0.5, torch.arange(views.width).double() + 0.5, indexing="ij"
            )
            delta = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)[:, None] - torch.stack([columns, rows], -1).reshape(1, -1, 2)
            sigma = 0.5 * torch.einsum("npi,nij,npj->np", delta, conic, delta)
            alpha = (gaussians.opacities[b, order].double()[:, None] * (-sigma).exp()).clamp_max(0.999)
            alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
            after = (1 - alpha).cumprod(0)
            before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
            weights = torch.where(after > 1e-4, alpha * before, 0.0)
            light = weights.sum(0)
            image = weights.T @ gaussians.colors[b, order].double() + (1 - light)[:, None] * behind
            depth = weights.T @ z / light.clamp_min(1e-10)
            frames.append(torch.cat([image.T, depth[None], light[None]]).view(5, views.height, views.width))
    stacked = torch.stack(frames).unflatten(0, (views.batch_size, views.num_views))
    return stacked[:, :, :3], stacked[:, :, 3:4], stacked[:, :, 4:]


def make_scene(
    count: int,
    height: int,
    width: int,
    scenes: int = 1,
    views: int = 1,
    seed: int = 0,
    size: float = 0.15,
    opacity: tuple[float, float] = (0.0, 1.0),
) -> tuple[Gaussians3D, Views]:
    """Random float64 Gaussians around (0, 0, 2), some behind the cameras or off their images, and cameras that look there."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    gaussians = Gaussians3D(
        means=normal(scenes, count, 3) * torch.tensor([1.0, 1.0, 1.2], dtype=torch.float64) + torch.tensor([0.0, 0.0, 2.0]),
        quats=torch.nn.functional.normalize(normal(scenes, count, 4), dim=-1),
        scales=size * (0.7 * normal(scenes, count, 3)).exp(),
        opacities=opacity[0] + (opacity[1] - opacity[0]) * torch.rand(scenes, count, generator=g, dtype=torch.float64),
        colors=torch.rand(scenes, count, 3, generator=g, dtype=torch.float64),
    )
    twist = 0.15 * normal(scenes, views, 6)
    intrinsics = torch.tensor([0.9, 1.0, 0.5, 0.45], dtype=torch.float64) * torch.tensor([width, height, width, height])
    return gaussians, Views(height, width, camera_to_world=pose(twist), intrinsics=intrinsics.expand(scenes, views, 4).clone())


def pose(twist: Tensor) -> Tensor:
    """Rigid camera-to-world matrices of (rotation vector, translation): a way to differentiate by poses."""
    a, b, c, x, y, z = twist.unbind(-1)
    zero = torch.zeros_like(a)
    generator = torch.stack([zero, -c, b, x, c, zero, -a, y, -b, a, zero, z, zero, zero, zero, zero], dim=-1)
    return torch.matrix_exp(generator.unflatten(-1, (4, 4)))


@pytest.fixture(scope="session")
def dense_render() -> Callable[..., Drawn]:
    return draw_densely


@pytest.fixture(scope="session")
def scene() -> Callable[..., tuple[Gaussians3D, Views]]:
    return make_scene


@pytest.fixture(scope="session")
def rigid_pose() -> Callable[[Tensor], Tensor]:
    return pose
