"""What GaussianToken's generator and discriminator minimise.

Source: GaussianToken (Dong et al. 2025, arXiv 2501.15619), section 3 and its published code, which adds LPIPS (Zhang et al. 2018), the
adaptive adversarial weight of VQGAN (Esser et al. 2021) and LeCAM (Tseng et al. 2021). Images are in [-1, 1]; every loss is computed
in float32, whatever autocast the networks run under.

A training step is: encode and decode; `generator_losses`, its backward pass and optimiser step; `discriminator_losses` of the same
reconstruction, its backward pass and optimiser step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

DiscriminatorLoss = Literal["hinge", "vanilla", "non_saturate"]
Perceptual = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target), both [n, 3, height, width] in [0, 1] -> one distance per image."""
MAX_ADAPTIVE_WEIGHT = 1e4


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms beside L1, which has weight 1. The defaults are those of every published preset."""

    perceptual: float = 1.0
    """Of LPIPS; 0 needs no LPIPS network."""
    commitment: float = 0.25
    """Of the quantiser's commitment loss."""
    adversarial: float | None = 0.1
    """Of the generator's adversarial term; None: balanced against the gradient of the image terms; 0 needs no discriminator."""
    adaptive_factor: float = 0.8
    """Times the balanced weight, where `adversarial` is None."""
    generator_start_epoch: int = 5
    """First epoch with the adversarial term."""
    discriminator_start_epoch: int = 0
    """First epoch in which the discriminator learns."""
    discriminator_loss: DiscriminatorLoss = "hinge"
    """How the discriminator's mistakes are counted (see `adversarial_loss`)."""
    lecam: float = 0.05
    """Of the regularisation that keeps the discriminator near its own running averages."""


