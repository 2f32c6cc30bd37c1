"""Distances between sets of images: closed forms, independent implementations, degenerate sets; features of the right layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.image.kid import poly_mmd
from torchvision.models import vgg

from token_methods.core import feature_distances
from token_methods.core.feature_distances import frechet_distance, kernel_distance, vgg16_features
from token_methods.core.perceptual import CACHE_FOLDER, load_lpips


def features(count: int, channels: int, seed: int) -> Tensor:
    """Correlated, with a mean and deviations of its own."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator)
    return torch.randn(count, channels, generator=generator) @ mixing + torch.randn(channels, generator=generator)


def test_frechet_distance_is_the_formula_with_a_general_matrix_root() -> None:
    first, second = features(80, 12, 0), features(60, 12, 1)
    a, b = (np.cov(part.double().numpy(), rowvar=False) for part in (first, second))
    shift = (first.double().mean(0) - second.double().mean(0)).numpy()
    expected = shift @ shift + np.trace(a) + np.trace(b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_shifted_and_stretched_sets() -> None:
    """A shift counts with its square; independent channels with the squared difference of their deviations."""
    sample = features(50, 6, 2)
    assert frechet_distance(sample, sample) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(sample, sample + 3) == pytest.approx(6 * 9, rel=1e-5)
    variance = sample.double().var(dim=0).sum().item()
    centred = sample - sample.mean(dim=0)
    assert frechet_distance(centred, 2.5 * centred) == pytest.approx(1.5**2 * variance, rel=1e-5)


def test_frechet_distance_is_finite_where_covariances_have_no_full_rank() -> None:
    few = features(5, 40, 3)
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-6)
    black = torch.zeros(5, 40)
    expected = few.double().mean(0).square().sum() + few.double().var(0).sum()
    assert frechet_distance(few, black) == frechet_distance(black, few) == pytest.approx(expected.item(), rel=1e-9)


def test_kernel_distance_is_the_unbiased_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = features(33, 8, 4).double(), features(21, 8, 5).double()
    kernel = [[(x @ y / 8 + 1) ** 3 for y in torch.cat([first, second])] for x in torch.cat([first, second])]
    k = torch.tensor(kernel)
    within = [(part.sum() - part.trace()) / (len(part) * (len(part) - 1)) for part in (k[:33, :33], k[33:, 33:])]
    expected = (within[0] + within[1] - 2 * k[:33, 33:].mean()).item()
    assert kernel_distance(first, second) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(feature_distances, "ROWS_AT_ONCE", 7)
    assert kernel_distance(first, second) == pytest.approx(expected, rel=1e-10)
    third = features(33, 8, 6).double()
    assert kernel_distance(first, third) == pytest.approx(poly_mmd(first, third).item(), rel=1e-9)


def test_kernel_distance_is_zero_on_average_for_one_distribution() -> None:
    sample = torch.randn(4000, 8, generator=torch.Generator().manual_seed(7))
    values = [kernel_distance(*part.split(50)) for part in sample.split(100)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5
    assert kernel_distance(sample[:500], sample[500:1000] + 1) > 20 * np.std(values)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_sets_that_cannot_be_compared(distance: object) -> None:
    assert callable(distance)
    with pytest.raises(ValueError, match=r"sets of 1 and 9 images: .* needs two images in each"):
        distance(torch.ones(1, 4), torch.ones(9, 4))
    with pytest.raises(ValueError, match="features of 4 and 5 channels"):
        distance(torch.ones(9, 4), torch.ones(9, 5))


def test_features_are_vgg16s_last_relu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torchvision's own network, with the normalisation of ImageNet."""
    layers = vgg.make_layers(vgg.cfgs["D"]).eval()
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, generator=torch.Generator().manual_seed(0))
    save_file({f"features.{key}": value for key, value in layers.state_dict().items()}, tmp_path / "vgg.safetensors")
    monkeypatch.setattr(feature_distances, "IMAGES_AT_ONCE", 2)
    images = torch.rand(3, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = layers[:30]((images - mean) / deviation).mean(dim=(2, 3))
    found = vgg16_features(load_lpips("vgg", tmp_path / "vgg.safetensors"), images)
    assert found.shape == (3, 512)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.max().item())


def test_features_of_another_backbone_are_refused() -> None:
    if not (CACHE_FOLDER.expanduser() / "lpips_alex.safetensors").is_file():
        pytest.skip(f"true LPIPS weights are not in {CACHE_FOLDER}")
    with pytest.raises(ValueError, match=r"LPIPS \(alex\): pass load_lpips\('vgg'\)"):
        vgg16_features(load_lpips("alex"), torch.zeros(1, 3, 32, 32))


def test_the_true_network_tells_photographs_from_noise_more_than_from_a_slight_blur() -> None:
    path = CACHE_FOLDER.expanduser() / "lpips_vgg.safetensors"
    if not path.is_file():
        pytest.skip(f"true LPIPS weights are not at {path}")
    row, column = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    waves = torch.rand(8, 3, 2, 1, 1, generator=torch.Generator().manual_seed(0)) * 20
    pictures = 0.5 + 0.5 * torch.sin(waves[:, :, 0] * row + waves[:, :, 1] * column)
    blurred = nn.functional.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    noise = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    lpips = load_lpips("vgg", path)
    original, slightly, wholly = (vgg16_features(lpips, images) for images in (pictures, blurred, noise))
    assert kernel_distance(original, slightly) < 0.2 * kernel_distance(original, wholly)
    assert frechet_distance(original, slightly) < 0.5 * frechet_distance(original, wholly)
