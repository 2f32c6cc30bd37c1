"""One procedural scene as a folder that plain `nerfstudio-data` reads too.

transforms.json   OpenGL camera-to-world, pinhole intrinsics, frames in walking order
images/           8-bit sRGB PNG
depth/            16-bit PNG, thousandths of a scene unit along the optical axis (nerfstudio's default depth_unit_scale_factor, 1e-3)
sparse_pc.ply     coloured points on the surfaces, as structure from motion would leave them
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

DEPTH_UNIT = 1e-3
_POINT = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


@contextmanager
def appearing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends well, and vanishes when it does not.

    If somebody else finished the same folder meanwhile, theirs stays.

    Raises:
        OSError: the folder cannot be made or written; the message names it and says what to do.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise OSError(f"cannot make the scene folder {folder}: {error.strerror}. Give --data a folder that can be written.") from error
    try:
        yield unfinished
        unfinished.chmod(0o755)  # mkdtemp's is private
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not (folder / "transforms.json").is_file():
                raise
    except OSError as error:
        raise OSError(f"cannot write the scene folder {folder}: {error.strerror or error}. Free space or name another.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_frame(folder: Path, index: int, colour: UInt8[np.ndarray, "height width 3"], depth: Float[np.ndarray, "height width"]) -> None:
    """Picture and depth (scene units) of one frame."""
    for kind in ("images", "depth"):
        (folder / kind).mkdir(exist_ok=True)
    Image.fromarray(colour).save(folder / frame_path("images", index))
    Image.fromarray(np.clip(np.rint(depth / DEPTH_UNIT), 0, 65535).astype(np.uint16)).save(folder / frame_path("depth", index))


def frame_path(kind: str, index: int) -> str:
    return f"{kind}/frame_{index:05d}.png"


def write_transforms(
    folder: Path, height: int, width: int, intrinsics: tuple[float, float, float, float], poses: Float[np.ndarray, "frames 4 4"]
) -> None:
    """`transforms.json` for OpenGL camera-to-world poses."""
    fx, fy, cx, cy = intrinsics
    content = {
        "w": width,
        "h": height,
        "fl_x": fx,
        "fl_y": fy,
        "cx": cx,
        "cy": cy,
        "k1": 0.0,
        "k2": 0.0,
        "p1": 0.0,
        "p2": 0.0,
        "camera_model": "OPENCV",
        "ply_file_path": "sparse_pc.ply",
        "frames": [
            {"file_path": frame_path("images", i), "depth_file_path": frame_path("depth", i), "transform_matrix": pose.tolist()}
            for i, pose in enumerate(poses)
        ],
    }
    (folder / "transforms.json").write_text(json.dumps(content, indent=1))


def write_points(path: Path, xyz: Float[np.ndarray, "points 3"], rgb: UInt8[np.ndarray, "points 3"]) -> None:
    """Binary PLY with x y z and red green blue."""
    points = np.empty(len(xyz), _POINT)
    points["xyz"], points["rgb"] = xyz, rgb
    path.write_bytes(_header(len(xyz)) + points.tobytes())


def read_points(path: Path) -> tuple[Float[np.ndarray, "points 3"], UInt8[np.ndarray, "points 3"]]:
    """What `write_points` wrote.

    Raises:
        ValueError: the file is another kind of PLY or was cut.
    """
    content = path.read_bytes()
    head = content[: content.find(b"end_header\n") + len(b"end_header\n")]
    body = content[len(head) :]
    if head != _header(len(body) // _POINT.itemsize) or len(body) % _POINT.itemsize:
        raise ValueError(f"{path} is not a point file of a procedural scene. Delete the scene's folder, it is made again.")
    points = np.frombuffer(body, _POINT)
    return points["xyz"].copy(), points["rgb"].copy()


def _header(count: int) -> bytes:
    fields = [f"property float {axis}" for axis in "xyz"] + [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    return "\n".join(["ply", "format binary_little_endian 1.0", f"element vertex {count}", *fields, "end_header", ""]).encode()
