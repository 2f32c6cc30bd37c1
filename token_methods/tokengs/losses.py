"""The TokenGS loss, and two ways to compute the same gradient in less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from token_methods.core.losses import outside_distance, ssim
from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import RenderedViews
from token_methods.tokengs.config import LossWeights

Renderer = Callable[[Gaussians3D, Views], RenderedViews]
"""Draws Gaussians at cameras; background and clipping planes are already chosen."""
Perceptual = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target), both [n, 3, height, width] in [0, 1] -> one distance per image."""


def tokengs_losses(
    rendered: RenderedViews,
    gaussians: Gaussians3D,
    target: Views,
    weights: LossWeights,
    lpips: Perceptual | None = None,
    has_mask: Sequence[bool] = (),
) -> dict[str, Tensor]:
    """The training loss and its terms, mean over scenes.

    Args:
        rendered: what the target cameras see.
        gaussians: in the frame of the target cameras.
        target: images and cameras, masks where a dataset has them (pixels outside are compared with white).
        weights: of the terms; a term of weight 0 is left out.
        lpips: needed if its weight is not 0.
        has_mask: which scenes' masks are true silhouettes that alpha must follow; empty: all, if there are masks.

    Returns:
        `loss` (the weighted sum), `loss_rgb`, `loss_ssim`, ... (unweighted) and `psnr` (dB, not clipped), scalars.
    """
    return _mean_over_scenes(scene_losses(rendered, gaussians, target, weights, lpips, has_mask), weights)


def scene_losses(
    rendered: RenderedViews,
    gaussians: Gaussians3D,
    target: Views,
    weights: LossWeights,
    lpips: Perceptual | None = None,
    has_mask: Sequence[bool] = (),
) -> dict[str, Float[Tensor, " batch"]]:
    """The same terms for each scene by itself. `loss` of a scene leaves out the opacity term, as published."""
    terms = _image_terms(rendered, target, weights, lpips, has_mask) | _gaussian_terms(gaussians, target, weights)
    return terms | {"loss": _weighted_sum({name: value for name, value in terms.items() if name != "loss_opacity"}, weights)}


def chunked_losses(
    gaussians: Gaussians3D,
    target: Views,
    render: Renderer,
    weights: LossWeights,
    lpips: Perceptual | None = None,
    has_mask: Sequence[bool] = (),
    scenes_per_chunk: int = 1,
    views_per_chunk: int | None = None,
) -> dict[str, Tensor]:
    """`tokengs_losses` of `render(gaussians, target)`, drawn and differentiated a few images at a time.

    The gradient of each chunk with respect to the Gaussians is taken at once and summed ("mean of gradients" of the
    publication), so only one chunk's rendering is in memory. Values and gradients equal those of the ordinary way up to
    rounding; `loss.backward()` goes on into the network.
    """
    if scenes_per_chunk < 1 or (views_per_chunk is not None and views_per_chunk < 1):
        raise ValueError(f"chunks must hold at least one scene and view, got {scenes_per_chunk} and {views_per_chunk}")
    batch, num_views = gaussians.batch_size, target.num_views
    differentiate = torch.is_grad_enabled() and gaussians.means.requires_grad
    leaves = gaussians.map(lambda value: value.detach().requires_grad_(differentiate))
    inputs = [getattr(leaves, field.name) for field in fields(leaves)]
    totals: dict[str, Tensor] = {}

    def add(terms: dict[str, Tensor], share: float) -> None:
        terms = {name: share * value.sum() for name, value in terms.items()}
        if differentiate:
            torch.autograd.backward(_weighted_sum(terms, weights), inputs=inputs)
        for name, value in terms.items():
            totals[name] = totals.get(name, 0) + value.detach()

    for scenes in _slices(batch, scenes_per_chunk):
        chunk, chunk_target = leaves.scenes(scenes), target.scenes(scenes)
        for views in _slices(num_views, views_per_chunk or num_views):
            part = chunk_target.select(views)
            image_terms = _image_terms(render(chunk, part), part, weights, lpips, has_mask[scenes])
            add(image_terms, part.num_views / num_views / batch)
        gaussian_terms = _gaussian_terms(chunk, chunk_target, weights)
        if gaussian_terms:
            add(gaussian_terms, 1 / batch)

    losses = totals | {"loss": _weighted_sum(totals, weights)}
    if differentiate:
        carrier = sum((getattr(gaussians, field.name) * leaf.grad).sum() for field, leaf in zip(fields(leaves), inputs, strict=True))
        losses["loss"] = carrier + (losses["loss"] - carrier).detach()
    return losses


