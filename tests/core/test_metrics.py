"""Reported image quality against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as skimage_similarity

from token_methods.core.metrics import joint_psnr, psnr, structural_similarity, truncated_to_bytes, uniform_structural_similarity


def image_pair(height: int = 37, width: int = 29) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    target = torch.rand(4, 3, height, width, generator=generator)
    noise = torch.tensor([0.0, 0.02, 0.2, 1.0])[:, None, None, None]
    return target + noise * torch.randn(target.shape, generator=generator), target


def test_structural_similarity_equals_skimages() -> None:
    prediction, target = image_pair()
    values = structural_similarity(prediction, target)
    for index in range(4):
        expected = skimage_similarity(
            target[index].numpy().astype(np.float64),
            prediction[index].numpy().astype(np.float64),
            win_size=11,
            gaussian_weights=True,
            channel_axis=0,
            data_range=1.0,
        )
        assert values[index].item() == pytest.approx(expected, abs=1e-6)


def test_psnr_equals_skimages_on_clipped_images() -> None:
    prediction, target = image_pair()
    values = psnr(prediction, target)
    assert values[0] == math.inf
    for index in range(1, 4):
        expected = peak_signal_noise_ratio(target[index].numpy(), prediction[index].clamp(0, 1).numpy(), data_range=1.0)
        assert values[index].item() == pytest.approx(expected, abs=1e-4)


def test_the_similarity_of_uniform_windows_is_skimages_as_it_comes() -> None:
    prediction, target = (truncated_to_bytes(images) for images in image_pair())
    values = uniform_structural_similarity(prediction, target)
    for index in range(4):
        expected = skimage_similarity(target[index].numpy(), prediction[index].numpy(), channel_axis=0, data_range=1.0)
        assert values[index].item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="at least 7 x 7 pixels, got 6 x 40"):
        uniform_structural_similarity(torch.zeros(1, 3, 6, 40), torch.zeros(1, 3, 6, 40))


def test_joint_psnr_is_skimages_of_the_whole_batch_and_never_above_the_mean() -> None:
    prediction, target = (truncated_to_bytes(images[1:]) for images in image_pair())
    joint = joint_psnr(prediction, target).item()
    assert joint == pytest.approx(peak_signal_noise_ratio(target.numpy(), prediction.numpy(), data_range=1.0), abs=1e-9)
    assert joint < psnr(prediction, target).mean().item()


def test_bytes_are_cut_off_not_rounded() -> None:
    levels = torch.arange(256) / 255
    assert torch.equal(truncated_to_bytes(levels), torch.arange(256).double() / 255), "8-bit images stay as they are"
    values = torch.linspace(-0.2, 1.2, 1001)
    expected = (values.clamp(0, 1).numpy() * 255).astype(np.uint8) / 255
    assert np.array_equal(truncated_to_bytes(values).numpy(), expected)


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 10 x 40"):
        structural_similarity(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))
