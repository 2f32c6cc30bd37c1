"""`procedural-data`: endless posed pictures of made-up rooms and gardens, without a download."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from dataparsers.procedural.generator import GENERATOR_VERSION, SceneJob, generate_scene
from dataparsers.procedural.progress import delayed_progress
from dataparsers.procedural.storage import DEPTH_UNIT, read_points
from dataparsers.procedural.workers import generate_in_workers, worker_count
from dataparsers.transforms import parse_transforms, split_frames

_generating = threading.Lock()
"""One scene at a time in a process: the work fills the machine, and the others may want the same scene."""


def _default_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "nerfstudio-tokens" / "procedural"


@dataclass
class ProceduralDataParserConfig(DataParserConfig):
    """Textured rooms and gardens with exact poses and depth, made from a seed and kept on disk."""

    _target: type = field(default_factory=lambda: ProceduralDataParser)
    data: Path = field(default_factory=_default_cache)
    """Folder that keeps the scenes (made when it is missing), or one scene's folder in it."""
    num_scenes: int = 64
    """How many scenes to offer. More can be added later: scene n is the same whatever this number is."""
    seed: int = 0
    """Another seed, another world."""
    image_height: int = 128
    """Pixels."""
    image_width: int = 128
    """Pixels."""
    frames_per_scene: int = 24
    """Frames along each walk; the walk itself does not depend on it."""
    samples_per_pixel: int = 4
    """Rays averaged in each pixel, against jagged edges."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where scenes are made; auto takes the GPU if there is one. Pictures agree on both but for rounding, which may choose another walk."""

    def settings_folder(self) -> Path:
        """Folder of all scenes made with these settings."""
        settings = [GENERATOR_VERSION, self.seed, self.image_height, self.image_width, self.frames_per_scene, self.samples_per_pixel]
        return self.data.expanduser() / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]

    def scene_folders(self) -> list[Path]:
        """One folder per scene. A folder that does not exist yet is made when it is parsed."""
        if _is_scene(self.data):
            return [self.data]
        return [self.settings_folder() / f"scene_{index:05d}" for index in range(self.num_scenes)]


class ProceduralDataParser(DataParser):
    """Parses one scene; with a cache folder as `data`, its first scene."""

    config: ProceduralDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: object) -> DataparserOutputs:
        """Outputs of one scene in its own world: z up, nothing centred, turned or scaled.

        `train` holds all frames in walking order; `val` and `test` hold every eighth (at least two) of the same walk.

        Raises:
            ValueError: a setting makes no sense, or `data` is a scene folder that these settings do not make.
            OSError: the folder cannot be written.
        """
        _check(self.config)
        folder = self.config.scene_folders()[0]
        index = _scene_index(self.config, folder)
        if index is not None:
            generate_scenes(self.config, [index])
        return _read_scene(folder, split)


def generate_scenes(config: ProceduralDataParserConfig, indices: Sequence[int] | None = None) -> list[Path]:
    """Make the scenes that are not on disk yet (all of the config's by default) and return their folders.

    Uses the GPU, or several processes where there are several CPU cores. Shows a progress bar when it takes longer than two seconds.
    Several programs may do this at once: each scene appears whole, once.
    """
    _check(config)
    indices = range(config.num_scenes) if indices is None else indices
    root = _scene_root(config)
    folders = [root / f"scene_{index:05d}" for index in indices]
    with _generating:
        missing = [(index, folder) for index, folder in zip(indices, folders) if not (folder / "transforms.json").is_file()]
        if not missing:
            return folders
        device = torch.device(config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu"))
        jobs = [
            SceneJob(
                folder=str(folder.absolute()),
                seed=config.seed,
                index=index,
                height=config.image_height,
                width=config.image_width,
                frames=config.frames_per_scene,
                samples=config.samples_per_pixel,
            )
            for index, folder in missing
        ]
        workers = worker_count(len(jobs)) if device.type == "cpu" else 1
        with delayed_progress("making procedural scenes", len(jobs) * config.frames_per_scene) as advance:
            if workers > 1:
                generate_in_workers(jobs, workers, advance)
                return folders
            with _one_thread():
                for job in jobs:
                    generate_scene(job, device, advance)
    return folders


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tiles are too small to be shared out: on a busy machine torch's threads would mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _is_scene(folder: Path) -> bool:
    return (folder / "transforms.json").is_file() or re.fullmatch(r"scene_\d{5,}", folder.name) is not None


def _scene_root(config: ProceduralDataParserConfig) -> Path:
    return config.data.parent if _is_scene(config.data) else config.settings_folder()


def _scene_index(config: ProceduralDataParserConfig, folder: Path) -> int | None:
    """Number of the scene to make at `folder`; None if it is there already."""
    if (folder / "transforms.json").is_file():
        return None
    root = dataclasses.replace(config, data=folder.parent.parent).settings_folder()
    if folder.parent != root:
        raise ValueError(
            f"{folder} has no transforms.json, and these settings would make that scene in {root}. "
            "Give --data the cache folder, or repeat the settings that the scene was made with."
        )
    return int(folder.name.removeprefix("scene_"))


def _check(config: ProceduralDataParserConfig) -> None:
    for name, least in (("num_scenes", 1), ("image_height", 8), ("image_width", 8), ("frames_per_scene", 2), ("samples_per_pixel", 1)):
        if getattr(config, name) < least:
            raise ValueError(f"procedural-data: {name} must be at least {least}, not {getattr(config, name)}.")
    if config.seed < 0:
        raise ValueError(f"procedural-data: seed must not be negative, got {config.seed}.")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("procedural-data: device is cuda, but torch sees no GPU. Use --device cpu or auto.")


def _read_scene(folder: Path, split: str) -> DataparserOutputs:
    path = folder / "transforms.json"
    transforms = parse_transforms(path.read_bytes(), str(path))
    chosen = split_frames(len(transforms.frames), split)
    frames = [transforms.frames[i] for i in chosen]
    cameras = Cameras(
        camera_to_worlds=torch.from_numpy(transforms.poses[chosen, :3]).float(),
        fx=transforms.fx,
        fy=transforms.fy,
        cx=transforms.cx,
        cy=transforms.cy,
        width=int(transforms.width),
        height=int(transforms.height),
        camera_type=CameraType.PERSPECTIVE,
    )
    xyz, rgb = read_points(folder / "sparse_pc.ply")
    reach = float(np.abs(xyz).max()) if len(xyz) else 1.0
    return DataparserOutputs(
        image_filenames=[folder / frame["file_path"] for frame in frames],
        cameras=cameras,
        scene_box=SceneBox(aabb=torch.tensor([[-reach] * 3, [reach] * 3])),
        metadata={
            "points3D_xyz": torch.from_numpy(xyz),
            "points3D_rgb": torch.from_numpy(rgb),
            "depth_filenames": [folder / frame["depth_file_path"] for frame in frames],
            "depth_unit_scale_factor": DEPTH_UNIT,
            "is_ordered": True,  # the frames of a walk, one after another
        },
    )


procedural_data = DataParserSpecification(
    config=ProceduralDataParserConfig(), description="Made-up rooms and gardens from a seed: exact pictures, depth and poses, no download."
)
