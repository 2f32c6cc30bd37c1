"""A camera that flies smoothly through the context cameras of a scene, and what it sees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline
from torch import Tensor

from token_methods.core.views import Views
from token_methods.multiscene.camera_views import views_from_cameras
from token_methods.multiscene.pipeline import FeedForwardPipeline


def fly_through(pipeline: FeedForwardPipeline, frames: int, longer_side: int) -> Iterator[Float[Tensor, "height width 3"]]:
    """Pictures from the first to the last context camera of the scene in hand, with the lens and shape of the first photograph."""
    scene = pipeline.model.scene
    assert scene is not None, "the scene is encoded when weights are loaded"
    views = path_views(pipeline.datamanager.train_dataset.cameras, frames, longer_side)
    for index in range(frames):
        assert views.camera_to_world is not None and views.intrinsics is not None
        here = slice(index, index + 1)
        view = Views(views.height, views.width, None, views.camera_to_world[:, here], views.intrinsics[:, here]).to(pipeline.device)
        yield pipeline.model.render_scene(scene, view).images[0, 0].permute(1, 2, 0)


def path_views(cameras: Cameras, frames: int, longer_side: int) -> Views:
    """Views along `smooth_path` with the first camera's intrinsics; the longer side of the image is at most `longer_side`, both even."""
    given = views_from_cameras(cameras[:1])
    poses = torch.cat([views_from_cameras(cameras[index : index + 1]).camera_to_world[0] for index in range(len(cameras))])  # type: ignore[index]
    assert given.intrinsics is not None
    shrink = min(1.0, longer_side / max(given.height, given.width))
    height, width = (max(2, 2 * round(side * shrink / 2)) for side in (given.height, given.width))
    fx, fy, cx, cy = given.intrinsics[0, 0].tolist()
    across, down = width / given.width, height / given.height
    intrinsics = torch.tensor([fx * across, fy * down, cx * across, cy * down])
    return Views(
        height=height,
        width=width,
        camera_to_world=smooth_path(poses, frames)[None],
        intrinsics=intrinsics.expand(1, frames, 4),
    )


def smooth_path(poses: Float[Tensor, "views 4 4"], frames: int) -> Float[Tensor, "frames 4 4"]:
    """Camera-to-world poses through all given ones in their order, from the first to the last, without a kink.

    Cubic splines with continuous curvature for position and orientation, about as long between two cameras as these are apart.
    """
    if len(poses) == 1:
        return poses.expand(frames, 4, 4)
    positions, rotations = poses[:, :3, 3].double().numpy(), Rotation.from_matrix(poses[:, :3, :3].double().numpy())
    distances = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    angles = (rotations[:-1].inv() * rotations[1:]).magnitude()
    # The square root of the distance keeps a spline from swinging out at uneven steps (centripetal parameters, Lee 1989).
    lengths = np.sqrt(distances / max(distances.mean(), 1e-12)) + angles + 1e-3
    knots = np.concatenate([[0.0], np.cumsum(lengths)])
    times = np.linspace(0.0, knots[-1], frames)
    path = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    path[:, :3, :3] = torch.from_numpy(RotationSpline(knots, rotations)(times).as_matrix())
    path[:, :3, 3] = torch.from_numpy(CubicSpline(knots, positions, bc_type="natural")(times))
    return path.float()
