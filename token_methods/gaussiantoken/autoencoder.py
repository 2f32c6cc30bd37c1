"""The convolutional ends of GaussianToken: an image to a feature map, and a feature map to an image.

Source: GaussianToken (Dong et al. 2025, arXiv 2501.15619), whose encoder and decoder are the residual networks of MAGVIT-v2 (Yu et
al. 2024) without attention. Parameter names are the published checkpoint's keys below `img_encoder.` and `img_decoder.`.

For speed on CUDA move the modules to `torch.channels_last` and run them under bfloat16 autocast; norms are fused with what follows them
and keep both (see `group_norm`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from token_methods.gaussiantoken.group_norm import norm_modulated, norm_swish, residual_sum

NORM_GROUPS = 32
NORM_EPS = 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    """The only normalisation of these networks.

    Raises:
        ValueError: the channels cannot be split into 32 groups.
    """
    if channels % NORM_GROUPS:
        raise ValueError(f"{channels} channels cannot be normalised in {NORM_GROUPS} groups: make channels * multiplier a multiple of 32")
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


def depth_to_space(x: Float[Tensor, "batch 4*channels height width"]) -> Float[Tensor, "batch channels 2*height 2*width"]:
    """Twice the resolution for a quarter of the channels, the place within the 2 x 2 block outermost in the channel axis.

    `y[b, c, 2i + s, 2j + t] = x[b, (2s + t) * channels + c, i, j]`; `nn.PixelShuffle` has that place innermost. The result is in
    channels_last memory, where whole runs of channels move.
    """
    batch, channels, height, width = x.shape
    blocks = x.unflatten(1, (2, 2, channels // 4)).permute(0, 4, 1, 5, 2, 3)
    return blocks.reshape(batch, 2 * height, 2 * width, channels // 4).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice; convolutions without bias. The skip is a 1 x 1 convolution where the channels change."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels height width"]:
        branch = self.conv1(norm_swish(x, self.norm1))
        branch = self.conv2(norm_swish(branch, self.norm2))
        return residual_sum(branch, self.nin_shortcut(x), NORM_GROUPS)


class Level(nn.Module):
    """The residual blocks of one resolution. With `recompute` only their inputs are kept for the backward pass."""

    def __init__(self, in_channels: int, out_channels: int, num_residual_blocks: int, recompute: bool) -> None:
        super().__init__()
        self.block = residual_blocks(in_channels, out_channels, num_residual_blocks)
        self.recompute = recompute

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels height width"]:
        for block in self.block:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        return x


def residual_blocks(in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(in_channels if index == 0 else out_channels, out_channels) for index in range(count)))


class DownLevel(Level):
    """A level of the encoder; all but the coarsest halve the resolution."""

    def __init__(self, in_channels: int, out_channels: int, num_residual_blocks: int, recompute: bool, coarsest: bool) -> None:
        super().__init__(in_channels, out_channels, num_residual_blocks, recompute)
        self.downsample = nn.Identity() if coarsest else nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        return self.downsample(super().forward(x))


class Upsample(nn.Module):
    """Twice the resolution, channels unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels 2*height 2*width"]:
        return depth_to_space(self.conv1(x))


class UpLevel(Level):
    """A level of the decoder; all but the finest double the resolution."""

    def __init__(self, in_channels: int, out_channels: int, num_residual_blocks: int, recompute: bool, finest: bool) -> None:
        super().__init__(in_channels, out_channels, num_residual_blocks, recompute)
        self.upsample = nn.Identity() if finest else Upsample(out_channels)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        return self.upsample(super().forward(x))


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and shift come from the deviation and mean of the decoder's input over the whole map.

    Every token therefore changes the whole image a little. The scale is not "one plus".
    """

    def __init__(self, style_channels: int, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(style_channels, channels)
        self.beta = nn.Linear(style_channels, channels)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], style: Float[Tensor, "batch style_channels h w"]
    ) -> Float[Tensor, "batch channels height width"]:
        # Outside autocast: a scale that is rounded to 16 bits shows in the whole image, and these are a few numbers per image.
        precision = self.gamma.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            variance, mean = torch.var_mean(style.to(precision), dim=(2, 3), correction=1)
            scale, shift = self.gamma((variance + NORM_EPS).sqrt()), self.beta(mean)
            return norm_modulated(x, scale, shift, NORM_GROUPS, NORM_EPS)


class ImageEncoder(nn.Module):
    """Images to a feature map at 1 / 2^(levels - 1) of the resolution.

    Args:
        channels: of the finest level, times its multiplier.
        multipliers: one per level, finest first.
        num_residual_blocks: per level, and once more at the coarsest.
        out_channels: of the feature map.
        checkpoint_levels: in how many of the finest levels activations are recomputed in the backward pass, to save memory.

    Raises:
        ValueError: channels that are no multiple of 32.
    """

    def __init__(
        self, channels: int, multipliers: Sequence[int], num_residual_blocks: int, out_channels: int, checkpoint_levels: int = 0
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(multipliers) - 1)
        widths = [channels * multiplier for multiplier in multipliers]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            DownLevel(before, width, num_residual_blocks, level < checkpoint_levels, coarsest=level == len(widths) - 1)
            for level, (before, width) in enumerate(zip([channels, *widths[:-1]], widths, strict=True))
        )
        self.mid_block = residual_blocks(widths[-1], widths[-1], num_residual_blocks)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch out_channels h w"]:
        """Feature map of images in [-1, 1].

        Raises:
            ValueError: the sides of the images are no multiples of the down-sampling factor.
        """
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"images of {width} x {height} pixels cannot be encoded: crop both sides to multiples of {self.factor}")
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(norm_swish(self.mid_block(x), self.norm_out))


class ImageDecoder(nn.Module):
    """A feature map to images at 2^(levels - 1) times the resolution. Arguments and errors as those of `ImageEncoder`."""

    def __init__(
        self, channels: int, multipliers: Sequence[int], num_residual_blocks: int, in_channels: int, checkpoint_levels: int = 0
    ) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        entering = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.mid_block = residual_blocks(widths[-1], widths[-1], num_residual_blocks)
        self.up = nn.ModuleList(
            UpLevel(before, width, num_residual_blocks, level < checkpoint_levels, finest=level == 0)
            for level, (before, width) in enumerate(zip(entering, widths, strict=True))
        )
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(in_channels, width) for width in entering)
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, features: Float[Tensor, "batch in_channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Images, about in [-1, 1] and not clamped."""
        x = self.mid_block(self.conv_in(features))
        for adaptive, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = level(adaptive(x, features))
        return self.conv_out(norm_swish(x, self.norm_out))
