"""Image quality as papers report it. Nothing here is meant to be differentiated."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from token_methods.core.losses import SSIM_C1, SSIM_C2, SSIM_WINDOW_SIZE, window_mean

UNIFORM_WINDOW_SIZE = 7
"""Of scikit-image's SSIM, where nothing else is said."""


@torch.no_grad()
def psnr(prediction: Float[Tensor, "n c height width"], target: Float[Tensor, "n c height width"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each image pair in dB, both clipped to [0, 1]; infinite where they are equal."""
    squared_error = (prediction.float().clamp(0, 1) - target.float().clamp(0, 1)).square().mean(dim=(1, 2, 3))
    return -10 * squared_error.log10()


@torch.no_grad()
def structural_similarity(prediction: Float[Tensor, "n c height width"], target: Float[Tensor, "n c height width"]) -> Float[Tensor, " n"]:
    """SSIM of each image pair in [0, 1], equal to scikit-image's with `win_size=11, gaussian_weights=True, data_range=1`.

    That form takes sample covariances and leaves out a border of 5 pixels; it is not the SSIM of the training loss.

    Raises:
        ValueError: an image is smaller than the window.
    """
    size = SSIM_WINDOW_SIZE
    # The exact Gaussian, unlike that of the training loss.
    window = torch.exp(-0.5 * ((torch.arange(size, dtype=torch.float64) - size // 2) / 1.5) ** 2)
    return _similarity(prediction, target, window / window.sum())


@torch.no_grad()
def uniform_structural_similarity(
    prediction: Float[Tensor, "n c height width"], target: Float[Tensor, "n c height width"]
) -> Float[Tensor, " n"]:
    """SSIM of each image pair in [0, 1], equal to scikit-image's as it comes: 7 x 7 pixels that weigh the same, sample covariances,
    without a border of 3 pixels, mean over the channels (`data_range=1`).

    Raises:
        ValueError: an image is smaller than the window.
    """
    return _similarity(prediction, target, torch.full((UNIFORM_WINDOW_SIZE,), 1 / UNIFORM_WINDOW_SIZE, dtype=torch.float64))


@torch.no_grad()
def truncated_to_bytes(images: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Images in [0, 1] after they were 8-bit images for a while, whose values were cut off and not rounded; float64."""
    return images.float().clamp(0, 1).mul(255).byte().double() / 255


@torch.no_grad()
def joint_psnr(prediction: Float[Tensor, "n c height width"], target: Float[Tensor, "n c height width"]) -> Float[Tensor, ""]:
    """Peak signal-to-noise ratio in dB of all pairs taken as one image: never above the mean of each one's. Images in [0, 1]."""
    return -10 * (prediction.double() - target.double()).square().mean().log10()


def _similarity(
    prediction: Float[Tensor, "n c height width"], target: Float[Tensor, "n c height width"], window: Float[Tensor, " size"]
) -> Float[Tensor, " n"]:
    size = len(window)
    if min(prediction.shape[-2:]) < size:
        raise ValueError(f"SSIM needs images of at least {size} x {size} pixels, got {prediction.shape[-2]} x {prediction.shape[-1]}")
    # In float64: variances are small differences, in which rounding shows in the sixth digit.
    x, y = prediction.double(), target.double()
    moments = window_mean(torch.cat([x, y, x * x, y * y, x * y], dim=1), window.to(x), padding=0)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = moments.chunk(5, dim=1)
    sample = size**2 / (size**2 - 1)
    variances = sample * (mean_xx - mean_x * mean_x + mean_yy - mean_y * mean_y)
    covariance = sample * (mean_xy - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x * mean_x + mean_y * mean_y + SSIM_C1)
    return (luminance * (2 * covariance + SSIM_C2) / (variances + SSIM_C2)).mean(dim=(1, 2, 3)).float()
