"""gsplat on CUDA against the tile rasteriser on the CPU, which has the semantics of gsplat 1.5.3."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import RenderedViews, gsplat_version, render

pytestmark = pytest.mark.gpu

BACKGROUND = (0.2, 0.5, 0.9)
FIELDS = ("means", "quats", "scales", "opacities", "colors")


def make_scene(count: int, max_opacity: float, scenes: int = 2, views: int = 3, size: int = 96) -> tuple[Gaussians3D, Views]:
    """Random Gaussians around (0, 0, 2) and cameras near the origin that look along +z."""
    g = torch.Generator().manual_seed(0)
    gaussians = Gaussians3D(
        means=torch.randn(scenes, count, 3, generator=g) * torch.tensor([0.8, 0.8, 0.4]) + torch.tensor([0.0, 0.0, 2.0]),
        quats=torch.nn.functional.normalize(torch.randn(scenes, count, 4, generator=g), dim=-1),
        scales=0.03 * (0.6 * torch.randn(scenes, count, 3, generator=g)).exp(),
        opacities=max_opacity * torch.rand(scenes, count, generator=g),
        colors=torch.rand(scenes, count, 3, generator=g),
    )
    poses = torch.eye(4).repeat(scenes, views, 1, 1)
    poses[..., :3, 3] = 0.1 * torch.randn(scenes, views, 3, generator=g)
    intrinsics = torch.tensor([0.8, 0.8, 0.5, 0.5]).expand(scenes, views, 4) * size
    return gaussians, Views(size, size, camera_to_world=poses, intrinsics=intrinsics)


def draw(gaussians: Gaussians3D, views: Views, device: str) -> tuple[RenderedViews, Gaussians3D]:
    """The rendering, and the gradients of a fixed weighted sum of it, both on the CPU."""
    leaves = gaussians.map(lambda value: value.detach().to(device).requires_grad_())
    drawn = render(leaves, views.to(device), BACKGROUND)
    generator = torch.Generator().manual_seed(1)
    parts = (drawn.images, drawn.alphas)
    sum((part * torch.randn(part.shape, generator=generator).to(device)).mean() for part in parts).backward()
    on_cpu = RenderedViews(drawn.images.detach().cpu(), drawn.depths.detach().cpu(), drawn.alphas.detach().cpu())
    return on_cpu, Gaussians3D(**{name: getattr(leaves, name).grad.cpu() for name in FIELDS})


def is_close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Within 1e-3, except where rounding moved an alpha across the cut-off at 1/255 (a pixel in a thousand, by no more)."""
    difference = (ours - theirs).abs()
    return bool((difference > 1e-3).float().mean() < 1e-3) and bool(difference.max() < 5e-3)


def test_gsplat_draws_what_the_tile_rasteriser_draws():
    version = gsplat_version()
    assert version is not None
    # gsplat 1.4 cuts off at 3 standard deviations, where alpha is below 1/255 only for opacities up to 0.353.
    gaussians, views = make_scene(1500, max_opacity=0.35 if version < (1, 5, 0) else 0.98)
    (cuda, cuda_grads), (cpu, cpu_grads) = draw(gaussians, views, "cuda"), draw(gaussians, views, "cpu")
    assert is_close(cuda.images, cpu.images)
    assert is_close(cuda.alphas, cpu.alphas)
    # An alpha that rounding moved across the cut-off is counted above; expected depth, which divides by alpha, tells it again and louder.
    covered = (cpu.alphas > 0.1) & ((cuda.alphas - cpu.alphas).abs() < 1e-3)
    torch.testing.assert_close(cuda.depths[covered], cpu.depths[covered], rtol=2e-3, atol=2e-3)
    for name in FIELDS:
        ours, theirs = getattr(cpu_grads, name), getattr(cuda_grads, name)
        assert (ours - theirs).abs().max() < 5e-3 * ours.abs().max(), name


def test_gsplat_1_4_deviates_as_documented():
    version = gsplat_version()
    if version is None or version >= (1, 5, 0):
        pytest.skip("only gsplat 1.4 cuts Gaussians off at 3 standard deviations")
    gaussians, views = make_scene(1500, max_opacity=0.98)
    difference = (draw(gaussians, views, "cuda")[0].images - draw(gaussians, views, "cpu")[0].images).abs()
    assert 1e-3 < difference.max() < 0.05
    assert difference.mean() < 1e-3


def test_a_batch_of_scenes_equals_one_scene_after_another():
    gaussians, views = make_scene(800, max_opacity=0.9)
    together, gradients = draw(gaussians, views, "cuda")
    for scene in range(2):
        one = slice(scene, scene + 1)
        alone = render(gaussians.scenes(one).to("cuda"), views.scenes(one).to("cuda"), BACKGROUND)
        torch.testing.assert_close(alone.images.cpu()[0], together.images[scene], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.depths.cpu()[0], together.depths[scene], rtol=1e-5, atol=1e-5)
    assert all(getattr(gradients, name).abs().sum() > 0 for name in FIELDS)


def test_always_float32_also_under_autocast():
    gaussians, views = make_scene(300, max_opacity=0.9)
    gaussians, views = gaussians.to("cuda"), views.to("cuda")
    plain = render(gaussians, views)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        inside = render(gaussians, views)
    assert inside.images.dtype == torch.float32
    torch.testing.assert_close(inside.images, plain.images, rtol=0, atol=1e-6)


def test_no_gaussians_show_the_background():
    gaussians, views = make_scene(4, max_opacity=0.9)
    drawn = render(gaussians.map(lambda value: value[:, :0]).to("cuda"), views.to("cuda"), BACKGROUND)
    assert drawn.images[1, 2, :, 0, 0].tolist() == pytest.approx(BACKGROUND)
    assert drawn.alphas.abs().max() == 0


def test_the_host_waits_for_the_device_no_more_often_than_gsplat_does():
    """gsplat reads back how many pairs of tile and Gaussian there are, once per call; this package adds nothing."""
    gaussians, views = make_scene(300, max_opacity=0.9)
    gaussians, views = gaussians.to("cuda"), views.to("cuda")
    render(gaussians, views)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            render(gaussians, views)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ours = [w for w in caught if "synchroniz" in str(w.message) and "gsplat" not in w.filename]
    assert not ours, [f"{w.filename}:{w.lineno}" for w in ours]


def test_cameras_receive_gradients():
    gaussians, views = make_scene(300, max_opacity=0.9)
    assert views.camera_to_world is not None
    poses = views.camera_to_world.to("cuda").requires_grad_()
    render(gaussians.to("cuda"), dataclasses.replace(views.to("cuda"), camera_to_world=poses)).images.mean().backward()
    assert poses.grad is not None and poses.grad.isfinite().all() and poses.grad.abs().sum() > 0
