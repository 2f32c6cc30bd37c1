"""The patch discriminator: the published numbers, and what a patch is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.parity.gaussiantoken_case import GaussianTokenCase
from scripts.parity.gaussiantoken_discriminator import compare
from token_methods.gaussiantoken.discriminator import PatchDiscriminator


@pytest.mark.parametrize("name", ["discriminator_ndf8_l3_32", "discriminator_ndf4_l2_40"])
def test_published_numbers(name: str, reference: Path) -> None:
    case = GaussianTokenCase(reference / "parity" / "gaussiantoken" / "cases" / f"{name}.safetensors")
    comparisons = list(compare(case))
    assert len(comparisons) == sum(key.startswith(("out.", "grad.", "after.")) for key in case.tensors)
    assert not [comparison.name for comparison in comparisons if not comparison.passed]


def test_published_size() -> None:
    with torch.device("meta"):
        discriminator = PatchDiscriminator()
        assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_765_633
        assert discriminator(torch.empty(1, 3, 256, 256)).shape == (1, 1, 30, 30)
        assert discriminator(torch.empty(2, 3, 32, 32)).shape == (2, 1, 2, 2)


def test_a_logit_sees_seventy_pixels() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    PatchDiscriminator(8).eval()(images)[0, 0, 7, 7].backward()
    assert images.grad is not None
    seen = images.grad.abs().sum(dim=(0, 1))
    assert (seen.sum(0) > 0).sum() == 70
    assert (seen.sum(1) > 0).sum() == 70


def test_only_training_passes_move_the_running_statistics() -> None:
    discriminator, images = PatchDiscriminator(4), torch.randn(2, 3, 32, 32)
    before = {name: value.clone() for name, value in discriminator.named_buffers()}
    discriminator.eval()(images)
    assert all(torch.equal(value, before[name]) for name, value in discriminator.named_buffers())
    discriminator.train()(images)
    assert not any(torch.equal(value, before[name]) for name, value in discriminator.named_buffers())


def test_starts_with_small_weights() -> None:
    torch.manual_seed(0)
    state = PatchDiscriminator(16).state_dict()
    assert state["main.5.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert state["main.9.weight"].mean().item() == pytest.approx(1.0, abs=0.01)
    assert state["main.9.bias"].abs().max() == 0


def test_images_without_a_patch_are_refused() -> None:
    discriminator = PatchDiscriminator(4)
    assert discriminator(torch.zeros(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="40 x 23 pixels: both sides need 24"):
        discriminator(torch.zeros(1, 3, 23, 40))
