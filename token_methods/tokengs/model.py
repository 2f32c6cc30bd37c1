"""TokenGS as nerfstudio sees it: context views -> keys and values -> Gaussian tokens -> Gaussians3D -> images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn import Parameter

from token_methods.core.cameras import Similarity, normalise_batch
from token_methods.core.views import SceneBatch, Views
from token_methods.multiscene.guard import gaussian_vital_signs
from token_methods.multiscene.model import GaussianSceneModel, GaussianSceneModelConfig, Progress, TrainingOutputs
from token_methods.multiscene.network_files import read_network
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.tokengs.config import LossWeights, TokenGSArchitecture
from token_methods.tokengs.losses import chunked_losses, tokengs_losses
from token_methods.tokengs.normalisation import CameraNormalisation, CameraScale, network_frame

SHIPPED = Path("shipped")
"""Stands for the weights that come with the package, as initial weights."""
SHIPPED_FILE = Path(__file__).parent / "pretrained" / "tokengs-tiny.safetensors"
"""tokengs-tiny, trained on procedural scenes only (docs/results/shipped_weights.md)."""


@dataclass
class TokenGSModelConfig(GaussianSceneModelConfig):
    """TokenGS: architecture, losses and the frame that the network works in."""

    _target: type = field(default_factory=lambda: TokenGSModel)
    architecture: TokenGSArchitecture = field(default_factory=TokenGSArchitecture)
    """The network."""
    loss: LossWeights = field(default_factory=LossWeights)
    """Weights of the loss terms."""
    camera_normalization_method: CameraNormalisation = "first_cam"
    """World of the network: the frame of the first context camera, or of the mean context camera."""
    camera_scale_method: CameraScale = "constant"
    """What scene_scale stands for: a factor on the scene's own unit, the largest distance of a context camera from the first, the
    largest coordinate of a context camera, or the median depth of the scene's sparse points."""
    scene_scale: float = 0.15
    """See camera_scale_method."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of matrix products on a GPU; Gaussians and rendering are always float32."""
    tuning_mode: Literal["tokens", "scene_latents"] = "tokens"
    """What test-time tuning fits: the scene's Gaussian tokens, or (latent architecture) its latents."""
    render_chunk: Literal["batch", "scene", "view"] = "batch"
    """How much is rendered at a time in training: the gradients are the same, smaller chunks need less memory."""
    lpips_weights: Path | None = None
    """LPIPS weights for a loss with loss.lpips > 0; by default the cache folders are searched."""

    def check_image_size(self, height: int, width: int) -> None:
        patch = self.architecture.patch_size
        if height % patch or width % patch:
            raise ValueError(
                f"TokenGS cuts images into patches of {patch} pixels: --pipeline.datamanager.image-height {height} and image-width {width} "
                f"must be multiples of {patch}"
            )

    def check_weights(self, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Published weights that fit this architecture key by key.

        Raises:
            WeightsError: the difference, and the preset that would fit.
        """
        from token_methods.tokengs.weights import check_weights

        return check_weights(weights, self.architecture, source)

    def accepts(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether weights have exactly the keys and shapes of this architecture."""
        from token_methods.core.weights import key_differences
        from token_methods.tokengs.weights import network_part, published_tensors

        return not key_differences(network_part(weights), published_tensors(self.architecture))


@dataclass(frozen=True)
class SceneTokens:
    """What TokenGS knows of a batch of scenes."""

    keys_values: Any
    """Keys and values that the decoder looks at."""
    tokens: Float[Tensor, "batch tokens dim"]
    """Gaussian tokens before the decoder; test-time tuning may have changed them."""
    scene_latents: Float[Tensor, "batch latents dim"] | None = None
    """Latents that the keys and values come from, in the latent architecture."""


class TokenGSModel(GaussianSceneModel):
    """Feed-forward Gaussians through learnable tokens (TokenGS, 2026)."""

    config: TokenGSModelConfig

    def populate_modules(self) -> None:
        super().populate_modules()
        from token_methods.tokengs.network import TokenGSNetwork

        self.network = TokenGSNetwork(self.config.architecture, getattr(torch, self.config.precision))
        self._lpips: list[Any] = []

    # encode, decode; rendering is that of every Gaussian method.

    def normalise(self, batch: SceneBatch) -> tuple[SceneBatch, Similarity]:
        config = self.config
        frame = network_frame(batch, config.camera_normalization_method, config.camera_scale_method, config.scene_scale)
        return normalise_batch(batch, frame), frame

    def encode(self, context: Views) -> SceneTokens:
        network = self.network
        tokens = network.tokens(context.batch_size)
        if not network.has_latents:
            return SceneTokens(network.keys_values(context), tokens)
        latents = network.scene_latents(context)
        return SceneTokens(network.keys_values_from_latents(latents), tokens, latents)

    def decode(self, tokens: SceneTokens) -> Gaussians3D:
        return self.network.decode(tokens.keys_values, tokens.tokens)

    def tune(self, tokens: SceneTokens, context: Views, steps: int, learning_rate: float, progress: Progress | None = None) -> SceneTokens:
        from token_methods.tokengs.tuning import tune_scene_latents, tune_tokens

        loss = self._tuning_loss(context)
        if self.config.tuning_mode == "tokens":
            tuned = tune_tokens(self.network, tokens.keys_values, tokens.tokens, loss, steps, learning_rate, progress)
            return dataclasses.replace(tokens, tokens=tuned)
        if tokens.scene_latents is None:
            raise ValueError("tuning_mode scene_latents needs a latent preset such as tokengs-latent-4view-ssim; use tokens")
        latents = tune_scene_latents(self.network, tokens.scene_latents, tokens.tokens, loss, steps, learning_rate, progress)
        with torch.no_grad():
            return SceneTokens(self.network.keys_values_from_latents(latents), tokens.tokens, latents)

    def _tuning_loss(self, context: Views) -> Callable[[Gaussians3D], Tensor]:
        """The training loss on the context views, each of which counts whole."""
        views = dataclasses.replace(context, masks=None)

        def loss(gaussians: Gaussians3D) -> Tensor:
            return tokengs_losses(self.render(gaussians, views), gaussians, views, self.config.loss, self._perceptual())["loss"]

        return loss

    # Training.

    def training_outputs(self, batch: SceneBatch) -> TrainingOutputs:
        gaussians = self.decode(self.encode(batch.context))
        target, weights, chunk = batch.target, self.config.loss, self.config.render_chunk
        if chunk == "batch":
            losses = tokengs_losses(self.render(gaussians, target), gaussians, target, weights, self._perceptual(), batch.has_mask)
        else:
            views = 1 if chunk == "view" else None
            losses = chunked_losses(gaussians, target, self.render, weights, self._perceptual(), batch.has_mask, views_per_chunk=views)
        loss = losses.pop("loss")
        health = gaussian_vital_signs(gaussians, target, self.config.near_plane, self.config.far_plane)
        metrics = {name: value.detach() for name, value in losses.items()} | {f"gaussians/{name}": value for name, value in health.items()}
        return TrainingOutputs({"loss": loss}, metrics, health)

    def _perceptual(self) -> Any:
        """The LPIPS network, loaded when a loss first asks for it; a list keeps it out of parameters and checkpoints."""
        if self.config.loss.lpips <= 0:
            return None
        if not self._lpips:
            from token_methods.core.perceptual import load_lpips

            self._lpips.append(load_lpips("vgg", self.config.lpips_weights).to(self.device))
        return self._lpips[0]

    def load_initial_weights(self, path: Path) -> None:
        if path == SHIPPED:
            path = SHIPPED_FILE
        from token_methods.tokengs.weights import warm_start

        for note in warm_start(self.network, read_network(path), str(path)):
            CONSOLE.print(f"[yellow]{note}[/yellow]")

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """The publication's two groups: matrices decay; vectors, the readout and the latents do not."""
        decayed, undecayed = self.network.weight_decay_groups()
        return {"decayed": list(decayed), "undecayed": list(undecayed)}
