"""Every constant of the published TokenGS: the architecture, and the recipes ("presets") it was trained and evaluated with.

Presets are derived from `train_dl3dv_base` by naming what differs, as the release does. Fields that the release knows too keep
its names. Dynamic TokenGS would add its own fields to `TokenGSArchitecture` (size of the time embedding, number of dynamic tokens).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class TokenGSArchitecture:
    """What the network is made of, and how it starts. Images must be multiples of `patch_size`."""

    patch_size: int = 8
    """Side of an image patch, in pixels; one encoder token each."""
    dec_patch_size: int = 8
    """A Gaussian token is read out as dec_patch_size ** 2 Gaussians."""
    enc_depth: int = 3
    """Self-attention blocks over the patches of all context views."""
    dec_depth: int = 12
    """Blocks in which Gaussian tokens look at the encoded views."""
    enc_embed_dim: int = 1024
    """Channels of every token."""
    enc_num_heads: int = 16
    """Attention heads, in every block."""
    mlp_ratio: int = 4
    """Hidden channels of an MLP over enc_embed_dim."""
    num_gs_tokens: int = 1024
    """Learned Gaussian tokens per scene."""
    num_latents: int | None = None
    """Learned latents between encoder and decoder (the latent bottleneck); None: the decoder looks at the patches themselves."""
    latent_cross_attn_depth: int = 12
    """Blocks that fill the latents; without a bottleneck there are none."""
    multiscale_encoder_layers: tuple[int, ...] = ()
    """Encoder blocks (from 0) whose outputs are read together; empty: the last one alone."""
    gs_token_std: float = 0.01
    """Spread of the Gaussian tokens at the start of training."""
    clip_head_readout_std: float = 0.002
    """Spread of the readout's weights at the start."""
    clip_head_z_init: float | None = None
    """Depth of all Gaussians at the start, before `gaussian_z_offset`; None: 0."""
    enc_init_values: float = 0.01
    """LayerScale of the encoder and latent blocks at the start."""
    dec_init_values: float | None = None
    """LayerScale of the decoder at the start; None: 5e-3 * gs_token_std."""
    anchor_depth: float | None = None
    """Start with the Gaussians spread over the view at this depth (see start.py); None: the published start."""
    anchor_half_width: float = 0.7
    """Half width of that spread, over the depth: the tangent of half a field of view."""
    anchor_overlap: float = 1.0
    """Standard deviation of a Gaussian over the distance to its neighbour, at that start."""
    anchor_opacity: float = 0.5
    """Opacity of the Gaussians at that start."""
    gaussian_z_offset: float = 1.0
    """Added to the z of every Gaussian, in units of the normalised scene."""
    gaussian_scale_cap: float = 0.075
    """Largest standard deviation of a Gaussian, in units of the normalised scene."""
    opacity_bias: float = 2.0
    """Opacity is sigmoid(raw - opacity_bias)."""

    def __post_init__(self) -> None:
        if self.enc_embed_dim % self.enc_num_heads:
            raise ValueError(f"enc_embed_dim {self.enc_embed_dim} is not a multiple of enc_num_heads {self.enc_num_heads}")
        outside = [layer for layer in self.multiscale_encoder_layers if not 0 <= layer < self.enc_depth]
        if outside:
            raise ValueError(f"multiscale_encoder_layers names block {outside[0]}, but enc_depth is {self.enc_depth}")

    @property
    def num_gaussians(self) -> int:
        """Gaussians per scene."""
        return self.num_gs_tokens * self.dec_patch_size**2

    @property
    def decoder_layer_scale(self) -> float:
        """LayerScale of the decoder blocks at the start."""
        return 5e-3 * self.gs_token_std if self.dec_init_values is None else self.dec_init_values


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the TokenGS loss; a term of weight 0 is not computed."""

    rgb: float = 1.0
    """Colour difference."""
    rgb_loss_type: Literal["l1", "l2"] = "l2"
    """Absolute or squared colour difference."""
    ssim: float = 0.2
    """(1 - SSIM) / 2."""
    lpips: float = 0.0
    """LPIPS (vgg); needs its weights."""
    mask: float = 0.0
    """Squared difference of rendered alpha and mask, for scenes that have masks."""
    visibility: float = 1.0
    """How far Gaussians lie outside every target view."""
    visibility_distance_threshold: float = 1.0
    """Largest distance that the visibility term counts, in half image sizes; 0: no limit."""
    opacity: float = 0.0
    """-log(opacity)."""


@dataclass(frozen=True)
class TrainingRecipe:
    """The published optimisation: AdamW, OneCycle over lr and beta1, clipping."""

    lr: float = 4e-4
    """Learning rate at the peak."""
    num_steps: int = 150_000
    """Optimiser steps (the release counts epochs of 500)."""
    warmup_steps: int = 2_000
    """Steps from lr / 25 up to the peak."""
    final_div_factor: float = 1000.0
    """The rate ends at lr / 25 / final_div_factor."""
    batch_size: int = 8
    """Scenes per process and step; published on 8 processes."""
    weight_decay: float = 0.05
    """For matrices, except the readout and the latents."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient over all parameters."""
    mirror_probability: float = 0.5
    """Share of samples that are mirrored left to right."""
    init_tokens_from_existing: bool = False
    """Start from weights with another number of Gaussian tokens: keep, repeat or thin them."""
    init_latents_from_existing: bool = False
    """The same for latents."""


