"""The losses of several training steps and a validation pass, with everything that is logged on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS

from scripts.parity.comparison import Comparison, NotACase, compare_number, not_compared
from scripts.parity.gaussiantoken_case import GaussianTokenCase, formula_weights
from scripts.parity.gaussiantoken_discriminator import compare_statistics
from token_methods.core.perceptual import Lpips
from token_methods.gaussiantoken.discriminator import PatchDiscriminator
from token_methods.gaussiantoken.losses import LecamAverages, LossWeights, discriminator_losses, generator_losses

GENERATOR_LOGS = {
    "perceptual_loss": "loss_perceptual",
    "reconstruct_loss": "loss_l1",
    "commit_loss": "loss_commitment",
    "d_weight": "adversarial_weight",
}
DISCRIMINATOR_LOGS = {
    "disc_loss": "loss",
    "lecam_loss": "loss_lecam",
    "non_saturated_d_loss": "loss_discriminator",
    "logits_real": "real_logits",
    "logits_fake": "fake_logits",
}


class LossesUnderTest:
    """Discriminator, LPIPS network and LeCAM averages as a case starts with them."""

    def __init__(self, case: GaussianTokenCase) -> None:
        config, seed = case.setting("config"), case.setting("formula_seed")
        if config.get("disc_conditional"):
            raise NotACase(f"{case.path}: disc_conditional is not supported, no preset uses it")
        self.prefix = str(case.setting("key_prefix"))
        self.weights = LossWeights(
            commitment=config["commit_weight"],
            adversarial=config["gen_loss_weight"],
            adaptive_factor=config["disc_weight"],
            generator_start_epoch=config["gan_start_epoch"],
            discriminator_start_epoch=config["disc_start_epoch"],
            discriminator_loss=config.get("disc_loss", "hinge"),
            lecam=config["lecam_loss_weight"],
        )
        self.discriminator = PatchDiscriminator(config.get("disc_ndf", 64), config.get("disc_num_layers", 3), config["disc_in_channels"])
        self.discriminator_prefix = f"{self.prefix}discriminator."
        made = formula_weights(self.discriminator.state_dict(), seed, self.discriminator_prefix)
        self.discriminator.load_state_dict(made)
        network = _LPIPS(pretrained=False, net="vgg", pnet_rand=True)
        # torchmetrics lists the linear heads a second time, as `lins`.
        published = {name: value for name, value in network.state_dict().items() if not name.startswith("lins.")}
        made_perceptual = formula_weights(published, seed, f"{self.prefix}perceptual_loss.")
        network.load_state_dict(made_perceptual, strict=False)
        self.perceptual = Lpips(network)
        self.formula = list(made.values()) + [value for name, value in made_perceptual.items() if not name.startswith("scaling_layer.")]
        self.lecam = LecamAverages()


def compare(case: GaussianTokenCase) -> Iterator[Comparison]:
    """Each step's losses, gradients and logged numbers, then one validation pass and the batch statistics."""
    under_test = LossesUnderTest(case)
    yield from compare_checksum(case, under_test.formula)
    logs: dict[str, Any] = case.setting("logs")
    steps = sorted(int(step) for step in logs if step.isdigit())
    under_test.discriminator.train()
    for step in steps:
        yield from compare_step(case, under_test, step, logs[str(step)])
    yield from compare_statistics(case, under_test.discriminator, under_test.discriminator_prefix)
    if "val" in logs:
        yield from compare_validation(case, under_test, logs["val"])


def compare_step(case: GaussianTokenCase, under_test: LossesUnderTest, step: int, log: Mapping[str, float]) -> Iterator[Comparison]:
    """Generator pass, then discriminator pass."""
    prefix = f"step{step}."
    image, last_layer = case[f"{prefix}image"], case["in.last_layer"].clone().requires_grad_()
    reconstruction = F.conv2d(case["in.feat"] * (1 + 0.1 * step), last_layer, padding=1)
    yield case.compare("xrec", reconstruction, prefix=prefix)
    if f"out.lpips_step{step}" in case.tensors:
        distance = under_test.perceptual((reconstruction.detach() + 1) / 2, (image + 1) / 2)
        yield case.compare(f"out.lpips_step{step}", distance[:, None, None, None])

    epoch, commitment = log["epoch"], torch.tensor([log["commit"]])
    generator = generator_losses(
        reconstruction,
        image,
        commitment,
        discriminator=under_test.discriminator,
        perceptual=under_test.perceptual,
        weights=under_test.weights,
        epoch=epoch,
        last_layer=last_layer,
    )
    yield case.compare("gen_loss", generator["loss"][None], prefix=prefix)
    gradients = torch.autograd.grad(generator["loss"], (reconstruction, last_layer))
    for name, gradient in zip(("grad_xrec", "grad_last_layer"), gradients, strict=True):
        yield case.compare(name, gradient, "grad", prefix)

    under_test.discriminator.zero_grad()
    discriminator = discriminator_losses(
        image,
        reconstruction,
        discriminator=under_test.discriminator,
        lecam=under_test.lecam,
        weights=under_test.weights,
        epoch=epoch,
    )
    discriminator["loss"].backward()
    yield case.compare("disc_loss", discriminator["loss"], prefix=prefix)
    start = f"{prefix}grad.{under_test.discriminator_prefix}"
    for name in (name for name in case.tensors if name.startswith(start)):
        weight_gradient = under_test.discriminator.get_parameter(name.removeprefix(start)).grad
        assert weight_gradient is not None
        yield case.compare(name, weight_gradient, "grad")

    numbers = {f"train/{logged}": generator[name] for logged, name in GENERATOR_LOGS.items()}
    numbers |= {f"train/{logged}": discriminator[name] for logged, name in DISCRIMINATOR_LOGS.items()}
    numbers["train/g_loss"] = generator["adversarial_weight"] * generator["loss_adversarial"]
    numbers["train/nll_loss"] = generator["loss_l1"] + generator["loss_perceptual"]
    numbers["train/total_loss"] = generator["loss"]
    yield from compare_logs(case, under_test, f"logs.{step}.", numbers, log, {"epoch", "commit"})


