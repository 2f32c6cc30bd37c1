"""GaussianToken as nerfstudio sees it: picture -> tokens -> splatted feature map -> picture, in a plane that cameras look at."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from torch import Tensor
from torch.nn import Parameter
from tyro.conf import Suppress

from token_methods.core.cameras import Similarity
from token_methods.core.views import SceneBatch, Views
from token_methods.core.weights import WeightsError, compare_keys
from token_methods.gaussiantoken.config import PRESETS, GaussianTokenArchitecture
from token_methods.gaussiantoken.losses import LossWeights
from token_methods.gaussiantoken.picture_model import PictureModel
from token_methods.multiscene.model import GaussianSceneModelConfig, TrainingOutputs
from token_methods.rendering.picture_plane import view_of_picture
from token_methods.rendering.rasterize import RenderedViews


@dataclass
class GaussianTokenModelConfig(GaussianSceneModelConfig):
    """GaussianToken: architecture and losses."""

    _target: type = field(default_factory=lambda: GaussianTokenModel)
    architecture: GaussianTokenArchitecture = field(default_factory=lambda: PRESETS["cifar"].architecture)
    """The network."""
    loss: LossWeights = field(default_factory=LossWeights)
    """Weights of the loss terms."""
    steps_per_epoch: int = 130
    """Optimisation steps that count as an epoch of the loss weights' schedule."""
    average_decay: float | None = 0.999
    """Evaluate a running average of the network's weights, of which each step keeps this share; None evaluates the weights themselves."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of convolutions on a GPU; Gaussians, codebook and splatting are always float32."""
    recomputed_levels: int = 0
    """Finest levels of the convolutional networks whose activations are computed again in the backward pass, which saves memory."""
    cuda_graphs: bool = True
    """On one GPU, record what the networks start on it once and replay it from then on: faster, for more memory."""
    lpips_weights: Path | None = None
    """LPIPS weights for a loss with loss.perceptual > 0; by default the cache folders are searched."""
    tuning_steps: Suppress[int] = 0
    tuning_learning_rate: Suppress[float] = 0.0

    def check_image_size(self, height: int, width: int) -> None:
        if (height, width) != self.architecture.image_size:
            rows, columns = self.architecture.image_size
            raise ValueError(
                f"this architecture takes images of {columns}x{rows} pixels: leave --pipeline.datamanager.image-height at {rows} and "
                f"image-width at {columns}, or choose another method"
            )

    def check_weights(self, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The network's part of a published checkpoint, as it is evaluated, when it fits this architecture key by key.

        Raises:
            WeightsError: the difference, and the presets that would fit.
        """
        from token_methods.gaussiantoken.weights import check_weights

        return check_weights(weights, self.architecture, source)

    def accepts(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether weights have exactly the keys and shapes of this architecture."""
        try:
            self.check_weights(weights, "weights")
        except WeightsError:
            return False
        return True

    def read_weights(self, path: Path) -> dict[str, Tensor]:
        """All tensors of a `.safetensors` file or of the publication's Lightning `.ckpt`."""
        from token_methods.gaussiantoken.weights import read_checkpoint

        return read_checkpoint(path)

    def unread_weights(self, weights: Mapping[str, Tensor]) -> list[str]:
        from token_methods.gaussiantoken.weights import DISCRIMINATOR, unread_keys

        return [key for key in unread_keys(weights, self.architecture) if not key.startswith(DISCRIMINATOR)]

    def imported_state(self, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Averaged weights to be evaluated, live ones and the discriminator to train on; what the file lacks starts anew.

        Raises:
            WeightsError: see `check_weights`; or a discriminator of another shape.
        """
        from token_methods.gaussiantoken.discriminator import PatchDiscriminator
        from token_methods.gaussiantoken.losses import LecamAverages
        from token_methods.gaussiantoken.weights import check_weights, discriminator_weights

        averages = self.check_weights(weights, source)
        discriminator = PatchDiscriminator()
        if own := discriminator_weights(weights):
            compare_keys(own, discriminator.state_dict(), f"the discriminator in {source}")
            discriminator.load_state_dict(own)
        parts: dict[str, Mapping[str, Tensor]] = {
            "network.": check_weights(weights, self.architecture, source, averaged=False),
            "discriminator.": discriminator.state_dict(),
            "lecam.": LecamAverages().state_dict(),
        }
        if self.average_decay is not None:
            parts |= {"average.": {"n_averaged": torch.tensor(1)}, "average.module.": averages}
        return {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}

    def exported_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint as the published code loads it: live weights, averages, discriminator."""
        from token_methods.gaussiantoken.weights import published_weights

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

        return published_weights(part("network."), self.architecture, part("average.module.") or None, part("discriminator."))


@dataclass(frozen=True)
class DecodedPictures:
    """The representation: tokens, and the pictures that the decoder makes of them."""

    tokens: Any
    """`ImageTokens` of the network."""
    images: Float[Tensor, "batch 3 height width"]
    """RGB in [0, 1]."""


class GaussianTokenModel(PictureModel):
    """Images as quantised 2D Gaussians (GaussianToken, Dong et al. 2025, arXiv 2501.15619), or as a quantised grid (VQGAN)."""

    config: GaussianTokenModelConfig

    def populate_modules(self) -> None:
        super().populate_modules()
        from token_methods.gaussiantoken.discriminator import PatchDiscriminator
        from token_methods.gaussiantoken.losses import LecamAverages
        from token_methods.gaussiantoken.network import GaussianTokenNetwork

        if self.config.precision == "bfloat16" and torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")  # TF32 in what stays float32, as published
        self.network = GaussianTokenNetwork(self.config.architecture, self.config.recomputed_levels)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # A balanced adversarial weight takes gradients of the last layer on its own, before those of everything.
        self.network.replay_graphs(self.config.cuda_graphs and self.config.loss.adversarial is not None)
        self.step_parts = (("generator",), ("discriminator",)) if self.config.loss.adversarial != 0 else (("generator",),)
        self.discriminator = PatchDiscriminator()
        self.lecam = LecamAverages()
        self.step = 0
        self._lpips: list[Any] = []

    # encode, decode, render.

    def normalise(self, batch: SceneBatch) -> tuple[SceneBatch, Similarity]:
        return batch, Similarity.identity(batch.batch_size, batch.context.device)

    def encode(self, context: Views) -> Any:
        """`ImageTokens` of one image per scene."""
        with self._autocast():
            return self.evaluated.tokenize(_signed(context))[0]  # type: ignore[operator]

    def decode(self, tokens: Any) -> DecodedPictures:
        with self._autocast():
            decoded = self.evaluated.decode(tokens)  # type: ignore[operator]
        return DecodedPictures(tokens, ((decoded + 1) / 2).clamp(0, 1))

    def render(self, representation: DecodedPictures, views: Views) -> RenderedViews:  # type: ignore[override]
        """Views without cameras see the pictures themselves, cameras see them hang in the plane z = 0."""
        images = representation.images
        if views.camera_to_world is not None:
            return view_of_picture(images, views, self.config.background_color)
        ones = torch.ones_like(images[:, None, :1])
        return RenderedViews(images=images[:, None], depths=ones, alphas=ones)

    # Training: a generator part, then a discriminator part on the same reconstruction.

    @property
    def epoch(self) -> float:
        """Of the loss weights' schedule."""
        return self.step / self.config.steps_per_epoch

    def training_outputs(self, batch: SceneBatch) -> TrainingOutputs:
        from token_methods.gaussiantoken.losses import generator_losses

        network = self.network if self.training else self.evaluated
        images = _signed(batch.target)
        with self._autocast():
            tokens, commitment = network.tokenize(images)  # type: ignore[operator]
            reconstruction = network.decode(tokens)  # type: ignore[operator]
            losses = generator_losses(
                reconstruction,
                images,
                commitment,
                discriminator=self.discriminator,
                perceptual=self._perceptual(),
                weights=self.config.loss,
                epoch=self.epoch,
                last_layer=self.network.last_layer,
            )
        health = {"codes": code_diversity(tokens.indices, self.config.architecture.codebook_size)}
        loss = losses.pop("loss")
        metrics = {name: value.detach() for name, value in losses.items()} | {f"tokens/{name}": value for name, value in health.items()}
        if tokens.gaussians is not None:
            metrics["tokens/mean_scale"] = tokens.gaussians.scales.detach().mean()
        return TrainingOutputs({"loss": loss}, metrics, health, carried=(images, reconstruction.detach()))

    def following_outputs(self, previous: TrainingOutputs) -> TrainingOutputs:
        from token_methods.gaussiantoken.losses import discriminator_losses

        images, reconstruction = previous.carried
        with self._autocast():
            losses = discriminator_losses(
                images, reconstruction, discriminator=self.discriminator, lecam=self.lecam, weights=self.config.loss, epoch=self.epoch
            )
        loss = losses.pop("loss")
        return TrainingOutputs({"discriminator_loss": loss}, {name: value.detach() for name, value in losses.items()})

    def get_training_callbacks(self, training_callback_attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        def set_step(step: int) -> None:
            self.step = step

        self._perceptual()  # where its weights are missing, that is said before training begins

        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], set_step)]

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        trained: dict[str, torch.nn.Module] = {"generator": self.network, "discriminator": self.discriminator}
        groups = [name for part in self.step_parts or () for name in part]
        return {name: [parameter for parameter in trained[name].parameters() if parameter.requires_grad] for name in groups}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "float32" or self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=torch.bfloat16)

    def _perceptual(self) -> Any:
        """The LPIPS network, loaded when it is first asked for; a list keeps it out of parameters and checkpoints.

        Raises:
            LpipsUnavailable: the loss needs it, and its weights are nowhere.
            WeightsError: they are broken.
        """
        if self.config.loss.perceptual <= 0:
            return None
        if not self._lpips:
            from token_methods.core.perceptual import LpipsUnavailable, load_lpips

            try:
                lpips = load_lpips("vgg", self.config.lpips_weights).to(self.device)
            except LpipsUnavailable as missing:
                raise LpipsUnavailable(
                    f"{missing}; name a file with --pipeline.model.lpips-weights, or train without with --pipeline.model.loss.perceptual 0"
                ) from missing
            if self.device.type == "cuda":
                lpips.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._lpips.append(lpips)
        return self._lpips[0]


def code_diversity(indices: Int64[Tensor, "batch n"], codebook_size: int) -> Float[Tensor, ""]:
    """How evenly codes are used: 0 when all tokens have the same one, 1 when all codes are equally frequent (perplexity, rescaled)."""
    flat = indices.reshape(-1)
    counts = torch.zeros(codebook_size, device=flat.device).scatter_add_(0, flat, torch.ones(flat.shape, device=flat.device))
    shares = counts / counts.sum()
    perplexity = torch.special.entr(shares).sum().exp()
    return (perplexity - 1) / max(codebook_size - 1, 1)


def _signed(views: Views) -> Float[Tensor, "batch 3 height width"]:
    """The only view of each scene, in -1..1 as the network takes it; on CUDA in channels_last, which convolutions hand on."""
    if views.images is None or views.num_views != 1:
        raise ValueError("GaussianToken takes single images: one view per scene, with its picture")
    images = views.images[:, 0]
    return (images.contiguous(memory_format=torch.channels_last) if images.is_cuda else images) * 2 - 1
