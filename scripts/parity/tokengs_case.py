"""A TokenGS parity case: a folder with the weights, inputs and every intermediate result of one run of the published code.

`case.json` holds options, losses, tolerances; `tensors.safetensors` holds the tensors. `tokengs_comparisons` runs this project's
code on it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from token_methods.core.views import Views
from token_methods.core.weights import read_safetensors
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import RenderedViews, render
from token_methods.tokengs.config import LossWeights, TokenGSArchitecture
from token_methods.tokengs.losses import Perceptual
from token_methods.tokengs.network import IMAGENET_MEAN, IMAGENET_STD, TokenGSNetwork
from token_methods.tokengs.weights import load_weights

BACKGROUNDS = {"grey": 0.5, "white": 1.0, "black": 0.0}
INPUT_TOLERANCE = 1e-5
"""Of what the network is fed: images and cameras after reading, cropping and normalising."""
LOSS_TOLERANCE = 2e-5
"""Relative."""
FLIPPED_PIXELS, FLIP_SIZE = 0.005, 5e-3
"""Share of pixels where a Gaussian may fall on the other side of the 1/255 cut-off in float32, and what that may change."""
STRAY_ENTRIES, STRAY_STEPS = 0.01, 2.0
"""Share of entries with next to no gradient, which Adam moves by up to a learning rate in either direction; in rates per step."""


@dataclass(frozen=True)
class Comparison:
    """One tensor or number beside the published one."""

    name: str
    error: float
    tolerance: float
    passed: bool

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name:75} error {self.error:.3e}  tolerance {self.tolerance:.3e}"


class ParityCase:
    """What a case folder says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        self.options: dict[str, Any] = self.report["options"]
        self.tensors = read_safetensors(folder / "tensors.safetensors")
        self.height, self.width = self.options["img_size"]

    @property
    def weights(self) -> dict[str, Tensor]:
        return {key.removeprefix("weights/"): value for key, value in self.tensors.items() if key.startswith("weights/")}

    @property
    def has_mask(self) -> tuple[bool, ...]:
        return tuple(self.report["has_mask"])

    def network(self) -> TokenGSNetwork:
        network = TokenGSNetwork(architecture_from_options(self.options))
        load_weights(network, self.weights, str(self.folder))
        return network

    def context(self) -> Views:
        """The context views as the case stores them."""
        mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
        images = self.tensors["batch/input_first_views"][:, :, :3] * std + mean
        poses, intrinsics = self.tensors["batch/cam_to_world_input"], self.tensors["batch/intrinsics_input"]
        return Views(self.height, self.width, images=images, camera_to_world=poses, intrinsics=intrinsics)

    def target(self) -> Views:
        """The target views as the case stores them."""
        return Views(
            self.height,
            self.width,
            images=self.tensors["batch/images_output"],
            camera_to_world=self.tensors["batch/cam_view"].transpose(-1, -2).inverse(),
            intrinsics=self.tensors["batch/intrinsics"],
            masks=self.tensors.get("batch/masks_output"),
        )

    def loss_weights(self) -> LossWeights:
        return loss_weights_from_options(self.options)

    def lpips(self) -> Perceptual | None:
        """The stand-in that the cases were made with: the squared difference of images mapped to [-1, 1]."""
        if self.options["lambda_lpips"] == 0:
            return None
        return lambda prediction, target: (2 * prediction - 2 * target).square().mean(dim=(1, 2, 3))

    def render(self, gaussians: Gaussians3D, views: Views) -> RenderedViews:
        background = (BACKGROUNDS[self.options["bg_color"]],) * 3
        return render(gaussians, views, background, self.options["znear"], self.options["zfar"])

    def compare(self, name: str, value: Tensor) -> Comparison:
        """A tensor against the stored one of that name, at the case's own tolerance."""
        tolerance = self.report["tolerances_max_abs"].get(name, INPUT_TOLERANCE)
        if value.shape != self.tensors[name].shape:
            return Comparison(f"{name} {list(value.shape)} instead of {list(self.tensors[name].shape)}", float("inf"), tolerance, False)
        difference = (value.detach() - self.tensors[name]).abs()
        passed = bool(difference.max() <= tolerance)
        if not passed and (name.startswith("render/") or name.endswith("/images_pred")):
            depth_range = self.tensors[name].abs().max().item() if "depth" in name else 1.0
            flipped = (difference > tolerance).any(dim=2).float().mean().item()
            passed = flipped <= FLIPPED_PIXELS and difference.max().item() <= FLIP_SIZE * depth_range
        if not passed and name.startswith(("ttt_", "after_train/")) and not name.endswith("/images_pred"):
            stray = (difference > tolerance).float().mean().item()
            passed = stray <= STRAY_ENTRIES and difference.max().item() <= STRAY_STEPS * self._largest_move(name)
        return Comparison(name, difference.max().item(), tolerance, passed)

    def _largest_move(self, name: str) -> float:
        """Learning rate times steps that lie behind a tuned or trained tensor."""
        if name.startswith("after_train/"):
            return sum(step["lr"] for step in self.report["train"]["steps"])
        mode, variable = name.removeprefix("ttt_").split("/")
        return self.report["ttt"][mode]["lr"] * int(variable.removeprefix("variable_after_"))


def architecture_from_options(options: dict[str, Any]) -> TokenGSArchitecture:
    """The published options' network."""
    special = {
        "num_latents": options["num_latents"] if options["use_latent_bottleneck"] else None,
        "multiscale_encoder_layers": tuple(options["multiscale_encoder_layers"]) if options["use_multiscale_encoder"] else (),
    }
    known = {name: options[name] for name in TokenGSArchitecture.__dataclass_fields__ if name in options}
    return TokenGSArchitecture(**known | special)


def loss_weights_from_options(options: dict[str, Any]) -> LossWeights:
    """The published options' loss."""
    names = {name: name if name in options else f"lambda_{name}" for name in LossWeights.__dataclass_fields__}
    return LossWeights(**{name: options[published] for name, published in names.items()})


def compare_number(name: str, value: Tensor | float, expected: float, tolerance: float | None = None) -> Comparison:
    """A scalar against the published one; by default to a relative `LOSS_TOLERANCE`."""
    tolerance = LOSS_TOLERANCE * max(abs(expected), 1e-3) if tolerance is None else tolerance
    error = abs(float(torch.as_tensor(value).detach()) - expected)
    return Comparison(name, error, tolerance, error <= tolerance)
