"""Turns a seed into a scene folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dataparsers.procedural.paths import find_path
from dataparsers.procedural.raycast import Raycaster
from dataparsers.procedural.scenes import make_world
from dataparsers.procedural.storage import appearing_folder, write_frame, write_points, write_transforms

GENERATOR_VERSION = 1
"""Part of every cache folder's name: raise it when the same seed makes another picture."""
_POINTS = 600
_FIELD_OF_VIEW = (50.0, 75.0)
"""Degrees, along the longer side of the picture."""
_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def generate_scene(
    folder: Path,
    *,
    seed: int,
    index: int,
    height: int,
    width: int,
    frames: int,
    samples: int,
    device: torch.device,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Make scene `index` of `seed` as `folder`; `advance` is called after each frame.

    The world, the lens and the walk depend on seed and index only.
    """
    rng = np.random.default_rng([seed, index])
    world = make_world(rng)
    raycaster = Raycaster(world.scene, device)
    poses = find_path(raycaster, world.stage, rng)(np.linspace(0, 1, frames))
    focal = 0.5 * max(height, width) / math.tan(math.radians(rng.uniform(*_FIELD_OF_VIEW)) / 2)
    intrinsics = (focal, focal, width / 2, height / 2)
    raycaster.scene.exposure = _exposure(raycaster, poses)
    points: list[np.ndarray] = []
    colours: list[np.ndarray] = []
    with appearing_folder(folder) as unfinished:
        for i, pose in enumerate(poses):
            colour, depth = raycaster.render(torch.from_numpy(pose), intrinsics, height, width, samples)
            picture = (colour * 255).round().byte().cpu().numpy()
            write_frame(unfinished, i, picture, depth.cpu().numpy())
            xyz, rgb = _surface_points(pose, intrinsics, picture, depth.cpu().numpy(), math.ceil(_POINTS / frames), world.scene.sky_radius, rng)
            points.append(xyz)
            colours.append(rgb)
            advance()
        write_points(unfinished / "sparse_pc.ply", np.concatenate(points), np.concatenate(colours))
        write_transforms(unfinished, height, width, intrinsics, poses @ _OPENGL)


def _exposure(raycaster: Raycaster, poses: np.ndarray) -> float:
    """One exposure for the whole walk, as a camera with its exposure locked: the typical brightness becomes a middle grey."""
    size = 24
    light = torch.stack(
        [
            raycaster.render(torch.from_numpy(poses[i]), (size, size, size / 2, size / 2), size, size, 1, display=False)[0]
            for i in (0, len(poses) // 2, len(poses) - 1)
        ]
    )
    luminance = light @ light.new_tensor([0.2126, 0.7152, 0.0722])
    return float(0.3 / luminance.clamp_min(1e-4).log().mean().exp())


def _surface_points(
    pose: np.ndarray,
    intrinsics: tuple[float, float, float, float],
    picture: np.ndarray,
    depth: np.ndarray,
    count: int,
    sky_radius: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Some of a frame's pixels as coloured points in the world, sky left out."""
    fx, fy, cx, cy = intrinsics
    rows, columns = rng.integers(depth.shape[0], size=2 * count), rng.integers(depth.shape[1], size=2 * count)
    z = depth[rows, columns]
    camera = np.stack([(columns + 0.5 - cx) / fx * z, (rows + 0.5 - cy) / fy * z, z], axis=1)
    near = np.linalg.norm(camera, axis=1) < 0.6 * sky_radius
    camera, rows, columns = camera[near][:count], rows[near][:count], columns[near][:count]
    return (camera @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32), picture[rows, columns]
