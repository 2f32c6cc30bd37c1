"""A look at `transforms.json` before a dataparser reads it, so that a fault is named by file, frame and key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from token_methods.multiscene.errors import SceneError


def read_transforms(path: Path) -> dict[str, Any]:
    """Read and check a camera file in nerfstudio's or Blender's form.

    Raises:
        SceneError: missing, not JSON, without frames, or with a frame whose image or pose is missing, misshapen or not finite.
    """
    meta = read_json(path)
    if not isinstance(meta, dict):
        raise SceneError(f"{path} must hold a JSON object with the key 'frames', it holds a {type(meta).__name__}")
    frames = meta.get("frames")
    if not isinstance(frames, list):
        raise SceneError(f"{path} lacks the key 'frames' (a list of {{'file_path', 'transform_matrix'}}); write it with ns-process-data")
    if not frames:
        raise SceneError(f"{path} lists no images: 'frames' is empty")
    for number, frame in enumerate(frames):
        _check_frame(path, number, frame)
    return meta


INTRINSICS = {"fl_x": "focal length", "fl_y": "focal length", "cx": "principal point", "cy": "principal point", "w": "width", "h": "height"}
"""Keys of nerfstudio's form that a camera needs, for all frames at the top or in each of them; in pixels."""


def check_intrinsics(path: Path, meta: dict[str, Any]) -> None:
    """Refuse a nerfstudio `transforms.json` whose cameras are not complete.

    Raises:
        SceneError: an intrinsic parameter is missing, or no finite number, or not positive.
    """
    for key, meaning in INTRINSICS.items():
        for number, holder in [(None, meta)] if key in meta else enumerate(meta["frames"]):
            where = path if number is None else f"{path}: frames[{number}] ({holder['file_path']})"
            if key not in holder:
                raise SceneError(f"{where} lacks the key '{key}' ({meaning} in pixels); add it to the frame, or for all frames at the top")
            value = holder[key]
            if not isinstance(value, (int, float)) or not math.isfinite(value) or (meaning != "principal point" and value <= 0):
                raise SceneError(f"{where}: '{key}' ({meaning} in pixels) is {value!r}, which is no finite and positive number; correct it")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        SceneError: missing, or not JSON (with line and column).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SceneError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise SceneError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; write the file again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{path} cannot be read: {error}") from error


def _check_frame(path: Path, number: int, frame: Any) -> None:
    if not isinstance(frame, dict):
        raise SceneError(f"{path}: frames[{number}] must be an object, it is a {type(frame).__name__}")
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise SceneError(f"{path}: frames[{number}] lacks the key 'file_path'")
    pose = frame.get("transform_matrix")
    where = f"{path}: frames[{number}] ({name})"
    if pose is None:
        raise SceneError(f"{where} lacks the key 'transform_matrix': this image has no pose; remove the frame or compute its pose")
    rows = pose if isinstance(pose, list) else []
    if len(rows) not in (3, 4) or any(not isinstance(row, list) or len(row) != 4 for row in rows):
        raise SceneError(f"{where}: 'transform_matrix' must be a 4x4 camera-to-world matrix; remove the frame or compute its pose")
    numbers = [value for row in rows for value in row]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers):
        raise SceneError(f"{where}: 'transform_matrix' holds a value that is not a finite number; remove the frame or compute its pose")
