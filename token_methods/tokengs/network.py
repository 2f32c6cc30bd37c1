"""The TokenGS network: posed images to 3D Gaussians, in pure torch.

Learned Gaussian tokens look at the encoded context views through cross attention; each is read out as a patch of Gaussians.
Parameter names are the published checkpoint's keys. All poses and Gaussians here are in the network's normalised frame.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from token_methods.core.attention import HeadNorm, SelfAttention, attend, split_heads
from token_methods.core.blocks import LayerScale, Mlp, TransformerBlock
from token_methods.core.cameras import plucker_rays
from token_methods.core.patches import PatchEmbedding
from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.tokengs.config import TokenGSArchitecture
from token_methods.tokengs.start import anchor_readout_, anchored_tokens

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RAW_CHANNELS = 14
"""Numbers per Gaussian before activation: position 3, colour 3, scale 3, rotation 4, opacity 1."""


class KeysValues(NamedTuple):
    """What the decoder knows of a batch of scenes; the same for all of its blocks."""

    keys: Float[Tensor, "batch heads n head_dim"]
    """Normalised."""
    values: Float[Tensor, "batch heads n head_dim"]


def network_inputs(context: Views) -> tuple[Float[Tensor, "batch views 3 height width"], Float[Tensor, "batch views 6 height width"]]:
    """What the patch embeddings see, float32: images as ImageNet normalises them, and the Plücker rays of their pixels.

    Raises:
        ValueError: the views have no images or no cameras.
    """
    if context.images is None or context.camera_to_world is None:
        raise ValueError("TokenGS needs context views with images and cameras")
    with torch.autocast(context.device.type, enabled=False):
        channels = zip(context.images.unbind(2), IMAGENET_MEAN, IMAGENET_STD, strict=True)
        images = torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=2)
        return images, plucker_rays(context)


class QueryAttention(nn.Module):
    """Cross attention of tokens to keys and values that were computed (and normalised) once for all blocks."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.gs_token_norm = nn.LayerNorm(dim)
        self.q_norm = HeadNorm(dim // num_heads)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, tokens: Float[Tensor, "batch n dim"], keys_values: KeysValues) -> Float[Tensor, "batch n dim"]:
        queries = self.q_norm(split_heads(self.q_proj(self.gs_token_norm(tokens)), self.num_heads))
        return self.out_proj(attend(queries.transpose(1, 2), *keys_values))


class _NormedSelfAttention(nn.Module):
    """LayerNorm and self-attention under the published names."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gs_self_attn = SelfAttention(dim, num_heads)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gs_self_attn(self.norm(tokens))


class _NormedMlp(nn.Module):
    """LayerNorm and MLP under the published names."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm(tokens))


class DecoderBlock(nn.Module):
    """Cross attention, self-attention, MLP: each pre-norm, each added through a LayerScale.

    Dynamic TokenGS masks the self-attention so that static tokens do not see dynamic ones; everything else stays.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, layer_scale: float) -> None:
        super().__init__()
        self.gs_cross_attn = QueryAttention(dim, num_heads)
        self.gs_cross_attn_scale = LayerScale(dim, layer_scale)
        self.gs_self_attn = _NormedSelfAttention(dim, num_heads)
        self.gs_self_attn_scale = LayerScale(dim, layer_scale)
        self.mlp = _NormedMlp(dim, mlp_ratio * dim)
        self.mlp_scale = LayerScale(dim, layer_scale)

    def forward(self, tokens: Float[Tensor, "batch n dim"], keys_values: KeysValues) -> Float[Tensor, "batch n dim"]:
        tokens = tokens + self.gs_cross_attn_scale(self.gs_cross_attn(tokens, keys_values))
        tokens = tokens + self.gs_self_attn_scale(self.gs_self_attn(tokens))
        return tokens + self.mlp_scale(self.mlp(tokens))


class EncoderDecoder(nn.Module):
    """Encoder over the patches of all context views, optional latent bottleneck, decoder over Gaussian tokens."""

    def __init__(self, architecture: TokenGSArchitecture) -> None:
        super().__init__()
        dim, heads = architecture.enc_embed_dim, architecture.enc_num_heads
        self.num_heads = heads
        self.multiscale_layers = tuple(sorted(architecture.multiscale_encoder_layers))
        block = (dim, heads, architecture.mlp_ratio)
        self.encoder = nn.ModuleList([TransformerBlock(*block, architecture.enc_init_values) for _ in range(architecture.enc_depth)])
        if self.multiscale_layers:
            self.multiscale_norms = nn.ModuleList([nn.LayerNorm(dim) for _ in self.multiscale_layers])
        else:
            self.encoder_norm = nn.LayerNorm(dim)
        feature_dim = dim * max(1, len(self.multiscale_layers))
        if architecture.num_latents is None:
            self.kv_proj = nn.Linear(feature_dim, 2 * dim)
        else:
            self.latents = nn.Parameter(0.02 * torch.randn(architecture.num_latents, dim))
            self.latent_feature_kv_proj = nn.Linear(feature_dim, 2 * dim)
            self.latent_feature_k_norm = HeadNorm(dim // heads)
            self.latent_blocks = nn.ModuleList(
                [DecoderBlock(*block, architecture.enc_init_values) for _ in range(architecture.latent_cross_attn_depth)]
            )
            self.latent_kv_proj = nn.Linear(dim, 2 * dim)
        self.k_proj_norm = HeadNorm(dim // heads)
        self.decoder_blocks = nn.ModuleList([DecoderBlock(*block, architecture.decoder_layer_scale) for _ in range(architecture.dec_depth)])

    def encode(self, patches: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch n features"]:
        if not self.multiscale_layers:
            for block in self.encoder:
                patches = block(patches)
            return self.encoder_norm(patches)
        scales: list[Tensor] = []
        for index, block in enumerate(self.encoder):
            patches = block(patches)
            if index in self.multiscale_layers:
                scales.append(self.multiscale_norms[len(scales)](patches))
        return torch.cat(scales, dim=-1)

    def fill_latents(self, features: Float[Tensor, "batch n features"]) -> Float[Tensor, "batch latents dim"]:
        keys_values = self._project(features, self.latent_feature_kv_proj, self.latent_feature_k_norm)
        latents = self.latents.expand(len(features), -1, -1)
        for block in self.latent_blocks:
            latents = block(latents, keys_values)
        return latents

    def features_to_keys_values(self, features: Float[Tensor, "batch n features"]) -> KeysValues:
        return self._project(features, self.kv_proj, self.k_proj_norm)

    def latents_to_keys_values(self, latents: Float[Tensor, "batch latents dim"]) -> KeysValues:
        return self._project(latents, self.latent_kv_proj, self.k_proj_norm)

    def decode(self, keys_values: KeysValues, tokens: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch n dim"]:
        for block in self.decoder_blocks:
            tokens = block(tokens, keys_values)
        return tokens

    def _project(self, features: Tensor, projection: nn.Linear, key_norm: HeadNorm) -> KeysValues:
        keys, values = (split_heads(part, self.num_heads) for part in projection(features).chunk(2, dim=-1))
        return KeysValues(key_norm(keys).transpose(1, 2), values.transpose(1, 2))


class GaussianHead(nn.Module):
    """Reads every token out as a patch of Gaussians. Excluded from weight decay."""

    def __init__(self, architecture: TokenGSArchitecture) -> None:
        super().__init__()
        self.z_offset = architecture.gaussian_z_offset
        self.scale_cap = architecture.gaussian_scale_cap
        self.opacity_bias = architecture.opacity_bias
        patch = architecture.dec_patch_size**2
        self.deconv = nn.Linear(architecture.enc_embed_dim, RAW_CHANNELS * patch)
        # Published truncation: at +-2 absolute, which cuts nothing off.
        nn.init.trunc_normal_(self.deconv.weight, std=architecture.clip_head_readout_std, a=-2.0, b=2.0)
        nn.init.zeros_(self.deconv.bias)
        if architecture.anchor_depth is not None:
            with torch.no_grad():
                anchor_readout_(architecture, self.deconv.weight, self.deconv.bias)
        elif architecture.clip_head_z_init is not None:
            with torch.no_grad():
                self.deconv.bias.view(patch, RAW_CHANNELS)[:, 2] = math.log1p(architecture.clip_head_z_init)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Gaussians3D:
        raw = self.deconv(tokens)
        # Activations in float32 whatever the matrix product's precision: they cost nothing, and the renderer wants float32.
        with torch.autocast(raw.device.type, enabled=False):
            raw = raw.to(tokens.dtype).unflatten(-1, (-1, RAW_CHANNELS)).flatten(1, 2)
            position, color, scale, rotation, opacity = raw.split([3, 3, 3, 4, 1], dim=-1)
            xy, z = (position.sign() * position.abs().expm1()).split([2, 1], dim=-1)
            return Gaussians3D(
                means=torch.cat([xy, z + self.z_offset], dim=-1),
                quats=nn.functional.normalize(rotation, dim=-1, eps=1e-12),
                scales=(scale - (1 - math.log(self.scale_cap))).exp().clamp(max=self.scale_cap),
                opacities=(opacity[..., 0] - self.opacity_bias).sigmoid(),
                colors=0.5 * color.tanh() + 0.5,
            )


class TokenGSNetwork(nn.Module):
    """Context views to Gaussians: `decode(keys_values(context), tokens(batch))`.

    On CUDA the matrix products run in `cuda_dtype` under autocast, as published (bfloat16); parameters, the residual stream and
    the Gaussians are float32. `cuda_dtype=torch.float32` turns that off; on CPU everything is float32.
    """

    def __init__(self, architecture: TokenGSArchitecture, cuda_dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.architecture = architecture
        self.cuda_dtype = cuda_dtype
        dim = architecture.enc_embed_dim
        anchored = architecture.anchor_depth is not None
        tokens = anchored_tokens(architecture) if anchored else architecture.gs_token_std * torch.randn(architecture.num_gs_tokens, dim)
        self.gs_tokens = nn.Parameter(tokens)
        self.patch_embed = PatchEmbedding(3, architecture.patch_size, dim)
        self.patch_plucker_embed = PatchEmbedding(6, architecture.patch_size, dim)
        self.enc_dec_backbone = EncoderDecoder(architecture)
        self.activation_head = GaussianHead(architecture)

    @property
    def has_latents(self) -> bool:
        return self.architecture.num_latents is not None

    def keys_values(self, context: Views) -> KeysValues:
        """Encode context views (images in [0, 1], cameras in the network's frame) for the decoder."""
        if self.has_latents:
            return self.keys_values_from_latents(self.scene_latents(context))
        patches = self._patches(context)
        with self.precision():
            return self.enc_dec_backbone.features_to_keys_values(self.enc_dec_backbone.encode(patches))

    def scene_latents(self, context: Views) -> Float[Tensor, "batch latents dim"]:
        """Encode context views into the latents that stand for their scene.

        Raises:
            ValueError: the architecture has no latent bottleneck.
        """
        if not self.has_latents:
            raise ValueError("this architecture has no scene latents (num_latents is None); use a latent preset, or tune tokens instead")
        patches = self._patches(context)
        with self.precision():
            return self.enc_dec_backbone.fill_latents(self.enc_dec_backbone.encode(patches))

    def keys_values_from_latents(self, latents: Float[Tensor, "batch latents dim"]) -> KeysValues:
        with self.precision():
            return self.enc_dec_backbone.latents_to_keys_values(latents)

    def tokens(self, batch_size: int) -> Float[Tensor, "batch tokens dim"]:
        """The learned Gaussian tokens, before they have seen a scene. Dynamic tokens would follow the static ones here."""
        return self.gs_tokens.expand(batch_size, -1, -1)

    def decode(self, keys_values: KeysValues, tokens: Float[Tensor, "batch tokens dim"]) -> Gaussians3D:
        """Gaussians of each scene in the network's frame, float32; token m owns Gaussians m * q^2 ... (m + 1) * q^2 - 1."""
        with self.precision():
            return self.activation_head(self.enc_dec_backbone.decode(keys_values, tokens))

    def forward(self, context: Views) -> Gaussians3D:
        return self.decode(self.keys_values(context), self.tokens(context.batch_size))

    def weight_decay_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters that decay, and those that do not: vectors, the readout, the latents. Gaussian tokens decay, as published."""
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in self.named_parameters():
            exempt = parameter.ndim < 2 or name.startswith("activation_head.") or name == "enc_dec_backbone.latents"
            groups[exempt].append(parameter)
        return groups

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in on the device that the network is on."""
        return self.cuda_dtype if self.gs_tokens.is_cuda else torch.float32

    def precision(self) -> torch.autocast:
        """The autocast context of every part: entered here, whatever the caller runs under."""
        return torch.autocast(self.gs_tokens.device.type, dtype=self.cuda_dtype, enabled=self.dtype != torch.float32)

    def _patches(self, context: Views) -> Float[Tensor, "batch n dim"]:
        """Tokens of all patches of all views, view after view. A time embedding of each view would be added here."""
        images, rays = network_inputs(context)
        with self.precision():
            patches = self.patch_embed(images.flatten(0, 1)) + self.patch_plucker_embed(rays.flatten(0, 1))
        return patches.unflatten(0, (context.batch_size, -1)).flatten(1, 2)
