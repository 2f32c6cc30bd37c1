"""The two losses: published numbers, who gets which gradient, when terms begin, and what a checkpoint keeps."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.parity.gaussiantoken_case import GaussianTokenCase
from scripts.parity.gaussiantoken_losses import compare
from token_methods.gaussiantoken.discriminator import PatchDiscriminator
from token_methods.gaussiantoken.losses import LecamAverages, LossWeights, adversarial_loss, discriminator_losses, generator_losses

WITH_GAN = LossWeights(generator_start_epoch=0)


def perceptual(prediction: Tensor, target: Tensor) -> Tensor:
    """In place of LPIPS: another distance of images in [0, 1]."""
    assert target.min() >= 0 and target.max() <= 1
    return (F.avg_pool2d(prediction, 4) - F.avg_pool2d(target, 4)).square().mean(dim=(1, 2, 3))


class Scene:
    """Images, the last layer that made their reconstruction, and a discriminator."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.images = torch.rand(2, 3, 32, 32) * 2 - 1
        self.last_layer = (0.2 * torch.randn(3, 4, 3, 3)).requires_grad_()
        self.reconstruction = F.conv2d(torch.randn(2, 4, 32, 32), self.last_layer, padding=1)
        self.discriminator = PatchDiscriminator(4)
        self.lecam = LecamAverages()

    def generator(self, weights: LossWeights = WITH_GAN, epoch: float = 0, **options: Any) -> dict[str, Tensor]:
        return generator_losses(
            self.reconstruction,
            self.images,
            torch.tensor([0.4]),
            discriminator=self.discriminator,
            perceptual=perceptual,
            weights=weights,
            epoch=epoch,
            **options,
        )

    def judge(self, weights: LossWeights = WITH_GAN, epoch: float = 0) -> dict[str, Tensor]:
        return discriminator_losses(
            self.images, self.reconstruction, discriminator=self.discriminator, lecam=self.lecam, weights=weights, epoch=epoch
        )

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.last_layer, retain_graph=True)[0]


@pytest.mark.parametrize("name", ["losses_published", "losses_adaptive", "losses_nonsat_disc"])
def test_published_numbers(name: str, reference: Path) -> None:
    case = GaussianTokenCase(reference / "parity" / "gaussiantoken" / "cases" / f"{name}.safetensors")
    comparisons = list(compare(case))
    assert not [comparison.name for comparison in comparisons if not comparison.passed]
    told = {comparison.name for comparison in comparisons}
    assert {key for key in case.tensors if not key.startswith("in.") and not key.endswith(".image")} <= told


def test_the_generator_minimises_the_weighted_sum() -> None:
    terms = Scene().generator()
    expected = terms["loss_l1"] + terms["loss_perceptual"] + 0.1 * terms["loss_adversarial"] + 0.25 * 0.4
    torch.testing.assert_close(terms["loss"], expected)
    assert terms["loss_adversarial"] > 0


def test_before_its_epoch_the_adversarial_term_has_no_gradient() -> None:
    scene = Scene()
    early = scene.generator(LossWeights(), epoch=4)
    assert early["adversarial_weight"] == 0
    torch.testing.assert_close(scene.gradient(early["loss"]), scene.gradient(early["loss_l1"] + early["loss_perceptual"]))
    late = scene.generator(LossWeights(), epoch=5)
    assert late["adversarial_weight"] == pytest.approx(0.1)
    assert not torch.allclose(scene.gradient(late["loss"]), scene.gradient(early["loss"]))


