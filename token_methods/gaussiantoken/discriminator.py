"""PatchGAN (Isola et al. 2017): says of overlapping patches of an image whether they are photographs or reconstructions.

Source: GaussianToken (Dong et al. 2025, arXiv 2501.15619). Parameter names are the published checkpoint's keys below
`loss.discriminator.`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

MAX_WIDENING = 8
"""The channels double with every layer, up to this multiple of the first layer's."""


class PatchDiscriminator(nn.Module):
    """Convolutions 4 x 4 with batch normalisation: `num_layers` that halve the resolution, then two that keep it.

    Stays in training mode while it trains: each of the passes of a step is normalised by its own batch and moves the running
    statistics, as published.

    Args:
        channels: of the first layer.
        num_layers: how many layers halve the resolution; 3 sees patches of 70 x 70 pixels.
        in_channels: of the images.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3, in_channels: int = 3) -> None:
        super().__init__()
        self.num_layers = num_layers
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for index in range(1, num_layers + 1):
            before, width = width, channels * min(2**index, MAX_WIDENING)
            stride = 2 if index < num_layers else 1
            layers += [nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch 1 rows columns"]:
        """One logit per patch, above zero for photographs; images in [-1, 1].

        Raises:
            ValueError: the images are too small to leave a patch.
        """
        smallest = 3 * 2**self.num_layers  # the two last layers take one row and column each
        height, width = images.shape[-2:]
        if min(height, width) < smallest:
            raise ValueError(f"the discriminator cannot judge images of {width} x {height} pixels: both sides need {smallest} or more")
        return self.main(images)


def _initialise(module: nn.Module) -> None:
    """Normal weights of deviation 0.02, as the GAN literature since DCGAN (Radford et al. 2016)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
