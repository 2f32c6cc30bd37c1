"""A TokenGS parity case: a folder with the scenes, weights and every intermediate result of one run of the published code.

`case.json` holds options, losses, tolerances; `tensors.safetensors` holds the tensors. `tokengs_comparisons` runs this project's
code on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.parity.comparison import Comparison, NotACase, compare_tensor, out, read_report
from scripts.parity.tokengs_options import (
    BACKGROUNDS,
    architecture_from_options,
    check_options,
    image_size,
    loss_weights_from_options,
)
from token_methods.core.views import Views
from token_methods.core.weights import WeightsError, key_differences, read_safetensors
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import RenderedViews, render
from token_methods.tokengs.config import LossWeights, TokenGSArchitecture
from token_methods.tokengs.losses import Perceptual
from token_methods.tokengs.network import IMAGENET_MEAN, IMAGENET_STD, TokenGSNetwork
from token_methods.tokengs.weights import load_weights, network_part, published_tensors

FLIPPED_PIXELS, FLIP_SIZE = 0.005, 5e-3
"""Share of pixels where a Gaussian may fall on the other side of the 1/255 cut-off in float32, and what that may change."""
STRAY_ENTRIES, STRAY_STEPS = 0.01, 2.0
"""Share of entries with next to no gradient, which Adam moves by up to a learning rate in either direction; in rates per step."""


class ParityCase:
    """What a folder of a model case says.

    Raises:
        NotACase: something is missing in it, or an option has no counterpart here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = read_report(folder)
        where = f"{folder / 'case.json'}"
        options = self.report.get("options")
        if not isinstance(options, dict):
            raise NotACase(f"{where} has no options")
        check_options(options, where)
        self.options: dict[str, Any] = options
        self.tensors = read_tensors(folder)
        self.height, self.width = image_size(options, where)

    @property
    def architecture(self) -> TokenGSArchitecture:
        return architecture_from_options(self.options)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {key.removeprefix("weights/"): value for key, value in self.tensors.items() if key.startswith("weights/")}

    @property
    def has_mask(self) -> tuple[bool, ...]:
        """Per scene: whether its masks supervise alpha."""
        return tuple(self.report.get("has_mask") or (False,) * self.options["batch_size"])

    def network(self) -> TokenGSNetwork:
        """The network with the case's weights.

        Raises:
            NotACase: they do not fit (`compare_weights` says how), or hold NaN.
        """
        network = TokenGSNetwork(self.architecture)
        try:
            load_weights(network, self.weights, str(self.folder))
        except WeightsError as error:
            raise NotACase(str(error)) from None
        return network

    def compare_weights(self) -> Iterator[Comparison]:
        """Every key that is missing, left over or misshapen; nothing if the published weights fit the network."""
        differences = key_differences(network_part(self.weights), published_tensors(self.architecture))
        for kind in ("missing", "unexpected", "misshapen"):
            for key in getattr(differences, kind):
                yield out(f"weights/{key}", kind)

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

    def lpips(self) -> Perceptual:
        """The stand-in that the cases were made with: the squared difference of images mapped to [-1, 1]."""
        return lambda prediction, target: (2 * prediction - 2 * target).square().mean(dim=(1, 2, 3))

    def render(self, gaussians: Gaussians3D, views: Views) -> RenderedViews:
        background = (BACKGROUNDS[self.options["bg_color"]],) * 3
        return render(gaussians, views, background, self.options["znear"], self.options["zfar"])

    def stored(self, prefix: str) -> list[str]:
        """Names of the stored tensors that begin so."""
        return [name for name in self.tensors if name.startswith(prefix)]

    def compare_stored(self, values: Mapping[str, Tensor | None]) -> Iterator[Comparison]:
        """`compare` for those of the named tensors that the case stores."""
        for name, value in values.items():
            if name in self.tensors:
                yield out(name, "has no counterpart here") if value is None else self.compare(name, value)

    def compare(self, name: str, value: Tensor) -> Comparison:
        """A tensor against the stored one of that name, at the case's own tolerance."""
        expected = self.tensors[name]
        compared = compare_tensor(name, value, expected, self.report.get("tolerances_max_abs", {}).get(name))
        if compared.passed or value.shape != expected.shape:
            return compared
        outside = (value.detach() - expected).abs() > compared.tolerance
        if name.startswith("render/") or name.endswith("/images_pred"):
            share, what = outside.any(dim=2).float().mean().item(), "pixels at the cut-off"
            limit = FLIP_SIZE * (expected.abs().max().item() if "depths" in name else 1.0)
            allowed = share <= FLIPPED_PIXELS and compared.error <= limit
        elif name.startswith(("ttt_", "after_train/")):
            share, what = outside.float().mean().item(), "entries without gradient"
            allowed = share <= STRAY_ENTRIES and compared.error <= STRAY_STEPS * self._largest_move(name)
        else:
            return compared
        return Comparison(name, compared.error, compared.tolerance, allowed, f"{share:.2%} of the {what}" if allowed else "")

    def _largest_move(self, name: str) -> float:
        """Learning rate times steps that lie behind a tuned or trained tensor."""
        if name.startswith("after_train/"):
            return sum(step["lr"] for step in self.report["train"]["steps"])
        mode, variable = name.removeprefix("ttt_").split("/")
        return self.report["ttt"][mode]["lr"] * int(variable.removeprefix("variable_after_"))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """`tensors.safetensors` of a case folder.

    Raises:
        NotACase: there is none, or it is damaged.
    """
    try:
        return read_safetensors(folder / "tensors.safetensors")
    except WeightsError as error:
        raise NotACase(str(error)) from None
