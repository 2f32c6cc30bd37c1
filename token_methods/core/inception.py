"""The Inception network of FID: torch-fidelity brings the network, its weights are looked for in a file and never downloaded."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from token_methods.core.weights import WeightsError, compare_keys

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
"""The same weights, as pytorch-fid and torch-fidelity name them."""
SOURCE = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILES[0]}"
CACHE_FOLDER = Path("~/.cache/nerfstudio-tokens/inception")
INPUT_SIZE = 299
IMAGES_AT_ONCE = 32
"""Bounds the memory of long evaluations."""


class InceptionUnavailable(RuntimeError):
    """The weights are nowhere to be found, or torch-fidelity is not installed; the message says where they were looked for."""


class InceptionFeatures(nn.Module):
    """What FID compares: 2048 numbers per image, as pytorch-fid computes them. Frozen. Made by `load_inception`."""

    def __init__(self, network: FeatureExtractorInceptionV3) -> None:
        super().__init__()
        # In the order in which they are applied; the classifier is not.
        self.layers = nn.Sequential(*(layer for name, layer in network.named_children() if name != "fc"))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> InceptionFeatures:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 2048"]:
        """Features of images in [0, 1], which are not rounded to 8 bits, and resized to 299 x 299 without antialiasing."""
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self._features(part.float()) for part in images.split(IMAGES_AT_ONCE)])

    def _features(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images, size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
        return self.layers(2 * resized - 1).flatten(1)


def load_inception(path: Path | None = None) -> InceptionFeatures:
    """The network with its published weights.

    Args:
        path: the file; by default this project's cache folder and torch's are searched.

    Raises:
        InceptionUnavailable: no path was given and the weights are nowhere.
        WeightsError: the file is missing, broken or of another network.
    """
    if path is None:
        folders = (CACHE_FOLDER.expanduser(), Path(torch.hub.get_dir()) / "checkpoints")
        places = [folder / name for folder in folders for name in FILES]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise InceptionUnavailable(f"its Inception weights are not at {places[0]} (they are published at {SOURCE})")
    if find_spec("torch_fidelity") is None:
        raise InceptionUnavailable("its network comes with the package torch-fidelity, which is not installed")
    path = Path(path).expanduser()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        whole = io.BytesIO()
        torch.save({key: value for key, value in state.items() if isinstance(value, Tensor)}, whole)
    except Exception as error:  # torch.load fails in many ways on files that are cut short or are something else
        reason = type(error).__name__  # torch's own message advises to execute what is in the file
        raise WeightsError(f"{path} cannot be read as Inception weights of FID ({reason}): download {SOURCE}") from error
    whole.seek(0)
    return InceptionFeatures(_checked_network(str(path))("inception-v3-compat", ["2048"], whole))


def _checked_network(source: str) -> type[FeatureExtractorInceptionV3]:
    """The network, whose constructor would unpickle a file of any content and list all keys where they differ."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Network(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: dict[str, Tensor], strict: bool = True, assign: bool = False) -> object:
            own, counters = self.state_dict(), "num_batches_tracked"
            wanted, found = ({key: value for key, value in part.items() if not key.endswith(counters)} for part in (own, state))
            compare_keys(found, wanted, source, f"download {SOURCE}")
            return super().load_state_dict(found, strict=False)

    return Network
