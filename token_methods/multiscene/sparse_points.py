"""Sparse points of a scene (structure from motion) and how deep they lie in each view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from torch import Tensor

from token_methods.core.cameras import rigid_inverse
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.undistortion import Pinhole

MAX_POINTS = 20_000
"""Medians need no more; larger clouds are thinned evenly."""


def median_depths(
    points: Float[Tensor, "n 3"], camera_to_world: Float[Tensor, "frames 4 4"], pinholes: list[Pinhole]
) -> Float[Tensor, " frames"]:
    """Median depth of the points that fall in front of each camera and inside its image; NaN where none does."""
    points = points[:: max(1, len(points) // MAX_POINTS)].double()
    depths = torch.full((len(pinholes),), float("nan"), dtype=torch.float64)
    for index, (world_to_camera, camera) in enumerate(zip(rigid_inverse(camera_to_world.double()), pinholes)):
        x, y, z = (points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]).unbind(-1)
        u, v = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
        seen = z[(z > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)]
        if len(seen):
            depths[index] = seen.median()
    return depths.float()


def points_beside_transforms(folder: Path, meta: dict[str, Any], outputs: DataparserOutputs) -> Float[Tensor, "n 3"] | None:
    """The points that `ply_file_path` of a transforms.json names, in the dataset frame.

    They are stored in the coordinates of the file's poses, which `applied_transform` tells from the original ones.
    nerfstudio's own loader needs open3d for this, which is slow to import and not everywhere.
    """
    name = meta.get("ply_file_path")
    if not isinstance(name, str) or not (folder / name).is_file():
        return None
    saved_to_dataset = torch.eye(4, dtype=torch.float64)
    saved_to_dataset[:3] = outputs.dataparser_transform.double()
    if "applied_transform" in meta:
        applied = torch.eye(4, dtype=torch.float64)
        applied[:3] = torch.tensor(meta["applied_transform"], dtype=torch.float64)[:3]
        saved_to_dataset = saved_to_dataset @ torch.linalg.inv(applied)
    points = torch.from_numpy(read_ply_points(folder / name))
    return ((points @ saved_to_dataset[:3, :3].T + saved_to_dataset[:3, 3]) * outputs.dataparser_scale).float()


_PLY_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    **{f"{kind}{8 * size}": f"{kind[0]}{size}" for kind in ("int", "uint") for size in (1, 2, 4)},
    "float32": "f4",
    "float64": "f8",
}


def read_ply_points(path: Path) -> Float[np.ndarray, "n 3"]:
    """Positions of the vertices of a PLY file (ASCII or binary; the vertices come first), float64.

    Raises:
        SceneError: not a PLY file with x, y, z, or truncated.
    """
    content = path.read_bytes()
    header, found, body = content.partition(b"end_header\n")
    if not content.startswith(b"ply") or not found:
        raise SceneError(f"{path} is not a PLY point cloud; make it anew or remove 'ply_file_path' from transforms.json")
    form, count, properties, in_vertices = "", 0, [], False
    for words in (line.split() for line in header.decode("ascii", errors="replace").splitlines()):
        if words[:1] == ["format"]:
            form = words[1]
        elif words[:1] == ["element"]:
            in_vertices = words[1] == "vertex"
            count = int(words[2]) if in_vertices else count
        elif words[:1] == ["property"] and in_vertices:
            properties.append((words[-1], _PLY_TYPES.get(words[1], "")))
    try:
        if form == "ascii":
            names = [name for name, _ in properties]
            rows = np.loadtxt(body.decode("ascii").splitlines()[:count], ndmin=2)
            return rows[:, [names.index(axis) for axis in "xyz"]].astype(np.float64)
        order = ">" if form == "binary_big_endian" else "<"
        vertices = np.frombuffer(body, dtype=[(name, order + kind) for name, kind in properties], count=count)
        return np.stack([vertices[axis] for axis in "xyz"], axis=-1).astype(np.float64)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise SceneError(f"{path} is truncated or has no x, y, z ({error}); make it anew or remove 'ply_file_path'") from error