class LecamAverages(nn.Module):
    """Running averages of the discriminator's mean logits, and LeCAM's regularisation towards them.

    They are buffers, so that a resumed run goes on with them; the published code starts again from zero.
    """

    real: Float[Tensor, ""]
    fake: Float[Tensor, ""]

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real_logits: Float[Tensor, "..."], fake_logits: Float[Tensor, "..."]) -> None:
        """Move the averages towards the means of a batch; no host synchronisation."""
        self.real.lerp_(real_logits.mean(), 1 - self.decay)
        self.fake.lerp_(fake_logits.mean(), 1 - self.decay)

    def forward(self, real_logits: Float[Tensor, "..."], fake_logits: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """How far photographs score above the average reconstruction, and reconstructions below the average photograph, squared."""
        return (real_logits - self.fake).relu().square().mean() + (self.real - fake_logits).relu().square().mean()


def generator_losses(
    reconstruction: Float[Tensor, "batch 3 height width"],
    images: Float[Tensor, "batch 3 height width"],
    commitment: Float[Tensor, "..."],
    *,
    discriminator: nn.Module,
    perceptual: Perceptual | None,
    weights: LossWeights,
    epoch: float,
    last_layer: Tensor | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """The generator's loss and its terms.

    The discriminator sees the reconstruction in every epoch, since that moves its batch statistics; its parameters get no gradient. With
    an adversarial weight of 0 it is not asked.
    Without gradients (validation) a balanced adversarial weight cannot be known and counts as 0.

    Args:
        reconstruction: of the decoder, in about [-1, 1], not clamped.
        images: in [-1, 1].
        commitment: the quantiser's commitment loss; its mean is taken.
        discriminator: images to logits [batch, 1, rows, columns]; in training mode in training.
        perceptual: LPIPS; None where its weight is 0.
        weights: of the terms.
        epoch: decides whether the adversarial term counts.
        last_layer: weight of the decoder's last convolution; needed where `weights.adversarial` is None.

    Returns:
        `loss`, unweighted `loss_l1`, `loss_perceptual`, `loss_adversarial`, `loss_commitment`, and the `adversarial_weight` that was
        used (0 before `generator_start_epoch`).

    Raises:
        ValueError: the adversarial weight is to be balanced and `last_layer` is missing.
    """
    adversarial_counts = weights.adversarial != 0 and epoch >= weights.generator_start_epoch
    logits = None
    if weights.adversarial != 0:
        with _frozen(discriminator), torch.set_grad_enabled(torch.is_grad_enabled() and adversarial_counts):
            logits = discriminator(reconstruction)
    with torch.autocast(reconstruction.device.type, enabled=False):
        reconstruction, images = reconstruction.float(), images.float()
        terms = {
            "loss_l1": F.l1_loss(reconstruction, images),
            "loss_perceptual": images.new_zeros(())
            if perceptual is None
            else perceptual((reconstruction + 1) / 2, (images + 1) / 2).mean(),
            "loss_adversarial": images.new_zeros(()) if logits is None else F.softplus(-_image_means(logits)).mean(),
            "loss_commitment": commitment.float().mean(),
        }
        image_loss = terms["loss_l1"] + weights.perceptual * terms["loss_perceptual"]
        if not adversarial_counts:
            weight = torch.zeros_like(image_loss)
        elif weights.adversarial is not None:
            weight = torch.full_like(image_loss, weights.adversarial)
        elif last_layer is None:
            raise ValueError("the adversarial weight is balanced at the decoder's last convolution: pass its weight as last_layer")
        else:
            weight = weights.adaptive_factor * balanced_weight(image_loss, terms["loss_adversarial"], last_layer)
        weight = weight.detach()
        loss = image_loss + weight * terms["loss_adversarial"] + weights.commitment * terms["loss_commitment"]
    return terms | {"adversarial_weight": weight, "loss": loss}


def discriminator_losses(
    images: Float[Tensor, "batch 3 height width"],
    reconstruction: Float[Tensor, "batch 3 height width"],
    *,
    discriminator: nn.Module,
    lecam: LecamAverages,
    weights: LossWeights,
    epoch: float,
) -> dict[str, Float[Tensor, ""]]:
    """The discriminator's loss and its terms; no gradient goes into the reconstruction. Moves the averages of `lecam`.

    Args:
        images: in [-1, 1].
        reconstruction: the same that the generator was trained on; it is detached here.
        discriminator: images to logits [batch, 1, rows, columns]; in training mode in training.
        lecam: the run's averages. The published code moves them in validation too.
        weights: of the terms.
        epoch: the loss is zero before `weights.discriminator_start_epoch`.

    Returns:
        `loss`, unweighted `loss_discriminator` and `loss_lecam`, mean logits `real_logits` and `fake_logits`.
    """
    real, fake = discriminator(images).float(), discriminator(reconstruction.detach()).float()
    lecam.update(real, fake)
    with torch.autocast(real.device.type, enabled=False):
        terms = {"loss_discriminator": adversarial_loss(real, fake, weights.discriminator_loss), "loss_lecam": lecam(real, fake)}
        loss = terms["loss_discriminator"] + weights.lecam * terms["loss_lecam"]
        if epoch < weights.discriminator_start_epoch:
            loss = 0 * loss  # still a graph, for a caller that always runs the backward pass
    return terms | {"real_logits": real.detach().mean(), "fake_logits": fake.detach().mean(), "loss": loss}


def adversarial_loss(
    real_logits: Float[Tensor, "batch 1 rows columns"], fake_logits: Float[Tensor, "batch 1 rows columns"], kind: DiscriminatorLoss
) -> Float[Tensor, ""]:
    """How badly a discriminator tells photographs (logits above zero) from reconstructions (below).

    `hinge` (Lim and Ye 2017) and `vanilla` (Goodfellow et al. 2014, cross-entropy of every patch) are means of their two halves;
    `non_saturate` is the sum of both cross-entropies of the logits averaged over each image.
    """
    match kind:
        case "hinge":
            return 0.5 * ((1 - real_logits).relu().mean() + (1 + fake_logits).relu().mean())
        case "vanilla":
            return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())
        case "non_saturate":
            return F.softplus(-_image_means(real_logits)).mean() + F.softplus(_image_means(fake_logits)).mean()
    raise ValueError(f"there is no discriminator loss {kind!r}: choose hinge, vanilla or non_saturate")


def balanced_weight(image_loss: Float[Tensor, ""], adversarial_loss: Float[Tensor, ""], last_layer: Tensor) -> Float[Tensor, ""]:
    """Weight at which the adversarial gradient is as large as the image gradient at `last_layer`; 0 where there is no gradient."""
    if not torch.is_grad_enabled():
        return torch.zeros_like(image_loss)
    (image_gradient,) = torch.autograd.grad(image_loss, last_layer, retain_graph=True)
    (adversarial_gradient,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    return (image_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).clamp(0.0, MAX_ADAPTIVE_WEIGHT)


def _image_means(logits: Float[Tensor, "batch 1 rows columns"]) -> Float[Tensor, " batch"]:
    return logits.float().flatten(1).mean(dim=1)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Lets gradients through a module but not into its parameters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
