"""Training SSIM against a direct evaluation, and the visibility loss on points whose place is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from token_methods.core.losses import outside_distance, ssim
from token_methods.core.views import Views


def direct_ssim(x: Tensor, y: Tensor) -> float:
    """The formula at every pixel, window by window, in float64."""
    taps = torch.exp(-0.5 * ((torch.arange(11, dtype=torch.float64) - 5) / 1.5) ** 2)
    window = torch.outer(taps / taps.sum(), taps / taps.sum())
    pad = torch.nn.functional.pad
    windows = [pad(image, (5, 5, 5, 5)).unfold(-2, 11, 1).unfold(-2, 11, 1) for image in (x.double(), y.double())]
    a, b = windows
    mean_a, mean_b = (a * window).sum((-1, -2)), (b * window).sum((-1, -2))
    variance_a = ((a * a * window).sum((-1, -2)) - mean_a**2).clamp(min=0)
    variance_b = ((b * b * window).sum((-1, -2)) - mean_b**2).clamp(min=0)
    covariance = (a * b * window).sum((-1, -2)) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    bottom = (mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4)
    return (top / bottom).clamp(-1, 1).mean().item()


def test_ssim_equals_the_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 3, 3, 14, 17, generator=generator)
    y = 0.6 * x + 0.4 * y
    for index, value in enumerate(ssim(x, y)):
        assert value.item() == pytest.approx(direct_ssim(x[index], y[index]), abs=2e-6)
    assert ssim(x, x).tolist() == pytest.approx([1.0] * 3)


def test_ssim_leads_the_prediction_alone() -> None:
    x, y = torch.rand(1, 3, 12, 12, requires_grad=True), torch.rand(1, 3, 12, 12, requires_grad=True)
    ssim(x, y).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert y.grad is None
    better = x.detach() + 1e-2 * x.grad / x.grad.abs().max()
    assert ssim(better, y) > ssim(x, y)


def test_ssim_gradient_is_right() -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.rand(2, 1, 1, 11, 11, generator=generator)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ssim(x, y).sum(), x)
    step = 1e-3 * torch.randn(x.shape, generator=generator)
    difference = direct_ssim((x + step)[0].detach(), y[0]) - direct_ssim((x - step)[0].detach(), y[0])
    assert (gradient * 2 * step).sum().item() == pytest.approx(difference, rel=1e-2)


def two_views() -> Views:
    """Cameras at the origin, one looking along z, one along -z; 8 x 8 pixels over 90 degrees."""
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    intrinsics = torch.tensor([4.0, 4.0, 4.0, 4.0]).expand(1, 2, 4)
    return Views(8, 8, camera_to_world=torch.stack([torch.eye(4), back])[None], intrinsics=intrinsics)


@pytest.mark.parametrize(
    ("point", "distance"),
    [
        ((0.0, 0.0, 2.0), 0.0),
        ((1.0, -1.0, 1.0), 0.0),  # the very corner
        ((1.5, 0.0, 1.0), 0.5),
        ((1.25, -1.5, 1.0), 0.75),
        ((0.0, 0.0, -2.0), 0.0),  # behind the first camera, before the second
        ((30.0, 0.0, 1.0), 1.0),  # cut at the limit
        ((0.0, 0.0, 0.0), 0.0),  # 0 / 0
        ((1.0, 0.0, 0.0), 1.0),  # 1 / 0
    ],
)
def test_distance_outside_the_nearest_view(point: tuple[float, ...], distance: float) -> None:
    means = torch.tensor(point).view(1, 1, 3).requires_grad_()
    value = outside_distance(means, two_views(), limit=1.0)
    assert value.item() == pytest.approx(distance, abs=1e-6)
    value.sum().backward()
    assert means.grad is not None
    assert means.grad.isfinite().all()
    assert (means.grad.abs().sum() > 0) == (0 < distance < 1)


def test_distance_without_a_limit() -> None:
    means = torch.tensor([[[30.0, 0.0, 1.0], [0.0, 0.0, 1.0]]])
    assert outside_distance(means, two_views(), limit=0.0).item() == pytest.approx(29 / 2)
    assert math.isfinite(outside_distance(torch.tensor([[[1.0, 1.0, 0.0]]]), two_views(), limit=0.0).item())
