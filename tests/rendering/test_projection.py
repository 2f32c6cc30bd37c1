"""Projected centres and extents are those of gsplat 1.5.3."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.projection import project


def test_centres_and_radii_are_the_published_ones(reference):
    case = load_file(reference / "parity/tokengs/cases/rasteriser/tensors.safetensors")
    values = case["gaussians"][None]
    gaussians = Gaussians3D(values[..., 0:3], values[..., 7:11], values[..., 4:7], values[..., 3], values[..., 11:14])
    poses = torch.linalg.inv(case["viewmats"].double())[None]
    splats = project(gaussians, Views(37, 53, camera_to_world=poses, intrinsics=case["intrinsics"][None]), near=0.025, far=125.0)
    radii = torch.zeros_like(case["radii"])
    radii[splats.image, splats.gaussian] = splats.extents.ceil().to(radii.dtype)
    assert torch.equal(radii, case["radii"])
    torch.testing.assert_close(splats.centres, case["means2d_float64"][splats.image, splats.gaussian], rtol=1e-6, atol=1e-5)
