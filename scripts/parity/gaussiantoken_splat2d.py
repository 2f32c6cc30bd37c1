"""2D feature splatting beside a stored case: map, projection, and the exact and the published gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from scripts.parity.comparison import Comparison
from scripts.parity.gaussiantoken_case import GaussianTokenCase
from token_methods.rendering.gaussians2d import PUBLISHED_TILE_LIMIT, Gaussians2D, splat
from token_methods.rendering.gaussians2d_torch import project, splat_tiles

CONIC_ROUNDING = 5e-4
"""What the published gradients of scales and rotations may lose with 400 Gaussians or more: their conics are float32."""
FIELDS = ("means", "scales", "rotations", "features", "opacities")


def compare(case: GaussianTokenCase) -> Iterator[Comparison]:
    """Everything that the case stores."""
    height, width = int(case.setting("height")), int(case.setting("width"))
    limit = PUBLISHED_TILE_LIMIT if case.setting("limit_256") else None
    inputs = means, scales, rotations, features, opacities = [case[f"in.{name}"].requires_grad_() for name in FIELDS]
    gaussians = Gaussians2D(means, scales, rotations, features, opacities)

    projection = project(means, scales, rotations, height, width)
    (xx, xy), (_, yy) = (row.unbind(-1) for row in (projection.whitening.mT @ projection.whitening).unbind(-2))
    left, above, right, below = projection.boxes.unbind(-1)
    yield case.compare("xys", projection.centres, "out.image", prefix="out.")
    yield case.compare("radii", projection.radii, prefix="out.")
    # Entries of an inverse of very different sizes: a share of the largest, as for gradients.
    yield case.compare("conics", torch.stack([xx, xy, yy], dim=-1), "grad", prefix="out.")
    yield case.compare("num_tiles_hit", (right - left) * (below - above), prefix="out.")

    published = splat(gaussians, height, width, published=True)
    yield case.compare("image", published, "out.image", prefix="out.")
    yield case.compare("image_f64", published, "out.image", prefix="out.")
    # Where the case draws all Gaussians of a tile the default must draw the same, and its gradients are the exact ones.
    exact = splat_tiles(means, scales, rotations, features, opacities, height, width, limit) if limit else splat(gaussians, height, width)
    for kind, image in (("grad_exact", exact), ("grad_published", published)):
        gradients = torch.autograd.grad(image, inputs, case["in.v_image"])
        for name, gradient in zip(FIELDS, gradients):
            comparison = case.compare(name, gradient, "grad", prefix=f"{kind}.")
            if kind == "grad_published" and name in ("scales", "rotations") and gaussians.num_gaussians >= 400:
                tolerance = max(comparison.tolerance, CONIC_ROUNDING)
                comparison = replace(comparison, tolerance=tolerance, passed=comparison.error <= tolerance)
            yield comparison
