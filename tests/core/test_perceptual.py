"""LPIPS: the weights are found in either file form, and the distance is that of a direct evaluation."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from token_methods.core import perceptual
from token_methods.core.perceptual import CACHE_FOLDER, LpipsUnavailable, load_lpips
from token_methods.core.weights import WeightsError

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
ALEX_HEADS = (64, 192, 384, 256, 256)
TRUE_ALEX = CACHE_FOLDER.expanduser() / "lpips_alex.safetensors"
TRUE_VGG = CACHE_FOLDER.expanduser() / "lpips_vgg.safetensors"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """An AlexNet of random numbers, in the project's file form."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for index, (out, inside, size) in ALEX.items():
        state[f"features.{index}.weight"] = torch.randn(out, inside, size, size, generator=generator) / (inside * size * size) ** 0.5
        state[f"features.{index}.bias"] = 0.1 * torch.randn(out, generator=generator)
    for index, channels in enumerate(ALEX_HEADS):
        state[f"lin{index}.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    return state


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, 3, 64, 64, generator=generator)
    return x, (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def direct_alex(state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The published formula, written out."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188])[:, None, None], torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    total = torch.zeros(len(x))
    a, b = ((2 * images - 1 - shift) / scale for images in (x, y))
    for layer, (index, stride, padding) in enumerate(zip(ALEX, (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), strict=True)):
        if layer in (1, 2):
            a, b = F.max_pool2d(a, 3, 2), F.max_pool2d(b, 3, 2)
        kernel, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
        a, b = (F.conv2d(features, kernel, bias, stride, padding).relu() for features in (a, b))
        unit_a, unit_b = (features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10) for features in (a, b))
        total += F.conv2d((unit_a - unit_b) ** 2, state[f"lin{layer}.weight"]).mean((1, 2, 3))
    return total


def test_distance_is_that_of_the_publication(tmp_path: Path, weights: dict[str, Tensor], images: tuple[Tensor, Tensor]) -> None:
    save_file(weights, tmp_path / "lpips_alex.safetensors")
    lpips = load_lpips("alex", tmp_path / "lpips_alex.safetensors")
    torch.testing.assert_close(lpips(*images), direct_alex(weights, *images), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        many = [x.repeat(4, 1, 1, 1) for x in images]
        torch.testing.assert_close(lpips(*many), direct_alex(weights, *many), rtol=1e-4, atol=1e-6)


def test_it_is_frozen_but_leads_the_prediction(tmp_path: Path, weights: dict[str, Tensor], images: tuple[Tensor, Tensor]) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    lpips = load_lpips("alex", tmp_path / "w.safetensors").train()
    prediction = images[0].clone().requires_grad_()
    lpips(prediction, images[1]).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    assert not any(module.training for module in lpips.network.modules())


def test_torchvisions_cache_is_found_and_brings_the_heads_of_torchmetrics(
    tmp_path: Path, weights: dict[str, Tensor], images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perceptual, "CACHE_FOLDER", tmp_path / "nothing")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    backbone = {key: value for key, value in weights.items() if key.startswith("features.")}
    torch.save(backbone | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "checkpoints" / perceptual.BACKBONE_FILES["alex"])
    lpips = load_lpips("alex")
    heads = {f"lin{index}.weight": getattr(lpips.network, f"lin{index}").model[1].weight for index in range(5)}
    torch.testing.assert_close(lpips(*images), direct_alex(weights | heads, *images), rtol=1e-4, atol=1e-6)


def test_without_weights_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(perceptual, "CACHE_FOLDER", tmp_path / "ours")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(LpipsUnavailable, match=r"ours/lpips_alex\.safetensors.*alexnet.*no network"):
        load_lpips("alex")


def test_wrong_files_are_refused_by_name(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file({key: value for key, value in weights.items() if key != "lin3.weight"}, tmp_path / "half.safetensors")
    with pytest.raises(WeightsError, match=r"half\.safetensors does not fit.*missing: lin3\.weight"):
        load_lpips("alex", tmp_path / "half.safetensors")
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        load_lpips("alex", tmp_path / "absent.safetensors")
    (tmp_path / "alexnet.pth").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(WeightsError, match=r"alexnet\.pth cannot be read"):
        load_lpips("alex", tmp_path / "alexnet.pth")


@pytest.mark.parametrize(
    ("net", "path", "figures"),
    [("alex", TRUE_ALEX, (0.07782, 0.22178, 0.000711)), ("vgg", TRUE_VGG, (0.17375, 0.70555, 0.001437))],
)
def test_figures_of_the_true_network(net: Literal["alex", "vgg"], path: Path, figures: tuple[float, ...]) -> None:
    """On a picture that anyone can draw: blurred, inverted, darkened. The figures are another implementation's."""
    if not path.is_file():
        pytest.skip(f"true LPIPS weights are not at {path}")
    row, column = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    picture = torch.stack([0.5 + 0.5 * torch.sin(20 * row), 0.5 + 0.5 * torch.cos(30 * column), row * column])[None]
    blurred = F.avg_pool2d(picture, 9, 1, 4, count_include_pad=False)
    changed = torch.cat([blurred, 1 - picture, 0.9 * picture])
    assert load_lpips(net)(changed, picture.expand(3, -1, -1, -1)).tolist() == pytest.approx(figures, abs=2e-5)
