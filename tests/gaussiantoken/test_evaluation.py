"""Evaluation of image tokenizers: every figure against its definition, the published protocol against scikit-image, the report."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.data.scene_box import SceneBox
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as skimage_similarity
from torch import Tensor, nn

from token_methods.core.feature_distances import frechet_distance
from token_methods.core.perceptual import CACHE_FOLDER, Lpips, load_lpips
from token_methods.core.views import SceneBatch
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.evaluation import (
    BatchReport,
    Instruments,
    bits_per_image,
    code_statistics,
    evaluate_images,
    published_metrics,
    summarise,
)
from token_methods.gaussiantoken.model import GaussianTokenModel, GaussianTokenModelConfig
from token_methods.gaussiantoken.panels import code_histogram, comparison
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.evaluation import HIGHEST_PSNR
from token_methods.multiscene.image_batches import picture_batch
from token_methods.rendering.gaussians2d import Gaussians2D

PIXELS = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROTOCOL = {"crop": "centre"}


def batches(size: int, count: int = len(PIXELS)) -> Iterator[SceneBatch]:
    for start in range(0, count, size):
        chosen = range(start, min(start + size, count))
        yield picture_batch(tuple(f"{number}.png" for number in chosen), PIXELS[start : start + len(chosen)], "cpu")


@pytest.fixture(scope="module")
def model() -> GaussianTokenModel:
    """Untrained, but with codes that differ."""
    torch.manual_seed(0)
    config = GaussianTokenModelConfig(architecture=PRESETS["tiny"].architecture, average_decay=None)
    model: GaussianTokenModel = config.setup(scene_box=SceneBox(torch.ones(2, 3)), num_train_data=1, metadata={}, device="cpu")
    model.network.quantize._codebook.embed.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def reconstructed(model: GaussianTokenModel) -> tuple[Tensor, Tensor]:
    """What the model makes of the pictures, and its codes."""
    with torch.no_grad():
        tokens, _ = model.network.eval().tokenize(PIXELS.float() / 255 * 2 - 1)
        return ((model.network.decode(tokens) + 1) / 2).clamp(0, 1), tokens.indices


def test_figures_are_those_of_the_reconstructions(model: GaussianTokenModel, reconstructed: tuple[Tensor, Tensor]) -> None:
    summary = evaluate_images(model, batches(4), 10, Instruments(), PROTOCOL, with_std=True)
    images, (ours, indices) = PIXELS.float() / 255, reconstructed
    errors = (images - ours).square().mean(dim=(1, 2, 3))
    values = -10 * errors.log10()
    assert summary["psnr"] == pytest.approx(values.mean().item(), abs=1e-4)
    assert summary["psnr_std"] == pytest.approx(values.std(correction=0).item(), abs=1e-4)
    variances = images.var(dim=(2, 3), correction=0).mean(dim=1)
    assert summary["mean_colour_psnr"] == pytest.approx((-10 * variances.log10()).mean().item(), abs=1e-4)
    assert summary["code_usage"] == len(indices.unique()) / 64 > 1 / 64
    assert summary["num_images"] == 10
    assert summary["images_per_second"] > 0
    assert not [name for name in summary if "lpips" in name or "vgg" in name or "fid" in name], "nothing that was not measured"
    assert all(type(value) is float and math.isfinite(value) for value in summary.values())


def test_published_figures_are_scikit_images_on_truncated_pictures(model: GaussianTokenModel, reconstructed: tuple[Tensor, Tensor]) -> None:
    """One PSNR per batch and its unweighted mean, so that the last batch of two pictures counts like the others."""
    summary = evaluate_images(model, batches(4), 10, Instruments(), PROTOCOL)
    signed = (PIXELS.float() / 255 - 0.5) / 0.5
    original, ours = ((part * 255).numpy().astype(np.uint8) / 255 for part in (((signed + 1) / 2).clamp(0, 1), reconstructed[0]))
    starts = range(0, 10, 4)
    psnr = [peak_signal_noise_ratio(original[start : start + 4], ours[start : start + 4], data_range=1) for start in starts]
    ssim = [skimage_similarity(a, b, channel_axis=0, data_range=1) for a, b in zip(original, ours)]
    assert summary["published_psnr"] == pytest.approx(np.mean(psnr), abs=1e-5)
    assert summary["published_ssim"] == pytest.approx(np.mean([np.mean(ssim[start : start + 4]) for start in starts]), abs=1e-6)
    whole = evaluate_images(model, batches(10), 10, Instruments(), PROTOCOL)
    assert whole["published_psnr"] != summary["published_psnr"]
    assert whole["psnr"] == pytest.approx(summary["psnr"], abs=1e-4), "ours does not depend on the batch size"


def test_pictures_that_are_met_exactly_have_finite_figures() -> None:
    white = torch.ones(2, 3, 16, 16)
    assert published_metrics(white, white) == {"published_psnr": HIGHEST_PSNR, "published_ssim": 1.0}


def test_a_network_that_gives_no_numbers_is_measured_as_black(model: GaussianTokenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda tokens: dataclasses.replace(decode(tokens), images=decode(tokens).images * float("nan")))
    summary = evaluate_images(model, batches(10), 10, Instruments(), PROTOCOL)
    black = -10 * (PIXELS.float() / 255).square().mean(dim=(1, 2, 3)).log10()
    assert summary["psnr"] == pytest.approx(black.mean().item(), abs=1e-4)
    assert all(map(math.isfinite, summary.values()))


def test_the_report_names_every_picture_and_the_protocol(model: GaussianTokenModel, tmp_path: Path) -> None:
    summary = evaluate_images(model, batches(4), 10, Instruments(), PROTOCOL, output_path=tmp_path / "out")
    report = json.loads((tmp_path / "out/per_image.json").read_text(), parse_constant=pytest.fail)
    assert report["crop"] == "centre"
    assert report["mean"] == summary
    assert [image["name"] for image in report["images"]] == [f"{number}.png" for number in range(10)]
    for metric in ("psnr", "ssim"):
        assert np.mean([image[metric] for image in report["images"]]) == pytest.approx(summary[metric])
    picture = np.asarray(Image.open(tmp_path / "out/comparison.png"))
    assert picture.shape == (3 * 128, 10 * 128, 3), "three rows; small pictures enlarged"
    assert np.array_equal(picture[:128:4, 9 * 128 :: 4], PIXELS[9].permute(1, 2, 0).numpy())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["comparison.png", "per_image.json"]


def test_one_picture_is_measured_without_distances_of_sets(model: GaussianTokenModel) -> None:
    class Colours(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    instruments = Instruments(inception=Colours())  # type: ignore[arg-type]
    one = evaluate_images(model, batches(4, count=1), 1, instruments, PROTOCOL, with_std=True)
    assert "rfid" not in one and one["psnr_std"] == 0 and one["num_images"] == 1
    assert evaluate_images(model, batches(4), 10, instruments, PROTOCOL)["rfid"] > 0


def test_pictures_that_cannot_be_used_or_are_not_there_stop_it(model: GaussianTokenModel, tmp_path: Path) -> None:
    def broken() -> Iterator[SceneBatch]:
        yield next(batches(4))
        raise SceneError("val/3.png is not an image")

    with pytest.raises(SceneError, match=r"val/3\.png is not an image"):
        evaluate_images(model, broken(), 8, Instruments(), PROTOCOL, output_path=tmp_path)
    with pytest.raises(SceneError, match="there are no pictures to evaluate"):
        evaluate_images(model, [], 0, Instruments(), PROTOCOL, output_path=tmp_path)
    assert not list(tmp_path.iterdir())


def report(count: int, features: dict[str, tuple[Tensor, Tensor]] | None = None, codes: int = 1024) -> BatchReport:
    counts = torch.zeros(codes, dtype=torch.int64)
    counts[:count] = 1
    return BatchReport(("a",) * count, {"psnr": [20.0] * count}, {}, counts, features or {}, 0.5)


def test_distances_of_sets_are_over_all_batches_and_small_sets_have_no_frechet_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.rand(count, 512, generator=generator), torch.rand(count, 512, generator=generator)) for count in (300, 213)]
    architecture = PRESETS["tiny"].architecture
    summary = summarise([report(len(pair[0]), {"vgg16": pair}) for pair in pairs], architecture)
    expected = frechet_distance(*(torch.cat(part) for part in zip(*pairs)))
    assert summary["vgg16_fd"] == pytest.approx(expected, rel=1e-9)
    assert abs(summary["vgg16_kd"]) < 0.01
    few = summarise([report(300, {"vgg16": pairs[0]}), report(212, {"vgg16": (pairs[1][0][1:], pairs[1][1][1:])})], architecture)
    assert "vgg16_fd" not in few and "vgg16_kd" in few
    assert few["images_per_second"] == 512


def test_code_statistics() -> None:
    even = code_statistics(torch.tensor([5, 5, 5, 5, 0, 0, 0, 0]))
    assert even == pytest.approx({"code_usage": 0.5, "code_perplexity": 4.0})
    assert code_statistics(torch.tensor([0, 9, 0])) == pytest.approx({"code_usage": 1 / 3, "code_perplexity": 1.0})
    uneven = code_statistics(torch.tensor([3, 1]))
    assert uneven["code_perplexity"] == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_bits_of_published_tokens() -> None:
    """ImageNet: 256 tokens of 10 bits, with 5 float32 beside each, or 34 bits."""
    found = bits_per_image(PRESETS["imagenet"].architecture)
    assert found == {
        "bits_per_image": 2560,
        "bits_per_image_float_geometry": 256 * 170,
        "bits_per_image_quantized_geometry": 256 * 44,
    }
    assert bits_per_image(PRESETS["vqgan"].architecture) == {"bits_per_image": 2560}
    odd = dataclasses.replace(PRESETS["vqgan-cifar"].architecture, codebook_size=1025)
    assert bits_per_image(odd) == {"bits_per_image": 64 * 11}


@pytest.fixture(scope="module")
def vgg() -> Lpips:
    path = CACHE_FOLDER.expanduser() / "lpips_vgg.safetensors"
    if not path.is_file():
        pytest.skip(f"true LPIPS weights are not at {path}")
    return load_lpips("vgg", path)


class Difference(nn.Module):
    """In the place of LPIPS."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return (one - other).abs().mean((1, 2, 3))


