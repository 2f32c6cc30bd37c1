"""Tokens as flat 3D Gaussians: drawn from the nominal camera, they lie where they lie on the picture, in its colours."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from token_methods.core.metrics import psnr
from token_methods.core.views import Views
from token_methods.gaussiantoken.flat_splats import OPACITY, THICKNESS, flat_splats
from token_methods.rendering.ellipses import Ellipses, picture_ellipses
from token_methods.rendering.footprints import footprint_colors, footprints
from token_methods.rendering.gaussians2d import Gaussians2D
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import render
from token_methods.rendering.splat_files import read_splats, write_splats

MAP, SIZE = (16, 24), (64, 96)
BEHIND = (0.0, 0.0, 0.0)


def nominal() -> Views:
    """The camera of a picture: at (0, 0, 1), looking down, the picture fills it."""
    pose = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    pose[2, 3] = 1
    return Views(*SIZE, camera_to_world=pose[None, None], intrinsics=torch.tensor([[[64.0, 64.0, 48.0, 32.0]]]))


def drawn(splats: Gaussians3D) -> Tensor:
    return render(splats, nominal(), BEHIND).images[:, 0]


def blobs(count: int = 5) -> Gaussians2D:
    """A few smooth ones, well apart."""
    places = torch.tensor([[-0.6, -0.4], [0.1, -0.5], [0.7, 0.3], [-0.4, 0.5], [0.2, 0.4]])[None, :count]
    scales = torch.tensor([[1.6, 0.9], [1.2, 1.5], [2.0, 1.0], [1.1, 1.7], [0.8, 1.2]])[None, :count]
    return Gaussians2D(places, scales, torch.tensor([0.3, 1.2, 2.0, 0.0, 2.8])[None, :count, None], torch.ones(1, count, 3))


def splats_of(gaussians: Gaussians2D, colors: Tensor) -> Gaussians3D:
    return flat_splats(picture_ellipses(gaussians, MAP, SIZE), colors, SIZE)


@pytest.mark.parametrize("index", range(5))
def test_from_the_nominal_camera_a_splat_covers_what_its_token_covers(index: int) -> None:
    one = blobs().map(lambda value: value[:, index : index + 1])
    whole = Gaussians2D(one.means, one.scales / 2, one.rotations, one.features)  # none is cut by the picture's edge
    ellipses = picture_ellipses(whole, MAP, SIZE)
    image = drawn(flat_splats(ellipses, torch.ones(1, 1, 3), SIZE))[0, 0]
    places = torch.stack(torch.meshgrid(torch.arange(96) + 0.5, torch.arange(64) + 0.5, indexing="xy"), -1).view(-1, 2)
    share = image.flatten() / image.sum()
    centroid = share @ places
    torch.testing.assert_close(centroid, ellipses.centres[0, 0], atol=0.05, rtol=0)
    spread = (places - centroid).mT @ (share[:, None] * (places - centroid))
    angle = ellipses.angles[0, 0]
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    # The rasteriser widens by 0.3 square pixels and cuts what is faint.
    expected = turn @ torch.diag(ellipses.semi_axes[0, 0] ** 2) @ turn.mT + 0.3 * torch.eye(2)
    torch.testing.assert_close(spread, expected, atol=0.05 * float(expected.max()), rtol=0)


def test_splats_of_a_picture_of_smooth_blobs_resemble_it() -> None:
    tokens = blobs()
    palette = torch.tensor([[1.0, 0.2, 0.1], [0.1, 0.9, 0.2], [0.2, 0.3, 1.0], [0.9, 0.8, 0.1], [0.8, 0.1, 0.9]])
    weights = footprints(tokens, *MAP)
    cells = torch.einsum("bnhw,nc->bchw", weights, palette).clamp(0, 1)
    picture = torch.nn.functional.interpolate(cells, SIZE, mode="bilinear", align_corners=False)
    mean = psnr(picture.mean(dim=(2, 3), keepdim=True).expand_as(picture), picture)
    assert float(psnr(drawn(splats_of(tokens, palette[None])), picture)) > 35, "in their own colours they are the picture"
    # A mean colour under a footprint that fades into black is darker than the middle of the blob.
    seen = drawn(splats_of(tokens, footprint_colors(weights, picture_ellipses(tokens, MAP, SIZE).centres, picture)))
    assert float(psnr(seen, picture)) > float(mean) + 4
    assert max(float(psnr(seen.flip(axis), picture)) for axis in (-1, -2)) < float(mean)


def test_splats_lie_in_the_plane_nearly_opaque_and_thin() -> None:
    splats = splats_of(blobs(), torch.rand(1, 5, 3))
    assert bool((splats.means[..., 2] == 0).all()) and bool((splats.opacities == OPACITY).all())
    assert bool((splats.scales[..., 2] == THICKNESS).all()) and bool((splats.scales[..., :2] > 10 * THICKNESS).all())
    torch.testing.assert_close(splats.quats.norm(dim=-1), torch.ones(1, 5))
    one = splats.map(lambda value: value[:, :1])
    half_cell = 0.5 / MAP[0]
    expected = torch.tensor([-0.6 * 0.5 * MAP[1] / MAP[0] + half_cell, 0.4 * 0.5 - half_cell, 0.0])
    torch.testing.assert_close(one.means[0, 0], expected, atol=1e-6, rtol=0)


def test_opacities_of_tokens_count_and_what_is_not_drawn_is_transparent() -> None:
    ellipses = picture_ellipses(blobs(), MAP, SIZE)
    hidden = Ellipses(ellipses.centres, ellipses.semi_axes, ellipses.angles, torch.tensor([[True, False, True, True, True]]))
    strengths = torch.tensor([[0.5, 1.0, 1.0, 0.0, 0.2]])
    splats = flat_splats(hidden, torch.ones(1, 5, 3), SIZE, strengths)
    torch.testing.assert_close(splats.opacities, OPACITY * torch.tensor([[0.5, 0.0, 1.0, 0.0, 0.2]]))


@pytest.mark.parametrize("ending", [".ply", ".spz", ".splat"])
def test_files_of_splats_hold_them(tmp_path: Path, ending: str) -> None:
    splats = splats_of(blobs(), torch.rand(1, 5, 3, generator=torch.Generator().manual_seed(0)))
    assert write_splats(splats, tmp_path / f"tokens{ending}") == 5
    again = read_splats(tmp_path / f"tokens{ending}")
    torch.testing.assert_close(drawn(again), drawn(splats), atol=0.03, rtol=0)
    assert math.isclose(float(again.scales[0, 0, 2]), THICKNESS, rel_tol=0.05)
