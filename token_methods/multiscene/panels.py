"""Pictures of a scene for TensorBoard and evaluation folders: context, target, prediction, depth, error."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from jaxtyping import Float
from nerfstudio.utils.colormaps import ColormapOptions, apply_colormap
from PIL import Image
from torch import Tensor

from token_methods.core.views import SceneBatch
from token_methods.rendering.rasterize import RenderedViews

MAX_PANEL_VIEWS = 8


def scene_panels(batch: SceneBatch, rendered: RenderedViews) -> dict[str, Float[Tensor, "height width 3"]]:
    """Two pictures of the first scene of a batch: `context`, a row of what the model saw, and `comparison`, rows of
    target, prediction, depth and absolute error (of at most eight views, evenly chosen)."""
    assert batch.context.images is not None and batch.target.images is not None
    count = batch.target.num_views
    chosen = torch.linspace(0, count - 1, min(count, MAX_PANEL_VIEWS)).round().long().tolist()
    target, predicted = batch.target.images[0, chosen], rendered.images[0, chosen].clamp(0, 1)
    rows = [target, predicted, depth_colours(rendered.depths[0, chosen], rendered.alphas[0, chosen]), error_colours(predicted, target)]
    return {
        "context": _row(batch.context.images[0].clamp(0, 1)),
        "comparison": torch.cat([_row(row) for row in rows], dim=0),
    }


def depth_colours(
    depths: Float[Tensor, "views 1 height width"], alphas: Float[Tensor, "views 1 height width"]
) -> Float[Tensor, "views 3 height width"]:
    """Inverse depth in turbo colours, scaled over the group; black where nothing was hit."""
    hit = alphas > 0.05
    inverse = torch.where(hit, 1 / depths.clamp(min=1e-6), torch.zeros_like(depths))
    if hit.any():
        values = inverse[hit]
        # A few thousand say where the ends are as well as all do, and a stray one must not stretch the scale.
        low, high = values[:: 1 + len(values) // 2**16].quantile(values.new_tensor([0.02, 0.98]))
        inverse = ((inverse - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    colours = apply_colormap(inverse.permute(0, 2, 3, 1), ColormapOptions(colormap="turbo")).permute(0, 3, 1, 2)
    return colours * hit


def error_colours(
    predicted: Float[Tensor, "views 3 height width"], target: Float[Tensor, "views 3 height width"]
) -> Float[Tensor, "views 3 height width"]:
    """Mean absolute error of a pixel, black for none to yellow for 0.5 and more."""
    error = (predicted - target).abs().mean(dim=1).mul(2).clamp(0, 1)
    return apply_colormap(error[..., None], ColormapOptions(colormap="inferno")).permute(0, 3, 1, 2)


def save_image(image: Float[Tensor, "height width 3"], path: Path) -> None:
    """Write a picture under a temporary name, then rename; the suffix names the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = image.detach().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    Image.fromarray(pixels).save(temporary)
    os.replace(temporary, path)


def _row(images: Float[Tensor, "views 3 height width"]) -> Float[Tensor, "height width_of_all 3"]:
    return torch.cat(list(images.permute(0, 2, 3, 1)), dim=1)
