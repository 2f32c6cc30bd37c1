"""Encoder and decoder against the published ones, against their formulas, and in the ways that make them fast or small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scripts.parity.gaussiantoken_case import GaussianTokenCase, formula_weights
from token_methods.gaussiantoken.autoencoder import AdaptiveGroupNorm, ImageDecoder, ImageEncoder, depth_to_space

PRESETS = {
    "cifar_gqgan": ((1, 2), 64, 3, 10_532_672, 13_182_851),
    "imagenet_gqgan": ((1, 2, 2, 4), 64, 8, 48_445_760, 63_522_691),
    "mini_vqgan": ((1, 1, 2, 2, 4), 8, 8, 49_746_312, 65_297_027),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoder(**options: Any) -> ImageEncoder:
    torch.manual_seed(1)
    return ImageEncoder(32, (1, 2, 1), 1, 5, **options)


def decoder(**options: Any) -> ImageDecoder:
    torch.manual_seed(2)
    return ImageDecoder(32, (1, 2, 1), 1, 5, **options)


def number_of_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_published_size(preset: str) -> None:
    multipliers, encoded, decoded, encoder_size, decoder_size = PRESETS[preset]
    with torch.device("meta"):
        assert number_of_parameters(ImageEncoder(128, multipliers, 4, encoded)) == encoder_size
        assert number_of_parameters(ImageDecoder(128, multipliers, 4, decoded)) == decoder_size


@pytest.mark.parametrize("preset", PRESETS)
def test_keys_are_the_published_checkpoints(preset: str, reference: Path) -> None:
    manifest = json.loads((reference / "parity" / "gaussiantoken" / "state_dict_manifest.json").read_text())["presets"][preset]
    multipliers, encoded, decoded, *_ = PRESETS[preset]
    with torch.device("meta"):
        parts = {
            "img_encoder.": ImageEncoder(128, multipliers, 4, encoded),
            "img_decoder.": ImageDecoder(128, multipliers, 4, decoded),
        }
    for prefix, part in parts.items():
        published = {key.removeprefix(prefix): told[0] for key, told in manifest.items() if key.startswith(prefix)}
        assert {key: list(value.shape) for key, value in part.state_dict().items()} == published


@pytest.mark.parametrize("name", ["autoencoder_tiny_c3", "autoencoder_tiny_c8", "autoencoder_tiny_vqgan"])
def test_published_numbers(name: str, reference: Path) -> None:
    case = GaussianTokenCase(reference / "parity" / "gaussiantoken" / "cases" / f"{name}.safetensors")
    config, seed = case.setting("config"), case.setting("formula_seed")
    for kind, prefix, source, result in (
        (ImageEncoder, "img_encoder", "in.image", "out.fm_raw"),
        (ImageDecoder, "img_decoder", "out.fm_quant", "out.reconstruction"),
    ):
        told = config[f"{prefix}_cfg"]
        network = kind(told["ch"], told["ch_mult"], told["num_res_blocks"], told["z_channels"])
        network.load_state_dict(formula_weights(network.state_dict(), seed, f"{prefix}."))
        with torch.no_grad():
            made = network(case[source])
        assert made.shape == case[result].shape
        assert (made - case[result]).abs().max() < 1e-5 * case[result].abs().max()


def test_depth_to_space_keeps_the_place_in_the_block_outermost() -> None:
    x = random(2, 12, 3, 5)
    y = depth_to_space(x)
    assert y.shape == (2, 3, 6, 10)
    for s in range(2):
        for t in range(2):
            assert torch.equal(y[:, :, s::2, t::2], x[:, (2 * s + t) * 3 : (2 * s + t + 1) * 3])
    assert not torch.equal(y, nn.functional.pixel_shuffle(x, 2))


def test_adaptive_norm_is_scaled_and_shifted_by_the_statistics_of_the_style() -> None:
    norm = AdaptiveGroupNorm(3, 64).double()
    x, style = random(2, 64, 5, 4).double(), random(2, 3, 3, 2, seed=1).double()
    y = norm(x, style)
    groups = x.view(2, 32, -1)
    normalised = ((groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()).view_as(x)
    for image in range(2):
        cells = style[image].flatten(1)
        deviation = ((cells - cells.mean(1, keepdim=True)).square().sum(1) / (cells.shape[1] - 1) + 1e-6).sqrt()
        scale, shift = norm.gamma(deviation), norm.beta(cells.mean(1))
        torch.testing.assert_close(y[image], scale[:, None, None] * normalised[image] + shift[:, None, None])


def test_one_cell_changes_the_whole_image() -> None:
    network, features = decoder(), random(1, 5, 16, 16)
    changed = features.clone()
    changed[0, :, 0, 0] += 1
    with torch.no_grad():
        difference = (network(changed) - network(features)).abs()
    assert difference[0, :, -1, -1].max() > 0


def test_gradients_are_those_of_finite_differences() -> None:
    both = nn.Sequential(ImageEncoder(32, (1, 1), 1, 3), ImageDecoder(32, (1, 1), 1, 3)).double()
    image = random(1, 3, 8, 8).double().requires_grad_()
    cotangent, direction = random(1, 3, 8, 8, seed=1).double(), random(1, 3, 8, 8, seed=2).double()
    (gradient,) = torch.autograd.grad((both(image) * cotangent).sum(), image)
    step = 1e-5
    with torch.no_grad():
        change = ((both(image + step * direction) - both(image - step * direction)) * cotangent).sum() / (2 * step)
    assert change.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def saved_bytes_and_gradients(network: nn.Module, x: Tensor) -> tuple[int, list[Tensor]]:
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.ndim == 4 and tensor.shape[-1] > 3:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(x).square().sum()
    return sum(saved.values()), list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize(("make", "x"), [(encoder, random(1, 3, 32, 32)), (decoder, random(1, 5, 8, 8))], ids=["encoder", "decoder"])
def test_recomputing_levels_gives_the_same_gradients_in_less_memory(make: Any, x: Tensor) -> None:
    plain, expected = saved_bytes_and_gradients(make(), x)
    recomputed, gradients = saved_bytes_and_gradients(make(checkpoint_levels=2), x)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)
    assert recomputed < 0.6 * plain


@pytest.mark.parametrize(("make", "x"), [(encoder, random(2, 3, 16, 16)), (decoder, random(2, 5, 4, 4))], ids=["encoder", "decoder"])
def test_channels_last_is_kept_throughout(make: Any, x: Tensor) -> None:
    with torch.no_grad():
        expected = make()(x)
        network = make().to(memory_format=torch.channels_last)
        left = []

        def look(module: nn.Module, inputs: object, output: Tensor) -> None:
            if output.ndim == 4 and not output.is_contiguous(memory_format=torch.channels_last):
                left.append(module)

        for module in network.modules():
            module.register_forward_hook(look)
        made = network(x)
    assert not left
    assert (made - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("make", "x"), [(encoder, random(1, 3, 16, 16)), (decoder, random(1, 5, 4, 4))], ids=["encoder", "decoder"])
def test_bfloat16_autocast(make: Any, x: Tensor) -> None:
    network = make()
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = network(x)
    assert made.dtype == torch.bfloat16
    assert (made - expected).abs().max() < 0.05 * expected.abs().max()


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"48 channels .* multiple of 32"):
        ImageEncoder(48, (1,), 1, 3)
    with pytest.raises(ValueError, match=r"48 channels .* multiple of 32"):
        ImageDecoder(48, (1,), 1, 3)
    with pytest.raises(ValueError, match=r"18 x 16 pixels .* multiples of 4"):
        encoder()(random(1, 3, 16, 18))
