"""Turns a seed into a scene folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class SceneJob:
    """One scene to be made. World, lens and walk depend on seed and index only."""

    folder: str
    """Absolute path of the scene's folder."""
    seed: int
    index: int
    height: int
    width: int
    """Pixels."""
    frames: int
    samples: int
    """Rays per pixel."""


def generate_scene(job: SceneJob, device: torch.device, advance: Callable[[], None] = lambda: None) -> None:
    """Make a scene folder; `advance` is called after each frame.

    Raises:
        OSError: the folder cannot be written.
    """
    rng = np.random.default_rng([job.seed, job.index])
    world = make_world(rng)
    raycaster = Raycaster(world.scene, device)
    poses = find_path(raycaster, world.stage, rng)(np.linspace(0, 1, job.frames))
    focal = 0.5 * max(job.height, job.width) / math.tan(math.radians(rng.uniform(*_FIELD_OF_VIEW)) / 2)
    intrinsics = (focal, focal, job.width / 2, job.height / 2)
    world.scene.exposure = _exposure(raycaster, poses)
    per_frame = math.ceil(_POINTS / job.frames)
    points: list[np.ndarray] = []
    colours: list[np.ndarray] = []
    with appearing_folder(Path(job.folder)) as unfinished:
        for i, pose in enumerate(poses):
            colour, z = raycaster.render(torch.from_numpy(pose), intrinsics, job.height, job.width, job.samples)
            picture, depth = (colour * 255).round().byte().cpu().numpy(), z.cpu().numpy()
            write_frame(unfinished, i, picture, depth)
            xyz, rgb = _surface_points(pose, intrinsics, picture, depth, per_frame, 0.6 * world.scene.sky_radius, rng)
            points.append(xyz)
            colours.append(rgb)
            advance()
        write_points(unfinished / "sparse_pc.ply", np.concatenate(points), np.concatenate(colours))
        write_transforms(unfinished, job.height, job.width, intrinsics, poses @ _OPENGL)


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
    reach: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Some of a frame's pixels as coloured points in the world, none farther than `reach`."""
    fx, fy, cx, cy = intrinsics
    rows, columns = rng.integers(depth.shape[0], size=2 * count), rng.integers(depth.shape[1], size=2 * count)
    z = depth[rows, columns]
    camera = np.stack([(columns + 0.5 - cx) / fx * z, (rows + 0.5 - cy) / fy * z, z], axis=1)
    near = np.linalg.norm(camera, axis=1) < reach
    camera, rows, columns = camera[near][:count], rows[near][:count], columns[near][:count]
    return (camera @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32), picture[rows, columns]
