"""A case of the renderer alone: Gaussians and cameras, float64 images and gradients, radii and projected centres."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from scripts.parity.comparison import Comparison, NotACase, compare_number, compare_tensor, read_report
from scripts.parity.tokengs_case import read_tensors
from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.projection import BLUR, project
from token_methods.rendering.rasterize import render

COLOR_TOLERANCE, GRADIENT_TOLERANCE, DEPTH_TOLERANCE, CENTRE_TOLERANCE = 2e-5, 1e-4, 1e-4, 1e-6
"""Absolute; relative to the largest gradient of a group of channels, the largest depth, the largest coordinate."""
GROUPS = {"means": slice(0, 3), "opacities": slice(3, 4), "scales": slice(4, 7), "quats": slice(7, 11), "colors": slice(11, 14)}
"""Channels of a Gaussian in the published order."""
NEEDED = ("gaussians", "viewmats", "intrinsics", "background", "cotangent_rgb", "cotangent_alpha")


def compare_rasteriser(folder: Path) -> Iterator[Comparison]:
    """Images, alphas, depths, the scalar and its gradients, radii and centres.

    Raises:
        NotACase: something is missing in the folder, or the renderer was run with other settings than there are here.
    """
    report, tensors = read_report(folder), read_tensors(folder)
    where = folder / "case.json"
    for name in NEEDED:
        if name not in tensors:
            raise NotACase(f"{folder / 'tensors.safetensors'} has no tensor {name}")
    if report.get("eps2d", BLUR) != BLUR:
        raise NotACase(f"{where}: eps2d must be {BLUR}, {report['eps2d']!r} is not supported")
    scalar = re.match(r"L = ([\d.]+)\*mean\(rgb\*cotangent_rgb\) \+ ([\d.]+)\*mean\(alpha\*cotangent_alpha\)", str(report.get("scalar")))
    if scalar is None:
        raise NotACase(f"{where}: the scalar {report.get('scalar')!r} is not known")

    values = tensors["gaussians"].clone().requires_grad_()
    means, opacities, scales, quats, colors = (values[None, :, channels] for channels in GROUPS.values())
    gaussians = Gaussians3D(means, quats, scales, opacities[..., 0], colors)
    poses = torch.linalg.inv(tensors["viewmats"].double())[None]
    views = Views(report["height"], report["width"], camera_to_world=poses, intrinsics=tensors["intrinsics"][None])
    red, green, blue = tensors["background"].tolist()
    drawn = render(gaussians, views, (red, green, blue), report["near"], report["far"])
    images, alphas, depths = (part[0].movedim(1, -1) for part in (drawn.images, drawn.alphas, drawn.depths))
    total = float(scalar[1]) * (images * tensors["cotangent_rgb"]).mean() + float(scalar[2]) * (alphas * tensors["cotangent_alpha"]).mean()
    total.backward()
    assert values.grad is not None

    if "rgb_float64" in tensors:
        yield compare_tensor("rgb_float64", images, tensors["rgb_float64"], COLOR_TOLERANCE)
    if "alpha_float64" in tensors:
        yield compare_tensor("alpha_float64", alphas, tensors["alpha_float64"], COLOR_TOLERANCE)
    if "expected_depth_float64" in tensors:
        wanted = tensors["expected_depth_float64"]
        yield compare_tensor("expected_depth_float64", depths, wanted, DEPTH_TOLERANCE * wanted.abs().max().item())
    if "L" in report:
        yield compare_number("L", total, report["L"])
    if "grad_gaussians_float64" in tensors:
        for name, channels in GROUPS.items():
            wanted = tensors["grad_gaussians_float64"][:, channels]
            tolerance = GRADIENT_TOLERANCE * wanted.abs().max().item()
            yield compare_tensor(f"grad_gaussians_float64/{name}", values.grad[:, channels], wanted, tolerance)
    yield from _compare_projection(gaussians.detach(), views, report["near"], report["far"], tensors)


def _compare_projection(gaussians: Gaussians3D, views: Views, near: float, far: float, tensors: dict[str, Tensor]) -> Iterator[Comparison]:
    """Radii and centres, zero where a Gaussian is culled."""
    splats = project(gaussians, views, near, far)
    for name, values, tolerance in (("radii", splats.extents.ceil(), 0.0), ("means2d_float64", splats.centres, CENTRE_TOLERANCE)):
        if name in tensors:
            ours = torch.zeros(views.num_views, gaussians.num_gaussians, 2, dtype=values.dtype)
            ours[splats.image, splats.gaussian] = values
            yield compare_tensor(name, ours, tensors[name], tolerance * tensors[name].abs().max().item())