def deferred_render(gaussians: Gaussians3D, views: Views, render: Renderer) -> RenderedViews:
    """`render`, one view at a time and forgetful: backward draws each view again ("deferred backpropagation").

    The image losses then see all views at once, while the memory of only one rendering is held.
    """
    names = [field.name for field in fields(gaussians)]

    def draw(view: Views, *values: Tensor) -> RenderedViews:
        return render(Gaussians3D(**dict(zip(names, values, strict=True))), view)

    values = [getattr(gaussians, name) for name in names]
    drawn = [
        checkpoint(draw, views.select(slice(i, i + 1)), *values, use_reentrant=False, preserve_rng_state=False)
        for i in range(views.num_views)
    ]
    return RenderedViews(**{field.name: torch.cat([getattr(one, field.name) for one in drawn], dim=1) for field in fields(RenderedViews)})


def _image_terms(
    rendered: RenderedViews, target: Views, weights: LossWeights, lpips: Perceptual | None, has_mask: Sequence[bool]
) -> dict[str, Float[Tensor, " batch"]]:
    """What compares pixels: one number per scene and term, means over its views."""
    if target.images is None:
        raise ValueError("the loss needs target images")
    prediction, images = rendered.images.float(), target.images
    masked = images if target.masks is None else images * target.masks + (1 - target.masks)
    squared = (prediction - masked).square()
    difference = squared if weights.rgb_loss_type == "l2" else (prediction - masked).abs()
    terms = {
        "loss_rgb": difference.mean(dim=(1, 2, 3, 4)),
        "psnr": -10 * squared.detach().mean(dim=(2, 3, 4)).log10().mean(dim=1),
    }
    if weights.ssim > 0:
        similarity = ssim(prediction.flatten(0, 1), masked.flatten(0, 1)).unflatten(0, prediction.shape[:2])
        terms["loss_ssim"] = (1 - similarity.mean(dim=1)) / 2
    if weights.mask > 0:
        terms["loss_mask"] = _mask_term(rendered.alphas, target, has_mask)
    if weights.lpips > 0:
        if lpips is None:
            raise ValueError("the loss has an LPIPS term, but no LPIPS network was given")
        distance = lpips(prediction.flatten(0, 1), images.flatten(0, 1)).reshape(prediction.shape[:2])
        terms["loss_lpips"] = distance.mean(dim=1)
    return terms


def _mask_term(alphas: Tensor, target: Views, has_mask: Sequence[bool]) -> Float[Tensor, " batch"]:
    if target.masks is None:
        return alphas.new_zeros(alphas.shape[0])
    difference = (alphas - target.masks).square().mean(dim=(1, 2, 3, 4))
    if not has_mask:
        return difference
    if len(has_mask) != len(difference):
        raise ValueError(f"has_mask names {len(has_mask)} scenes, the batch has {len(difference)}")
    return difference * torch.tensor(has_mask, dtype=difference.dtype).to(difference.device, non_blocking=True)


def _gaussian_terms(gaussians: Gaussians3D, target: Views, weights: LossWeights) -> dict[str, Float[Tensor, " batch"]]:
    """What looks at the Gaussians themselves: one number per scene and term."""
    terms = {}
    if weights.visibility > 0:
        terms["loss_visibility"] = outside_distance(gaussians.means, target, weights.visibility_distance_threshold)
    if weights.opacity > 0:
        terms["loss_opacity"] = -(gaussians.opacities + 1e-6).log().mean(dim=1)
    return terms


def _weighted_sum(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    weighted = [getattr(weights, name.removeprefix("loss_")) * value for name, value in terms.items() if name.startswith("loss_")]
    return torch.stack(weighted).sum(dim=0)


def _mean_over_scenes(terms: dict[str, Float[Tensor, " batch"]], weights: LossWeights) -> dict[str, Tensor]:
    means = {name: value.mean() for name, value in terms.items() if name != "loss"}
    return means | {"loss": _weighted_sum(means, weights)}


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
