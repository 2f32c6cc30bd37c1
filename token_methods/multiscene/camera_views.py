"""nerfstudio's `Cameras` to our `Views`."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from token_methods.core.cameras import opencv_from_opengl
from token_methods.core.views import Views


def views_from_cameras(cameras: Cameras) -> Views:
    """A group of pinhole cameras [n] or [1, n] of one size, as one scene's views without images (dataset frame).

    Raises:
        ValueError: the cameras differ in size, or are not perspective cameras.
    """
    cameras = cameras.reshape((-1,))
    sizes = torch.stack([cameras.width[:, 0], cameras.height[:, 0]], dim=-1)
    if not bool((sizes == sizes[0]).all()):
        raise ValueError(f"a group of cameras must have one size, got {sizes.unique(dim=0).tolist()} (width, height)")
    if not bool((cameras.camera_type == CameraType.PERSPECTIVE.value).all()):
        raise ValueError("only perspective cameras can be rendered: Gaussians are splatted through a pinhole projection")
    intrinsics = torch.cat([cameras.fx, cameras.fy, cameras.cx, cameras.cy], dim=-1).float()
    return Views(
        height=int(sizes[0, 1]),
        width=int(sizes[0, 0]),
        camera_to_world=opencv_from_opengl(cameras.camera_to_worlds.float())[None],
        intrinsics=intrinsics[None],
        times=None if cameras.times is None else cameras.times.reshape(1, -1).float(),
    )
