"""What the tests of GaussianToken's commands look at: evaluations, networks without commands, and two states bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.scripts.eval import ComputePSNR
from PIL import Image
from torch import Tensor

from token_methods.core.metrics import psnr
from token_methods.gaussiantoken.network import GaussianTokenNetwork


def evaluated(run: Path, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What `ns-eval` writes: the summary of its JSON file, and the rows of pictures beside the images."""
    ComputePSNR(load_config=run / "config.yml", output_path=folder / "metrics.json", render_output_path=folder / "images").main()
    report = json.loads((folder / "images" / "per_image.json").read_text())
    return json.loads((folder / "metrics.json").read_text())["results"], report["images"]


def measured(network: GaussianTokenNetwork, path: Path) -> float:
    """PSNR of a network on a picture of its size, without any of our commands."""
    image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        reconstruction = (network.reconstruct(image * 2 - 1) + 1) / 2
    return psnr(reconstruction.clamp(0, 1), image).item()


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two nested states are not equal bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [found for key in one for found in differences(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        return [found for index, pair in enumerate(zip(one, other)) for found in differences(*pair, f"{name}/{index}")]
    same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
    return [] if same else [name]
