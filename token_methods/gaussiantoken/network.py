"""The GaussianToken network (Dong et al. 2025, arXiv 2501.15619, figure 2): images to tokens and back, in pure torch.

    images -> img_encoder -> gs_embed -> quantize -> splat -> img_decoder -> images

A token is a 2D Gaussian whose feature is one of the codebook's. The baseline (VQGAN) has the same ends and quantiser, and the cells of
the feature map for tokens. Images are in -1..1. Parameter names are the published checkpoint's keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from token_methods.core.graph_replay import GraphReplay
from token_methods.gaussiantoken.autoencoder import ImageDecoder, ImageEncoder
from token_methods.gaussiantoken.config import GaussianTokenArchitecture
from token_methods.gaussiantoken.embedder import GaussianEmbedder
from token_methods.gaussiantoken.quantizer import Quantizer
from token_methods.rendering.gaussians2d import Gaussians2D, splat


@dataclass(frozen=True)
class ImageTokens:
    """What a batch of images becomes."""

    gaussians: Gaussians2D | None
    """Where each token is, with its quantised feature; None for the baseline, whose tokens are the cells of the map, row by row."""
    indices: Int64[Tensor, "batch n"]
    """The token's code."""
    features: Float[Tensor, "batch n dim"]
    """That code, as the codebook has it."""
    height: int
    """Of the feature map, in cells."""
    width: int

    def __len__(self) -> int:
        return len(self.indices)


class GaussianTokenNetwork(nn.Module):
    """Images to tokens and tokens to images.

    The two CNNs follow the autocast that they are called under; Gaussians, quantiser and splat are always float32.
    """

    def __init__(self, architecture: GaussianTokenArchitecture, checkpoint_levels: int = 0, published_splat: bool = False) -> None:
        """
        Args:
            architecture: what it is made of.
            checkpoint_levels: so many of the CNNs' finest levels recompute their activations in the backward pass, to save memory.
            published_splat: splat with the errors of the published backward pass, for comparison with it.
        """
        super().__init__()
        self.architecture = architecture
        self.published_splat = published_splat
        cnn = (architecture.channels, architecture.multipliers, architecture.num_residual_blocks)
        self.img_encoder = ImageEncoder(*cnn, architecture.encoder_channels, checkpoint_levels)
        embedder = architecture.embedder
        self.gs_embed = None if embedder is None else GaussianEmbedder(embedder, architecture.code_dim, architecture.map_size)
        self.quantize = Quantizer(architecture)
        self.img_decoder = ImageDecoder(*cnn, architecture.code_dim, checkpoint_levels)
        # Not modules: what they call is one of those above.
        self._encode = GraphReplay(self.img_encoder)
        self._embed = None if self.gs_embed is None else GraphReplay(self.gs_embed, Gaussians2D.tensors)
        self._decode = GraphReplay(self.img_decoder)

    def replay_graphs(self, enabled: bool) -> None:
        """Whether repeated calls of one kind on CUDA are replayed as CUDA graphs (see `GraphReplay`), which is so at first.

        Graphs keep the memory of a call's activations, and let gradients be taken once.
        """
        for calls in (self._encode, self._embed, self._decode):
            if calls is not None:
                calls.enabled = enabled

    def tokenize(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[ImageTokens, Float[Tensor, ""]]:
        """Tokens of images, and the commitment loss (0 in evaluation). In training mode, codebook and scale range learn from them.

        Raises:
            ValueError: images of another size than the architecture's.
        """
        if images.shape[-2:] != torch.Size(self.architecture.image_size):
            height, width = self.architecture.image_size
            raise ValueError(f"images of {images.shape[-1]} x {images.shape[-2]} pixels: crop or resize them to {width} x {height}")
        (feature_map,) = self._encode(images)
        gaussians = None if self._embed is None else Gaussians2D(*self._embed(feature_map))
        quantized = self.quantize(feature_map.flatten(2).mT if gaussians is None else gaussians.features)
        return self._tokens(gaussians, quantized.indices, quantized.features), quantized.commitment

    def feature_map(self, tokens: ImageTokens) -> Float[Tensor, "batch dim h w"]:
        """What the decoder sees: the Gaussians' features splatted (zero where no Gaussian reaches), or the cells. Float32."""
        if tokens.gaussians is None:
            return tokens.features.mT.unflatten(-1, (tokens.height, tokens.width))
        return splat(tokens.gaussians, tokens.height, tokens.width, self.published_splat)

    def decode(self, tokens: ImageTokens) -> Float[Tensor, "batch 3 height width"]:
        """Images of tokens, float32 and not clamped."""
        (images,) = self._decode(self.feature_map(tokens))
        return images.float()

    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Images as their tokens tell them. Errors as those of `tokenize`."""
        return self.decode(self.tokenize(images)[0])

    forward = reconstruct

    def tokens_from(
        self,
        indices: Int64[Tensor, "batch n"],
        means: Float[Tensor, "batch n 2"] | None = None,
        scales: Float[Tensor, "batch n 2"] | None = None,
        rotations: Float[Tensor, "batch n 1"] | None = None,
        opacities: Float[Tensor, "batch n 1"] | None = None,
    ) -> ImageTokens:
        """Tokens as a file keeps them, with the codes looked up. The baseline's tokens are indices alone.

        Args:
            indices: which codes.
            means: within -1..1 of the map.
            scales: in cells of the map.
            rotations: radians.
            opacities: 0..1, where the architecture has them.

        Raises:
            ValueError: an index that is in no codebook of this size, or geometry that does not suit the architecture.
        """
        size = self.architecture.codebook_size
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise ValueError(f"code indices {int(indices.min())} to {int(indices.max())}, but the codebook has {size} codes, from 0")
        features = self.quantize.lookup(indices)
        if self.gs_embed is None:
            if means is not None or indices.shape[-1] != self.architecture.num_tokens:
                raise ValueError(f"the baseline's tokens are {self.architecture.num_tokens} indices per image and nothing else")
            return self._tokens(None, indices, features)
        if means is None or scales is None or rotations is None:
            raise ValueError("tokens of this network are Gaussians: give their means, scales and rotations")
        return self._tokens(Gaussians2D(means, scales, rotations, features, opacities), indices, features)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weights nearest to the image, by which an adaptive generator weight is measured."""
        weight = self.img_decoder.conv_out.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def _tokens(self, gaussians: Gaussians2D | None, indices: Tensor, features: Tensor) -> ImageTokens:
        if gaussians is not None:
            gaussians = replace(gaussians, features=features)
        return ImageTokens(gaussians, indices, features, *self.architecture.map_size)
