"""LPIPS (Zhang et al. 2018, version 0.1): how different two images look to a network trained on photographs.

torchmetrics brings the network and its linear heads; the backbone's weights are looked for in a file, in this project's cache
and in torchvision's, and are downloaded last.
"""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from token_methods.core.weights import WeightsError, compare_keys, read_safetensors

Backbone = Literal["vgg", "alex"]
CACHE_FOLDER = Path("~/.cache/nerfstudio-tokens/lpips")
"""Where `lpips_vgg.safetensors` and `lpips_alex.safetensors` are looked for."""
BACKBONE_FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
"""torchvision's ImageNet weights."""
IMAGES_AT_ONCE = 8
"""Pairs compared at a time when no gradient is wanted; bounds the memory of long evaluations."""


class LpipsUnavailable(RuntimeError):
    """The weights are nowhere to be found; the message says where they were looked for."""


class Lpips(nn.Module):
    """Perceptual distance of image pairs, frozen. Made by `load_lpips`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Lpips:
        """Stays in evaluation mode (the heads have dropout)."""
        return self

    def forward(self, prediction: Float[Tensor, "n 3 height width"], target: Float[Tensor, "n 3 height width"]) -> Float[Tensor, " n"]:
        """One distance per pair; images in [0, 1], not clipped. Differentiable. At least 32 x 32 pixels."""
        with torch.autocast(prediction.device.type, enabled=False):
            pairs = [(prediction.float(), target.float())]
            if not torch.is_grad_enabled():
                pairs = list(zip(*(images.split(IMAGES_AT_ONCE) for images in pairs[0]), strict=True))
            return torch.cat([self.network(2 * x - 1, 2 * y - 1).flatten() for x, y in pairs])


def load_lpips(net: Backbone = "vgg", path: Path | None = None) -> Lpips:
    """LPIPS with its published weights.

    Args:
        net: backbone; papers report `vgg` (this field) or `alex` (faster).
        path: a safetensors file with keys `features.I.weight|bias` and `linK.weight`, or torchvision's `.pth` of the backbone.
            By default: the project's cache folder, torchvision's cache, download.

    Raises:
        LpipsUnavailable: no path was given and the weights are nowhere.
        WeightsError: the file is missing, broken or of another network.
    """
    from torchmetrics.functional.image.lpips import _LPIPS

    source, weights = _find_weights(net, path)
    network = _LPIPS(pretrained=True, net=net, pnet_rand=True)
    keys = {f"features.{'.'.join(key.split('.')[-2:])}": f"net.{key}" for key in network.net.state_dict()}
    heads = {f"lin{index}.weight": f"lin{index}.model.1.weight" for index in range(5)}
    if any(key.startswith("lin") for key in weights):
        keys |= heads
    own = network.state_dict()
    compare_keys(weights, {key: own[ours] for key, ours in keys.items()}, source, f"LPIPS ({net}) needs the weights of its own backbone")
    network.load_state_dict({keys[key]: value for key, value in weights.items()}, strict=False)
    return Lpips(network)


def _find_weights(net: Backbone, path: Path | None) -> tuple[str, dict[str, Tensor]]:
    """Where the weights were found, and they: of the backbone, and of the heads if the file has them."""
    name = BACKBONE_FILES[net]
    cached = CACHE_FOLDER.expanduser() / f"lpips_{net}.safetensors"
    hub = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path is None:
        path = next((place for place in (cached, hub) if place.is_file()), None)
    if path is None:
        try:
            from torchvision.models import AlexNet_Weights, VGG16_Weights

            url = (VGG16_Weights if net == "vgg" else AlexNet_Weights).IMAGENET1K_V1.url
            torch.hub.download_url_to_file(url, _made(hub), hash_prefix=name.split("-")[-1].removesuffix(".pth"))
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise LpipsUnavailable(
                f"no weights for LPIPS ({net}): neither {cached} nor {hub} is there, and torchvision cannot download {name} ({error})"
            ) from error
        path = hub
    path = Path(path).expanduser()
    if path.suffix == ".safetensors":
        return str(path), read_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return str(path), {key: value for key, value in state.items() if key.startswith("features.")}
    except Exception as error:  # torch.load fails in many ways on files that are cut short or are something else
        reason = type(error).__name__  # torch's own message advises to execute what is in the file
        raise WeightsError(f"{path} cannot be read as torchvision's {name} ({reason}): delete it or name another file") from error


def _made(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path)
