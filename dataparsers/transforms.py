"""Reading nerfstudio's `transforms.json`, with one clear error for each thing that can be wrong in it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

_NUMBERS = ("w", "h", "fl_x", "fl_y", "cx", "cy")
_RIGID_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Transforms:
    """What one `transforms.json` says about one camera that took all frames."""

    width: float
    height: float
    """Size in pixels that the intrinsics belong to; stored images may be smaller copies."""
    fx: float
    fy: float
    cx: float
    cy: float
    poses: Float[np.ndarray, "frames 4 4"]
    """Camera-to-world, OpenGL, float64, as written."""
    frames: tuple[dict[str, Any], ...]
    """The entries as written, in the order of the file."""
    source: dict[str, Any]
    """The whole file."""


def parse_transforms(text: bytes | str, where: str) -> Transforms:
    """Check and read the content of a `transforms.json`.

    Args:
        where: name of the file, for error messages.

    Raises:
        ValueError: not JSON, a key is missing or is no number, no frames, a frame without file or with a pose that is not 4x4, finite
            and rigid. The message names the file, the key or frame, and what is expected.
    """
    try:
        source = json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{where} is not valid JSON ({error}). Write it again or copy it anew.") from None
    if not isinstance(source, dict):
        raise ValueError(f"{where} must hold a JSON object with the keys {', '.join(_NUMBERS)} and frames, not a {type(source).__name__}.")
    missing = [key for key in (*_NUMBERS, "frames") if key not in source]
    if missing:
        raise ValueError(f"{where} lacks the key{'s' * (len(missing) > 1)} {', '.join(missing)}. One camera for all frames is expected.")
    values = {key: _number(source[key], f"{where}: {key}") for key in _NUMBERS}
    for key in ("w", "h", "fl_x", "fl_y"):
        if values[key] <= 0:
            raise ValueError(f"{where}: {key} must be positive, not {values[key]:g}.")
    frames = source["frames"]
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"{where}: frames must be a list with at least one frame.")
    poses = np.stack([_pose(frame, f"{where}: frames[{i}]") for i, frame in enumerate(frames)])
    return Transforms(values["w"], values["h"], values["fl_x"], values["fl_y"], values["cx"], values["cy"], poses, tuple(frames), source)


def split_frames(frames: int, split: str) -> list[int]:
    """Frames of a nerfstudio split of a scene whose frames are all given to the method, which chooses context and target views itself.

    `train` is every frame, in order; `val` and `test` are every eighth of the same frames, at least two where there are two.
    """
    if split == "train":
        return list(range(frames))
    if split not in ("val", "test"):
        raise ValueError(f"unknown split {split!r}; there are train, val and test.")
    eighth = list(range(4, frames, 8))
    return eighth if len(eighth) > 1 else sorted({frames // 3, (2 * frames) // 3})


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, not {str(value)[:40]!r}.")
    if (isinstance(value, int) and abs(value) > 10**12) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {str(value)[:40]}.")
    return float(value)


def _pose(frame: object, name: str) -> Float[np.ndarray, "4 4"]:
    if not isinstance(frame, dict):
        raise ValueError(f"{name} must be an object with file_path and transform_matrix.")
    for key in ("file_path", "transform_matrix"):
        if key not in frame:
            raise ValueError(f"{name} lacks the key {key}.")
    file_path = frame["file_path"]
    if not isinstance(file_path, str) or not file_path:
        raise ValueError(f"{name}.file_path must be the name of an image.")
    name = f"{name} ({file_path})"
    try:
        pose = np.array(frame["transform_matrix"], dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name}: transform_matrix must be 4x4 numbers.") from None
    if pose.shape != (4, 4):
        raise ValueError(f"{name}: transform_matrix must be 4x4 (camera-to-world), its shape is {'x'.join(map(str, pose.shape))}.")
    if not np.isfinite(pose).all():
        raise ValueError(f"{name}: transform_matrix holds NaN or infinity. Leave the frame out, or give its pose.")
    rotation = pose[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        rigid = np.abs(rotation @ rotation.T - np.eye(3)).max() <= _RIGID_TOLERANCE and np.linalg.det(rotation) > 0
    if not rigid or np.abs(pose[3] - (0, 0, 0, 1)).max() > _RIGID_TOLERANCE:
        raise ValueError(f"{name}: transform_matrix must be a rotation and a position above the row 0 0 0 1, without scale or reflection.")
    return pose
