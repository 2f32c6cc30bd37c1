"""Frames of one scene in the form that nerfstudio's viewer, renderer and exporter know."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset

from token_methods.multiscene.scenes import Scene
from token_methods.multiscene.view_loading import read_frame


class SceneDataset(InputDataset):
    """Some frames of a scene at their own size, undistorted; images are read when asked for."""

    def __init__(self, scene: Scene, frames: list[int]) -> None:
        self.scene = scene
        self.frames = frames
        super().__init__(_outputs_of(scene, frames))

    def get_numpy_image(self, image_idx: int) -> UInt8[np.ndarray, "height width 3"]:
        """The undistorted image.

        Raises:
            ImageError: it cannot be used.
        """
        return read_frame(self.scene, self.frames[image_idx])[0]

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """`image_idx`, `image` [height, width, 3], and `mask` [height, width, 1] where the scene has masks."""
        image, mask = read_frame(self.scene, self.frames[image_idx])
        pixels = torch.from_numpy(image)
        data: dict[str, Any] = {"image_idx": image_idx, "image": pixels.float() / 255 if image_type == "float32" else pixels}
        if mask is not None:
            data["mask"] = torch.from_numpy(mask)[..., None]
        return data


def _outputs_of(scene: Scene, frames: list[int]) -> DataparserOutputs:
    masks = scene.outputs.mask_filenames
    return dataclasses.replace(
        scene.outputs,
        image_filenames=[scene.image_filenames[frame] for frame in frames],
        mask_filenames=None if masks is None else [masks[frame] for frame in frames],
        cameras=scene.cameras(frames),
    )