@dataclass(frozen=True)
class TuningRecipe:
    """Test-time tuning: which tokens of the scene are fitted to its context views, and how. Off unless asked for."""

    mode: Literal["tokens", "scene_latents"] = "tokens"
    """Gaussian tokens, or (latent architecture) the scene's latents."""
    num_steps: int = 50
    lr: float = 1e-4


@dataclass(frozen=True)
class TokenGSPreset:
    """One published option set."""

    architecture: TokenGSArchitecture = field(default_factory=TokenGSArchitecture)
    loss: LossWeights = field(default_factory=LossWeights)
    training: TrainingRecipe | None = field(default_factory=TrainingRecipe)
    """None where a preset is for evaluation alone."""
    tuning: TuningRecipe = field(default_factory=TuningRecipe)
    image_height: int = 256
    image_width: int = 256
    num_context_views: int = 4
    num_target_views: int = 4
    camera_normalization_method: Literal["first_cam", "mean_cam"] = "first_cam"
    """World of the network: frame of the first context camera, or of the mean context camera."""
    camera_scale_method: Literal["constant", "pointmap"] = "constant"
    """Scene scale as it is, or divided by the mean distance of the context views' depth points."""
    scene_scale: float = 0.15
    """What camera positions are multiplied by (DL3DV)."""
    background: tuple[float, float, float] = (0.5, 0.5, 0.5)
    near: float = 0.025
    """Nearest distance that is drawn, in normalised units."""
    far: float = 125.0


BASE = TokenGSPreset()
"""`train_dl3dv_base`."""

_FINETUNE_TRAINING = TrainingRecipe(lr=4e-5, num_steps=10_000, warmup_steps=400, init_tokens_from_existing=True)
_FINETUNE = replace(
    BASE,
    architecture=replace(BASE.architecture, num_gs_tokens=4096),
    training=_FINETUNE_TRAINING,
    image_width=448,
)

_LATENT_ARCHITECTURE = replace(
    _FINETUNE.architecture,
    enc_depth=12,
    dec_depth=1,
    num_latents=4096,
    multiscale_encoder_layers=(5, 7, 9, 11),
    gs_token_std=0.02,
    clip_head_z_init=0.1,
    dec_init_values=0.01,
    gaussian_z_offset=0.0,
)
_L1_AND_SSIM = replace(BASE.loss, rgb=0.8, rgb_loss_type="l1")
_L2_AND_LPIPS = replace(BASE.loss, ssim=0.0, lpips=0.5)

_LATENT_FINETUNE = replace(
    _FINETUNE,
    architecture=_LATENT_ARCHITECTURE,
    training=replace(_FINETUNE_TRAINING, init_latents_from_existing=True),
    camera_normalization_method="mean_cam",
)

_KUBRIC_STATIC = replace(
    _LATENT_FINETUNE,
    architecture=replace(_LATENT_ARCHITECTURE, num_gs_tokens=1024),
    loss=_L1_AND_SSIM,
    training=replace(_FINETUNE_TRAINING, num_steps=50_000, warmup_steps=2_500),
    image_width=256,
    camera_scale_method="pointmap",
    scene_scale=1.0,
)


def _views(preset: TokenGSPreset, num_context_views: int) -> TokenGSPreset:
    """Published numbers of views: 8 in all, 10 with six context views."""
    total = 10 if num_context_views == 6 else 8
    return replace(preset, num_context_views=num_context_views, num_target_views=total - num_context_views)


def _evaluation(preset: TokenGSPreset, tuning: TuningRecipe) -> TokenGSPreset:
    """The evaluation twin of a fine-tune: no training, all 50 targets of the DL3DV benchmark, tuning with its own rate."""
    return replace(preset, training=None, tuning=tuning, num_target_views=50)


def _published() -> dict[str, TokenGSPreset]:
    presets = {"train_dl3dv_base": BASE}
    for views in (2, 4, 6):
        finetune = _views(_FINETUNE, views)
        presets[f"finetune_dl3dv_{views}view"] = finetune
        presets[f"eval_dl3dv_{views}view"] = _evaluation(finetune, finetune.tuning)
        for loss_name, loss in (("ssim", _L1_AND_SSIM), ("lpips", _L2_AND_LPIPS)):
            latent = replace(_views(_LATENT_FINETUNE, views), loss=loss)
            presets[f"finetune_dl3dv_latent_{views}view_{loss_name}"] = latent
            presets[f"eval_dl3dv_latent_{views}view_{loss_name}"] = _evaluation(latent, TuningRecipe("scene_latents", lr=1e-2))
    presets["finetune_dl3dv_kubric_static"] = _KUBRIC_STATIC
    return presets


PRESETS: dict[str, TokenGSPreset] = _published()
"""The published presets by their published names, all but the dynamic ones."""
