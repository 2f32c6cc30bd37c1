"""From a dataset's frame to the frame that TokenGS works in: that of a context camera, at a common size."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from token_methods.core.cameras import Similarity, first_camera_frame, mean_camera_frame, normalise_batch
from token_methods.core.views import SceneBatch

CameraNormalisation = Literal["first_cam", "mean_cam"]
CameraScale = Literal["constant", "distance", "bound", "sparse_depth"]

DEPTH_PER_BASELINE = 2.5
"""Depth of a scene that has no sparse points, in multiples of the largest distance between its context cameras."""


def network_frame(batch: SceneBatch, normalisation: CameraNormalisation, scale_method: CameraScale, scene_scale: float) -> Similarity:
    """Dataset frame -> network frame of each scene, by its context cameras.

    Args:
        batch: cameras in the dataset frame.
        normalisation: world of the network: the frame of the first context camera, or of the mean context camera.
        scale_method: what `scene_scale` stands for: a factor on the scene's own unit (`constant`), the largest distance of a context
            camera from the first, the largest coordinate of a context camera, or the median depth of the scene's sparse points.
        scene_scale: see `scale_method`.

    Raises:
        ValueError: the context views have no cameras.
    """
    poses = batch.context.camera_to_world
    if poses is None:
        raise ValueError("TokenGS needs context views with cameras")
    frame = first_camera_frame(poses) if normalisation == "first_cam" else mean_camera_frame(poses)
    scale = _scale(normalise_batch(batch, frame), scale_method, scene_scale)
    return Similarity(frame.rotation, frame.translation * scale[:, None], scale)


def _scale(batch: SceneBatch, method: CameraScale, size: float) -> Float[Tensor, " batch"]:
    """Factor on the lengths of a batch whose cameras are already in the frame of the first or mean camera."""
    assert batch.context.camera_to_world is not None
    positions = batch.context.camera_to_world[..., :3, 3]
    baseline = (positions - positions[:, :1]).norm(dim=-1).amax(dim=1).clamp(min=1e-6)
    if method == "constant":
        return size / (torch.ones_like(baseline) if batch.unit is None else batch.unit.to(baseline))
    if method == "distance":
        return size / baseline
    if method == "bound":
        return size / positions.abs().amax(dim=(1, 2)).clamp(min=1e-6)
    depth = DEPTH_PER_BASELINE * baseline
    if batch.sparse_depth is not None:
        depth = torch.where(batch.sparse_depth > 0, batch.sparse_depth, depth)
    return size / depth