def test_the_discriminator_sees_every_step_and_learns_only_in_its_own() -> None:
    scene = Scene()
    for epoch in (0, 5):
        scene.generator(LossWeights(), epoch)["loss"].backward(retain_graph=True)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in scene.discriminator.parameters())
    assert scene.discriminator.state_dict()["main.3.num_batches_tracked"] == 2
    assert scene.last_layer.grad is not None
    before = scene.last_layer.grad.clone()
    scene.judge()["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in scene.discriminator.parameters())
    assert torch.equal(scene.last_layer.grad, before)


def test_without_an_adversarial_weight_the_discriminator_is_not_asked() -> None:
    scene = Scene()
    terms = scene.generator(LossWeights(adversarial=0.0), epoch=5)
    torch.testing.assert_close(terms["loss"], terms["loss_l1"] + terms["loss_perceptual"] + 0.25 * 0.4)
    assert terms["loss_adversarial"] == terms["adversarial_weight"] == 0
    assert scene.discriminator.state_dict()["main.3.num_batches_tracked"] == 0


def test_a_frozen_discriminator_stays_frozen() -> None:
    scene = Scene()
    scene.discriminator.requires_grad_(False)
    scene.generator()
    assert not any(parameter.requires_grad for parameter in scene.discriminator.parameters())


def test_the_balanced_weight_makes_both_gradients_equal() -> None:
    scene = Scene()
    balanced = replace(WITH_GAN, adversarial=None, adaptive_factor=0.5)
    terms = scene.generator(balanced, last_layer=scene.last_layer)
    image = scene.gradient(terms["loss_l1"] + terms["loss_perceptual"]).norm()
    adversarial = scene.gradient(terms["adversarial_weight"] * terms["loss_adversarial"]).norm()
    assert adversarial.item() == pytest.approx(0.5 * image.item(), rel=0.02)  # 1e-4 is added to a small norm
    with torch.no_grad():
        assert scene.generator(balanced, last_layer=scene.last_layer)["adversarial_weight"] == 0
    with pytest.raises(ValueError, match="pass its weight as last_layer"):
        scene.generator(balanced)


def test_the_discriminator_waits_for_its_epoch() -> None:
    scene = Scene()
    waiting = replace(WITH_GAN, discriminator_start_epoch=2)
    scene.judge(waiting, epoch=1)["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() == 0 for parameter in scene.discriminator.parameters())
    scene.judge(waiting, epoch=2)["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in scene.discriminator.parameters())


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non_saturate"])
def test_adversarial_losses_reward_telling_apart(kind: Any) -> None:
    logits = torch.full((2, 1, 3, 3), 2.0)
    right, undecided, wrong = (adversarial_loss(sign * logits, -sign * logits, kind).item() for sign in (1, 0, -1))
    assert right < undecided < wrong
    chance = {"hinge": 1.0, "vanilla": 0.6931472, "non_saturate": 2 * 0.6931472}
    assert undecided == pytest.approx(chance[kind])


def test_non_saturating_loss_averages_each_image_first() -> None:
    logits = torch.tensor([[-8.0, 8.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    expected = sum(F.softplus(torch.tensor([0.0, -1.0])) + F.softplus(torch.tensor([0.0, 1.0]))) / 2
    torch.testing.assert_close(adversarial_loss(logits, logits, "non_saturate"), expected)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="'wasserstein': choose hinge, vanilla or non_saturate"):
        Scene().judge(replace(WITH_GAN, discriminator_loss="wasserstein"))  # type: ignore[arg-type]


def test_lecam_pulls_logits_towards_the_averages() -> None:
    lecam = LecamAverages(decay=0.5)
    lecam.update(torch.tensor([1.0, 3.0]), torch.tensor([-2.0]))
    assert (lecam.real.item(), lecam.fake.item()) == (1.0, -1.0)
    # Photographs above the average reconstruction (-1) count by the square of 2 and 0, reconstructions below 1 by that of 3.
    assert lecam(torch.tensor([1.0, -4.0]), torch.tensor([-2.0])).item() == pytest.approx(4 / 2 + 9)


def test_lecam_survives_a_checkpoint() -> None:
    scene = Scene()
    for _ in range(3):
        scene.judge()
    file = io.BytesIO()
    torch.save(scene.lecam.state_dict(), file)
    file.seek(0)
    resumed = LecamAverages()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.real == scene.lecam.real != 0
    assert resumed.fake == scene.lecam.fake != 0


def test_losses_are_float32_under_autocast() -> None:
    scene = Scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = scene.generator() | scene.judge()
    assert {value.dtype for value in terms.values()} == {torch.float32}