def compare_validation(case: GaussianTokenCase, under_test: LossesUnderTest, log: Mapping[str, float]) -> Iterator[Comparison]:
    """A pass in evaluation mode over the first step's images, with the adversarial term on; it has no commitment loss."""
    reconstruction = F.conv2d(case["in.feat"], case["in.last_layer"], padding=1)
    image = case["step0.image"]
    under_test.discriminator.eval()
    epoch = max(under_test.weights.generator_start_epoch, under_test.weights.discriminator_start_epoch)
    with torch.no_grad():
        generator = generator_losses(
            reconstruction,
            image,
            torch.zeros(1),
            discriminator=under_test.discriminator,
            perceptual=under_test.perceptual,
            weights=under_test.weights,
            epoch=epoch,
            last_layer=case["in.last_layer"],
        )
        discriminator = discriminator_losses(
            image,
            reconstruction,
            discriminator=under_test.discriminator,
            lecam=under_test.lecam,
            weights=under_test.weights,
            epoch=epoch,
        )
    numbers = {f"val/{logged}": generator[name] for logged, name in GENERATOR_LOGS.items()}
    numbers |= {f"val/{logged}": discriminator[name] for logged, name in DISCRIMINATOR_LOGS.items()}
    numbers |= {"val/g_loss": generator["loss_adversarial"], "val/nll_loss": generator["loss_l1"] + generator["loss_perceptual"]}
    numbers |= {"gen_loss": generator["loss"], "val/total_loss": generator["loss"], "disc_loss_raw": discriminator["loss"]}
    skipped = set()
    if under_test.weights.adversarial is None:
        skipped.add("gen_loss")
        yield not_compared("logs.val.gen_loss", "a balanced weight needs gradients, which a validation pass has none of")
    yield from compare_logs(case, under_test, "logs.val.", numbers, log, skipped)


def compare_logs(
    case: GaussianTokenCase,
    under_test: LossesUnderTest,
    label: str,
    numbers: Mapping[str, Tensor],
    log: Mapping[str, float],
    skipped: set[str],
) -> Iterator[Comparison]:
    """Every number of a log, to the relative tolerance of outputs."""
    tolerance = case.setting("tolerance")["out"]
    numbers = {**numbers, "lecam_real": under_test.lecam.real, "lecam_fake": under_test.lecam.fake}
    for name, expected in log.items():
        if name in skipped:
            continue
        if name.endswith("/disc_factor"):
            yield compare_number(f"{label}{name}", 1.0, expected, 0.0)
        elif name not in numbers:
            yield not_compared(f"{label}{name}", "not a number of this project's")
        else:
            # LeCAM's averages are far smaller than the absolute tolerance.
            absolute = 0.0 if name.startswith("lecam_") else tolerance["atol"]
            yield compare_number(f"{label}{name}", numbers[name], expected, absolute + tolerance["rtol"] * abs(expected))


def compare_checksum(case: GaussianTokenCase, weights: list[Tensor]) -> Iterator[Comparison]:
    """That the formula made the weights which the case was made with."""
    expected = case.setting("weight_checksum")
    yield compare_number("weights.tensors", len(weights), expected["tensors"], 0.0)
    yield compare_number("weights.elements", sum(value.numel() for value in weights), expected["elements"], 0.0)
    size = sum(value.double().abs().sum().item() for value in weights)
    yield compare_number("weights.abs_sum", size, expected["abs_sum"], 1e-9 * expected["abs_sum"])
    yield compare_number("weights.sum", sum(value.double().sum().item() for value in weights), expected["sum"], 1e-9 * size)
