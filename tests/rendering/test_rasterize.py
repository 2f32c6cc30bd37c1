"""render(): published numbers, frames, precision, refusals; and what it says about the installed gsplat."""

from __future__ import annotations

import dataclasses
import importlib.metadata

import pytest
import torch
from safetensors.torch import load_file

from token_methods.core.cameras import Similarity
from token_methods.core.views import Views
from token_methods.rendering import rasterize
from token_methods.rendering.gaussians3d import Gaussians3D, rotation_matrices
from token_methods.rendering.rasterize import gsplat_notice, render


def test_the_published_rasteriser_case(reference):
    case = load_file(reference / "parity/tokengs/cases/rasteriser/tensors.safetensors")
    values = case["gaussians"][None].clone().requires_grad_()
    gaussians = Gaussians3D(values[..., 0:3], values[..., 7:11], values[..., 4:7], values[..., 3], values[..., 11:14])
    poses = torch.linalg.inv(case["viewmats"].double())[None]
    views = Views(37, 53, camera_to_world=poses, intrinsics=case["intrinsics"][None])
    drawn = render(gaussians, views, tuple(case["background"].tolist()), near=0.025, far=125.0)
    images, depths, alphas = (part[0].permute(0, 2, 3, 1) for part in (drawn.images, drawn.depths, drawn.alphas))
    assert (images - case["rgb_float64"]).abs().max() < 2e-5
    assert (alphas - case["alpha_float64"]).abs().max() < 2e-5
    assert (depths - case["expected_depth_float64"]).abs().max() < 1e-4
    (30 * (images * case["cotangent_rgb"]).mean() + 10 * (alphas * case["cotangent_alpha"]).mean()).backward()
    for name, group in {
        "means": slice(0, 3),
        "opacity": slice(3, 4),
        "scales": slice(4, 7),
        "quats": slice(7, 11),
        "rgb": slice(11, 14),
    }.items():
        wanted = case["grad_gaussians_float64"][:, group]
        assert (values.grad[0, :, group] - wanted).abs().max() < 1e-4 * wanted.abs().max(), name


@pytest.mark.parametrize(("seed", "scale"), [(0, 1e-3), (1, 0.037), (2, 1.0), (3, 24.0), (4, 1e3)])
def test_a_scene_looks_the_same_in_every_frame(scene, seed, scale):
    """Rotate, scale and move Gaussians and cameras (and near, far) together: same image, scaled depth."""
    gaussians, views = scene(count=150, height=30, width=34, scenes=2, views=2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    frame = Similarity(
        rotation_matrices(torch.randn(2, 4, generator=generator, dtype=torch.float64)),
        scale * 3 * torch.randn(2, 3, generator=generator, dtype=torch.float64),
        torch.full((2,), scale, dtype=torch.float64),
    )
    before = render(gaussians, views, near=0.2, far=4.5)
    after = render(gaussians.transformed(frame), frame.views(views), near=0.2 * scale, far=4.5 * scale)
    difference = torch.cat([after.images - before.images, after.alphas - before.alphas, after.depths / scale - before.depths], dim=2).abs()
    # Rounding can move an alpha across the cut-off at 1/255 in a pixel here and there.
    assert (difference > 1e-4).float().mean() < 0.005
    assert (after.images - before.images).abs().max() < 5e-3


def test_transforming_there_and_back_returns_the_gaussians(scene):
    gaussians, _ = scene(count=40, height=4, width=4, scenes=2)
    frame = Similarity(rotation_matrices(torch.randn(2, 4).double()), torch.randn(2, 3).double(), torch.tensor([1e-3, 1e3]).double())
    back = gaussians.transformed(frame).transformed(frame.inverse())
    torch.testing.assert_close(back.means, gaussians.means)
    torch.testing.assert_close(back.scales, gaussians.scales)
    torch.testing.assert_close(rotation_matrices(back.quats), rotation_matrices(gaussians.quats))


def test_nothing_to_draw_shows_the_background(scene):
    gaussians, views = scene(count=0, height=6, width=7, scenes=2, views=3)
    drawn = render(gaussians, views, background=(0.1, 0.2, 0.3))
    assert drawn.images.shape == (2, 3, 3, 6, 7)
    assert drawn.images[1, 2, :, 5, 6].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert drawn.depths.abs().max() == 0 and drawn.alphas.abs().max() == 0


def test_always_float32_also_under_autocast(scene):
    gaussians, views = scene(count=60, height=16, width=16)
    plain = render(gaussians.map(lambda value: value.float()), views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = render(gaussians.map(lambda value: value.float()), views)
    assert inside.images.dtype == torch.float32
    assert torch.equal(inside.images, plain.images)
    assert render(gaussians.map(lambda value: value.bfloat16()), views).images.dtype == torch.float32


def test_what_cannot_be_drawn_is_refused_in_a_sentence(scene):
    gaussians, views = scene(count=5, height=4, width=4, scenes=2)
    with pytest.raises(ValueError, match="without cameras"):
        render(gaussians, Views(4, 4, images=torch.zeros(2, 1, 3, 4, 4)))
    with pytest.raises(ValueError, match="2 scenes of Gaussians, views of 1"):
        render(gaussians, views.scenes(slice(0, 1)))
    with pytest.raises(ValueError, match="one device"):
        render(
            gaussians, dataclasses.replace(views, camera_to_world=views.camera_to_world.to("meta"), intrinsics=views.intrinsics.to("meta"))
        )


@pytest.mark.parametrize(
    ("release", "says"),
    [
        ("1.4.0", "3 standard deviations"),
        ("1.5.3", "as the published TokenGS weights expect"),
        ("1.5.3+pt211cu130", "as the published TokenGS weights expect"),
        ("1.6.0", "0.99,"),
        (None, "not installed"),
    ],
)
def test_the_notice_tells_what_the_installed_gsplat_means(monkeypatch, release, says):
    def version(_: str) -> str:
        if release is None:
            raise importlib.metadata.PackageNotFoundError
        return release

    monkeypatch.setattr(rasterize.importlib.metadata, "version", version)
    rasterize.gsplat_version.cache_clear()
    try:
        assert says in gsplat_notice()
    finally:
        rasterize.gsplat_version.cache_clear()
