"""What nerfstudio is told about pictures that no camera with a known pose took.

A picture lies in the plane z = 0, one unit high, its middle in the origin; its camera stands at (0, 0, 1) and looks down the z axis. With a
focal length of one picture height it fills the view exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.scene_box import SceneBox


def picture_outputs(names: list[Path], height: int, width: int, **metadata: Any) -> DataparserOutputs:
    """Pictures with one nominal camera each.

    Args:
        names: files, members of archives as `ARCHIVE.zip/MEMBER`, or names of what is in `metadata["pixels"]`.
        height, width: size of all cameras, in pixels.
        metadata: what else is known; `image_set` is True in every case.
    """
    poses = torch.eye(4)[None, :3].repeat(len(names), 1, 1)
    poses[:, 2, 3] = 1.0
    cameras = Cameras(
        camera_to_worlds=poses,
        fx=float(height),
        fy=float(height),
        cx=width / 2,
        cy=height / 2,
        width=width,
        height=height,
        camera_type=CameraType.PERSPECTIVE,
    )
    box = SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    return DataparserOutputs(image_filenames=names, cameras=cameras, scene_box=box, metadata={"image_set": True, **metadata})
