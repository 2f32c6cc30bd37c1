"""The loss: its terms on hand-made images, and the equality of the ways to compute it."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import RenderedViews, render
from token_methods.tokengs.config import LossWeights
from token_methods.tokengs.losses import chunked_losses, deferred_render, scene_losses, tokengs_losses

EVERY_TERM = LossWeights(rgb=0.8, rgb_loss_type="l1", ssim=0.2, lpips=0.5, mask=0.3, visibility=1.0, opacity=0.01)


def perceptual(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs().amax(dim=(1, 2, 3))


def make_gaussians(batch: int = 3, count: int = 20) -> Gaussians3D:
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.rand(batch, count, *shape, generator=generator)

    means = (random(3) - 0.5) * torch.tensor([3.0, 3.0, 0.5]) + torch.tensor([0.0, 0.0, 1.0])
    quats = torch.nn.functional.normalize(random(4) - 0.5, dim=-1)
    return Gaussians3D(means, quats, 0.02 + 0.1 * random(3), 0.2 + 0.7 * random(), random(3))


def make_target(batch: int = 3, count: int = 3, masks: bool = True) -> Views:
    generator = torch.Generator().manual_seed(5)
    poses = torch.eye(4).repeat(batch, count, 1, 1)
    poses[..., :3, 3] = 0.1 * torch.randn(batch, count, 3, generator=generator)
    images = torch.rand(batch, count, 3, 16, 20, generator=generator)
    mask = (torch.rand(batch, count, 1, 16, 20, generator=generator) > 0.3).float() if masks else None
    return Views(16, 20, images, poses, torch.tensor([18.0, 18.0, 10.0, 8.0]).expand(batch, count, 4), mask)


def leaves_of(gaussians: Gaussians3D) -> Gaussians3D:
    return gaussians.map(lambda value: value.detach().clone().requires_grad_())


def assert_same_gradients(first: Gaussians3D, second: Gaussians3D) -> None:
    for field in fields(first):
        gradient, other = getattr(first, field.name).grad, getattr(second, field.name).grad
        torch.testing.assert_close(gradient, other, atol=1e-5 * other.abs().max().item(), rtol=1e-5)
        assert other.abs().max() > 0


def flat_views(value: float, batch: int = 2) -> RenderedViews:
    images = torch.full((batch, 2, 3, 16, 20), value)
    return RenderedViews(images, torch.zeros_like(images[:, :, :1]), torch.full_like(images[:, :, :1], 0.25))


@pytest.mark.parametrize(("scenes", "views"), [(1, None), (2, None), (1, 1), (2, 2), (3, 3)])
def test_chunks_give_the_values_and_gradients_of_the_whole(scenes: int, views: int | None) -> None:
    target, has_mask = make_target(), (True, False, True)
    whole, parts = leaves_of(make_gaussians()), leaves_of(make_gaussians())
    expected = tokengs_losses(render(whole, target), whole, target, EVERY_TERM, perceptual, has_mask)
    losses = chunked_losses(parts, target, render, EVERY_TERM, perceptual, has_mask, scenes, views)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].detach(), value.detach(), rtol=1e-5, atol=1e-6)
    # Through a network before the Gaussians: a factor on the loss must arrive too.
    (3 * expected["loss"]).backward()
    (3 * losses["loss"]).backward()
    assert_same_gradients(parts, whole)


def test_chunks_without_gradients_only_measure() -> None:
    gaussians, target = make_gaussians(), make_target()
    with torch.no_grad():
        losses = chunked_losses(gaussians, target, render, EVERY_TERM, perceptual)
        expected = tokengs_losses(render(gaussians, target), gaussians, target, EVERY_TERM, perceptual)
    torch.testing.assert_close(losses["loss"], expected["loss"])
    assert not losses["loss"].requires_grad


def test_chunks_hold_one_rendering_at_a_time() -> None:
    sizes = []

    def counted(gaussians: Gaussians3D, views: Views) -> RenderedViews:
        sizes.append((gaussians.batch_size, views.num_views))
        return render(gaussians, views)

    chunked_losses(make_gaussians(), make_target(), counted, LossWeights(), views_per_chunk=2)
    assert sizes == [(1, 2), (1, 1)] * 3
    with pytest.raises(ValueError, match="at least one scene"):
        chunked_losses(make_gaussians(), make_target(), counted, LossWeights(), scenes_per_chunk=0)


def test_deferred_rendering_gives_the_same_gradients() -> None:
    target = make_target()
    whole, deferred = leaves_of(make_gaussians()), leaves_of(make_gaussians())
    tokengs_losses(render(whole, target), whole, target, EVERY_TERM, perceptual)["loss"].backward()
    tokengs_losses(deferred_render(deferred, target, render), deferred, target, EVERY_TERM, perceptual)["loss"].backward()
    assert_same_gradients(deferred, whole)


def test_terms_on_flat_images() -> None:
    target = replace(make_target(2, 2, masks=False), images=torch.full((2, 2, 3, 16, 20), 0.5))
    gaussians = make_gaussians(2)
    losses = tokengs_losses(flat_views(0.6), gaussians, target, LossWeights(ssim=0, visibility=0))
    assert losses["loss"].item() == pytest.approx(0.01, rel=1e-5)
    assert losses["psnr"].item() == pytest.approx(20.0, rel=1e-5)
    assert losses.keys() == {"loss", "loss_rgb", "psnr"}
    losses = tokengs_losses(flat_views(0.6), gaussians, target, LossWeights(rgb=0.8, rgb_loss_type="l1", ssim=0, visibility=0))
    assert losses["loss"].item() == pytest.approx(0.08, rel=1e-5)


def test_pixels_outside_a_mask_should_be_white() -> None:
    target = make_target(2, 2)
    target = replace(target, masks=torch.zeros_like(target.masks))
    losses = tokengs_losses(flat_views(1.0), make_gaussians(2), target, LossWeights(ssim=0, visibility=0))
    assert losses["loss"].item() == 0


def test_alpha_follows_the_masks_of_flagged_scenes() -> None:
    target = make_target(2, 2)
    target = replace(target, masks=torch.ones_like(target.masks))
    weights = LossWeights(ssim=0, visibility=0, mask=1.0)
    arguments = (flat_views(0.5), make_gaussians(2), target, weights, None)
    assert scene_losses(*arguments, has_mask=(True, False))["loss_mask"].tolist() == pytest.approx([0.75**2, 0.0])
    assert scene_losses(*arguments)["loss_mask"].tolist() == pytest.approx([0.75**2] * 2)
    unmasked = (*arguments[:2], replace(target, masks=None), *arguments[3:])
    assert scene_losses(*unmasked)["loss_mask"].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="names 3 scenes, the batch has 2"):
        scene_losses(*arguments, has_mask=(True, True, True))


def test_opacity_term_wants_opaque_gaussians() -> None:
    gaussians = make_gaussians(2)
    gaussians = replace(gaussians, opacities=torch.full_like(gaussians.opacities, 0.5))
    losses = tokengs_losses(flat_views(0.5), gaussians, make_target(2, 2), LossWeights(ssim=0, visibility=0, opacity=1.0))
    assert losses["loss_opacity"].item() == pytest.approx(math.log(2), rel=1e-4)


def test_what_is_missing_is_named() -> None:
    target, gaussians = make_target(2, 2), make_gaussians(2)
    with pytest.raises(ValueError, match="no LPIPS network"):
        tokengs_losses(flat_views(0.5), gaussians, target, LossWeights(lpips=0.5))
    with pytest.raises(ValueError, match="target images"):
        tokengs_losses(flat_views(0.5), gaussians, replace(target, images=None), LossWeights())
