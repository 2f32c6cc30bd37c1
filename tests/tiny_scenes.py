"""Tiny scenes on disk for tests: photographs of the inside of a coloured box, consistent in 3D, in nerfstudio's form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_tiny_scenes(folder: Path, num_scenes: int = 3, **options: object) -> list[Path]:
    """Write scenes `scene_0`, `scene_1`, ... that differ in colours and cameras; options are those of `write_tiny_scene`."""
    return [write_tiny_scene(folder / f"scene_{number}", seed=number, **options) for number in range(num_scenes)]  # type: ignore[arg-type]


def write_tiny_scene(
    folder: Path,
    seed: int = 0,
    num_frames: int = 12,
    width: int = 32,
    height: int = 24,
    scale: float = 1.0,
    with_masks: bool = False,
    with_points: bool = False,
) -> Path:
    """Write `transforms.json` and `images/*.png`: a short arc of cameras in a box of half size `4 * scale` with smooth colours."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    waves, phases = rng.uniform(0.5, 1.5, (3, 3)), rng.uniform(0, 6.28, 3)
    focal = 0.9 * width
    frames = []
    for index in range(num_frames):
        angle = 0.1 * index + seed
        pose = _look(np.array([np.cos(angle), np.sin(angle), 0.2 * np.sin(3 * angle)]) * scale, angle)
        name = f"images/frame_{index:03d}.png"
        Image.fromarray(_picture(pose, width, height, focal, scale, waves, phases)).save(folder / name)
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
        if with_masks:
            (folder / "masks").mkdir(exist_ok=True)
            mask = np.full((height, width), 255, dtype=np.uint8)
            mask[: height // 2] = 0
            Image.fromarray(mask).save(folder / f"masks/frame_{index:03d}.png")
            frames[-1]["mask_path"] = f"masks/frame_{index:03d}.png"
    meta = {"fl_x": focal, "fl_y": focal, "cx": width / 2, "cy": height / 2, "w": width, "h": height, "camera_model": "OPENCV"}
    if with_points:
        points = 4 * scale * rng.uniform(-1, 1, (500, 3))
        points[np.arange(500), rng.integers(0, 3, 500)] = 4 * scale * rng.choice([-1, 1], 500)
        header = "ply\nformat ascii 1.0\nelement vertex 500\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
        (folder / "points.ply").write_text(header + "\n".join(" ".join(map(str, point)) for point in points) + "\n")
        meta["ply_file_path"] = "points.ply"
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))
    return folder


def _look(position: np.ndarray, angle: float) -> np.ndarray:
    """Camera-to-world (OpenGL axes) at `position`, looking outwards along `angle` in the horizontal plane."""
    back = -np.array([np.cos(angle), np.sin(angle), 0.0])
    right = np.cross([0.0, 0.0, 1.0], back)
    pose = np.eye(4)
    pose[:3, :4] = np.stack([right, np.cross(back, right), back, position], axis=1)
    return pose


def _picture(pose: np.ndarray, width: int, height: int, focal: float, scale: float, waves: np.ndarray, phases: np.ndarray) -> np.ndarray:
    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(column - width / 2) / focal, -(row - height / 2) / focal, -np.ones_like(row)], axis=-1) @ pose[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.min((np.sign(rays) * 4 * scale - pose[:3, 3]) / rays, axis=-1, where=rays != 0, initial=np.inf)
    hit = (pose[:3, 3] + reach[..., None] * rays) / scale
    return (127.5 + 100 * np.sin(hit @ waves.T + phases)).round().astype(np.uint8)