def test_perceptual_measures(model: GaussianTokenModel, reconstructed: tuple[Tensor, Tensor], vgg: Lpips) -> None:
    alex: Any = Difference()
    summary = evaluate_images(model, batches(1, count=2), 2, Instruments(lpips=vgg, lpips_alex=alex), PROTOCOL, with_std=True)
    images, ours = PIXELS[:2].float() / 255, reconstructed[0][:2]
    with torch.no_grad():
        assert summary["lpips"] == pytest.approx(vgg(ours, images).mean().item(), rel=1e-4)
    assert summary["lpips_alex"] == pytest.approx((ours - images).abs().mean().item(), rel=1e-4)
    assert summary["lpips_std"] > 0
    assert summary["vgg16_kd"] > 0 and "vgg16_fd" not in summary


# Panels.


def test_panels_show_pictures_reconstructions_and_errors() -> None:
    images = torch.tensor([0.25, 0.75])[:, None, None, None].expand(2, 3, 128, 160)
    ours = images + torch.tensor([0.0, 0.5])[:, None, None, None]
    panel = comparison(images, ours)
    assert panel.shape == (3 * 128, 2 * 160, 3)
    assert panel[64, 80].tolist() == panel[192, 80].tolist() == [0.25] * 3
    assert panel[64, 240].tolist() == [0.75] * 3 and panel[192, 240].tolist() == [1.0] * 3, "clipped as it would be shown"
    assert panel[320, 80].sum() < 0.1 < panel[320, 240].sum(), "black where nothing is wrong"


