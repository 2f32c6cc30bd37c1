"""How far two sets of images lie apart in the features of a network that was trained on photographs.

Frechet distance (Heusel et al. 2017, arXiv 1706.08500) and the polynomial-kernel distance (Binkowski et al. 2018, arXiv 1801.01401).
With the features of FID's Inception network they are FID and KID; with those of VGG16, which LPIPS brings along, they are neither,
and have names of their own: VGG16-FD and VGG16-KD. Images go through the networks of `inception.py` and `perceptual.py`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from token_methods.core.perceptual import IMAGES_AT_ONCE, Lpips

VGG16_FEATURES = 512
"""Channels of VGG16's last convolution."""
ROWS_AT_ONCE = 1024
"""Rows of a kernel matrix that are computed at a time; bounds the memory of large sets."""


@torch.no_grad()
def vgg16_features(lpips: Lpips, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 512"]:
    """The last ReLU map of VGG16 (relu5_3), averaged over space; images in [0, 1] as for LPIPS, at least 16 x 16 pixels.

    Args:
        lpips: `load_lpips("vgg")`.

    Raises:
        ValueError: LPIPS with another backbone.
    """
    network = lpips.network
    if network.pnet_type != "vgg":
        raise ValueError(f"features of VGG16 cannot be had from LPIPS ({network.pnet_type}): pass load_lpips('vgg')")
    with torch.autocast(images.device.type, enabled=False):
        maps = [network.net(network.scaling_layer(2 * part.float() - 1))[-1] for part in images.split(IMAGES_AT_ONCE)]  # type: ignore[operator]
    return torch.cat([part.mean(dim=(2, 3)) for part in maps])


@torch.no_grad()
def frechet_distance(first: Float[Tensor, "n channels"], second: Float[Tensor, "m channels"]) -> float:
    """Squared Frechet distance of the Gaussians that fit two sets of features: |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)).

    Covariances have n - 1 in the denominator. Computed in float64. Below some more images than channels they do not have full rank,
    and the figure says more about the number of images than about the images.

    Raises:
        ValueError: features of different networks, or less than two images in a set.
    """
    _check(first, second)
    first, second = first.double(), second.double()
    shift = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    one, other = first.mT.cov(), second.mT.cov()
    # The trace of (A B)^(1/2) is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: real and stable, of full rank or not.
    values, vectors = torch.linalg.eigh(one)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    common = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return max(0.0, float(shift + one.trace() + other.trace() - 2 * common))


@torch.no_grad()
def kernel_distance(first: Float[Tensor, "n channels"], second: Float[Tensor, "m channels"]) -> float:
    """Squared maximum mean discrepancy of two sets of features with the kernel (x y / channels + 1)^3, estimated without bias.

    It needs no large sets, and lies around 0, also below, where the two come from one distribution. KID is the mean of such figures
    over draws from the sets; this is the one over all of them. Computed in float64.

    Raises:
        ValueError: features of different networks, or less than two images in a set.
    """
    _check(first, second)
    first, second = first.double(), second.double()
    n, m = len(first), len(second)
    within = (_kernel_sum(first, first) - _kernel_diagonal(first)) / (n * (n - 1))
    within += (_kernel_sum(second, second) - _kernel_diagonal(second)) / (m * (m - 1))
    return within - 2 * _kernel_sum(first, second) / (n * m)


def _kernel_sum(first: Float[Tensor, "n channels"], second: Float[Tensor, "m channels"]) -> float:
    rows = first.split(ROWS_AT_ONCE)
    return sum(float((part @ second.mT / first.shape[1] + 1).pow(3).sum()) for part in rows)


def _kernel_diagonal(features: Float[Tensor, "n channels"]) -> float:
    return float((features.square().mean(dim=1) + 1).pow(3).sum())


def _check(first: Tensor, second: Tensor) -> None:
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features of {first.shape[1]} and {second.shape[1]} channels: take one network for both sets")
    if min(len(first), len(second)) < 2:
        raise ValueError(f"sets of {len(first)} and {len(second)} images: a distance of distributions needs two images in each")