def test_gaussians_are_drawn_where_they_lie() -> None:
    """The mean (0, 0) on a map of 16 cells, whose span ends one cell beyond the last one's middle, is the middle of cell 8."""
    images = torch.full((1, 3, 32, 32), 0.8)
    gaussians = Gaussians2D(torch.zeros(1, 1, 2), torch.tensor([[[3.0, 1.0]]]), torch.zeros(1, 1, 1), torch.zeros(1, 1, 3))
    panel = comparison(images, images, gaussians, (16, 16))
    assert panel.shape == (4 * 128, 128, 3)
    drawn = (panel[384:] - 0.3 * 0.8).abs().amax(dim=-1) > 0.01
    rows, columns = drawn.nonzero().float().unbind(dim=1)
    assert rows.mean() + 0.5 == pytest.approx(8.5 * 8, abs=0.6) and columns.mean() + 0.5 == pytest.approx(8.5 * 8, abs=0.6)
    assert columns.max() - columns.min() == pytest.approx(2 * 3 * 8, abs=4) and rows.max() - rows.min() == pytest.approx(2 * 8, abs=4)
    assert panel[384:].max() == pytest.approx(0.8, abs=1e-5), "in the colour of what it covers"


def test_the_histogram_shows_which_part_of_the_codes_is_used() -> None:
    indices = torch.arange(32).repeat(2, 4)
    picture = code_histogram(indices, 64)
    bars = (picture[-1] == picture[-1, 0]).all(dim=-1).float().mean()
    assert bars == pytest.approx(0.5, abs=0.01)
    assert (picture[0, 0] == picture[-1, 0]).all(), "the most frequent code reaches the top"
    uneven = code_histogram(torch.tensor([[0] * 99 + [1]]), 2)
    lit = (uneven == uneven[-1, 0]).all(dim=-1).sum(dim=0)
    assert lit[0] == len(uneven) > 4 * lit[-1] > 0
