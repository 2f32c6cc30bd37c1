"""A scene as any nerfstudio dataparser delivers it: every frame, undistorted cameras, and the way back to its own frame."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from token_methods.core.cameras import Similarity, opencv_from_opengl
from token_methods.core.crops import CropAndResize, CropConvention
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.images import check_image_header
from token_methods.multiscene.scene_discovery import SceneSource, marker_files, with_data
from token_methods.multiscene.sparse_points import median_depths, points_beside_transforms
from token_methods.multiscene.transforms_file import check_intrinsics, read_transforms
from token_methods.multiscene.undistortion import Pinhole, pinhole_cameras

KEPT_SCENES = 1024
"""Parsed scenes kept; parsing one again takes milliseconds."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """One parsed scene: all its frames, whatever split the dataparser puts them into. No image has been decoded."""

    name: str
    path: Path
    outputs: DataparserOutputs
    """All frames in our order, with the cameras as photographed (distorted)."""
    parser: DataParser
    pinholes: tuple[Pinhole, ...]
    """Cameras after undistortion, at the size of the undistorted images."""
    camera_to_world: Float[Tensor, "frames 4 4"]
    """OpenCV, dataset frame."""
    frame: Similarity
    """Original world -> dataset frame, float64, batch of one."""
    sparse_depth: Float[Tensor, " frames"]
    """Median depth of the sparse points in each view, dataset frame; NaN where unknown."""
    is_ordered: bool
    """The frames are a video in order; otherwise they are a set."""

    @property
    def num_frames(self) -> int:
        return len(self.pinholes)

    @property
    def unit(self) -> float:
        """Length in the dataset frame of one unit of the original files."""
        return float(self.outputs.dataparser_scale)

    @property
    def image_filenames(self) -> list[Path]:
        return self.outputs.image_filenames

    @property
    def times(self) -> Float[Tensor, " frames"] | None:
        times = self.outputs.cameras.times
        return None if times is None else times.reshape(-1).float()

    def pinhole_camera(self, frame: int) -> Float[Tensor, " 4"]:
        """fx, fy, cx, cy of an undistorted frame at its own size."""
        camera = self.pinholes[frame]
        return torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy], dtype=torch.float64)

    def crop(self, frame: int, height: int, width: int) -> CropAndResize:
        """How an undistorted frame becomes a network's view."""
        return CropAndResize.centred(self.pinholes[frame].height, self.pinholes[frame].width, height, width)

    def intrinsics(self, frames: list[int], height: int, width: int, convention: CropConvention) -> Float[Tensor, "views 4"]:
        """fx, fy, cx, cy of frames at a network's size."""
        rows = [self.crop(frame, height, width).intrinsics(self.pinhole_camera(frame), convention) for frame in frames]
        return torch.stack(rows).float()

    def cameras(self, frames: list[int]) -> Cameras:
        """Undistorted nerfstudio cameras of frames at the images' own size."""
        pinholes = [self.pinholes[frame] for frame in frames]

        def column(name: str) -> Float[Tensor, "frames 1"]:
            return torch.tensor([[getattr(pinhole, name)] for pinhole in pinholes], dtype=torch.float32)

        times = self.outputs.cameras.times
        return Cameras(
            camera_to_worlds=self.outputs.cameras.camera_to_worlds[frames],
            fx=column("fx"),
            fy=column("fy"),
            cx=column("cx"),
            cy=column("cy"),
            width=column("width").int(),
            height=column("height").int(),
            camera_type=CameraType.PERSPECTIVE,
            times=None if times is None else times[frames],
        )


def parse_scene(source: SceneSource) -> Scene:
    """Parse a scene with its dataparser, unchanged, and join its splits.

    Frames are those of the splits "train", "val" and "test" together, sorted by file name; where one split already holds
    every frame the dataparser's own order is kept. A split in another frame than the training split's is left out.

    Raises:
        SceneError: what is wrong, in which file, and what to do.
    """
    meta = _look_at_files(source)
    config = with_data(source.dataparser, source.path)
    if meta is not None and hasattr(config, "load_3D_points"):
        config.load_3D_points = False
    parser, outputs = _parse_splits(source, config, meta)
    if not outputs.image_filenames:
        raise SceneError(f"scene {source.path} has no images; check the folder and the dataparser's options")
    points = outputs.metadata.get("points3D_xyz")
    if points is None and meta is not None:
        points = points_beside_transforms(source.path if source.path.is_dir() else source.path.parent, meta, outputs)
    camera_to_world = opencv_from_opengl(outputs.cameras.camera_to_worlds.float())
    _check_poses(source, outputs, camera_to_world)
    try:
        pinholes = pinhole_cameras(outputs.cameras)
    except SceneError as error:
        raise SceneError(f"scene {source.path}: {error}") from error
    metadata = {key: value for key, value in outputs.metadata.items() if not key.startswith("points3D")}
    unknown = torch.full((len(pinholes),), float("nan"))
    return Scene(
        name=source.name,
        path=source.path,
        outputs=dataclasses.replace(outputs, metadata=metadata),
        parser=parser,
        pinholes=tuple(pinholes),
        camera_to_world=camera_to_world,
        frame=Similarity.from_dataparser(outputs.dataparser_transform, float(outputs.dataparser_scale)),
        sparse_depth=unknown if points is None else median_depths(points, camera_to_world, pinholes),
        is_ordered=bool(metadata.get("is_ordered", False)),
    )


class ParsedScenes:
    """Scenes by source, parsed when first asked for; safe to use from several threads."""

    def __init__(self) -> None:
        self._scenes: OrderedDict[str, Scene] = OrderedDict()
        self._parsing: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def __getitem__(self, source: SceneSource) -> Scene:
        with self._lock:
            parsing = self._parsing.setdefault(source.name, threading.Lock())
        with parsing:
            with self._lock:
                if source.name in self._scenes:
                    self._scenes.move_to_end(source.name)
                    return self._scenes[source.name]
            scene = parse_scene(source)
            with self._lock:
                self._scenes[source.name] = scene
                while len(self._scenes) > KEPT_SCENES:
                    self._scenes.popitem(last=False)
            return scene


def _look_at_files(source: SceneSource) -> dict[str, Any] | None:
    """Check the camera file of dataparsers that have one; the content of a nerfstudio `transforms.json` is returned."""
    markers = marker_files(source.dataparser)
    if not source.path.exists() and not hasattr(source.dataparser, "scene_folders"):
        raise SceneError(f"scene {source.path} does not exist (any more); restore it or take it out of --data")
    if source.path.suffix == ".json" or markers == ("transforms.json",):
        path = source.path if source.path.suffix == ".json" else source.path / "transforms.json"
        meta = read_transforms(path)
        if isinstance(source.dataparser, NerfstudioDataParserConfig):
            check_intrinsics(path, meta)
        return meta
    if markers == ("transforms_train.json",):
        read_transforms(source.path / "transforms_train.json")
    return None


def _parse_splits(source: SceneSource, config: DataParserConfig, meta: dict[str, Any] | None) -> tuple[DataParser, DataparserOutputs]:
    with CONSOLE.capture():  # nerfstudio's dataparsers log several lines per scene
        try:
            parser = config.setup()
            first: DataparserOutputs = parser.get_dataparser_outputs("train")
        except ZeroDivisionError as error:  # nerfstudio divides by the largest distance of a camera from the centre
            raise SceneError(
                f"all cameras of scene {source.path} stand in one place (has it just 1 image?), so the dataparser cannot scale them; "
                "give more images, or switch off its auto-scale-poses"
            ) from error
        except (Exception, SystemExit) as error:
            _check_image_headers(source, meta)
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")
            raise SceneError(f"{type(config).__name__} cannot parse {source.path} ({reason}); check its files and options") from error
        first = dataclasses.replace(first, dataparser_transform=torch.as_tensor(first.dataparser_transform))
        if hasattr(config, "load_3D_points"):
            config.load_3D_points = False
        parts = [first]
        for split in ("val", "test"):
            try:
                other = parser.get_dataparser_outputs(split)
            except (Exception, SystemExit):
                continue
            same_scale = abs(other.dataparser_scale - first.dataparser_scale) <= 1e-6 * abs(first.dataparser_scale)
            if same_scale and torch.allclose(torch.as_tensor(other.dataparser_transform), first.dataparser_transform, rtol=1e-5, atol=1e-6):
                parts.append(other)
    return parser, _join(parts)


def _check_image_headers(source: SceneSource, meta: dict[str, Any] | None) -> None:
    """Name the image that a dataparser may have stumbled over.

    Raises:
        ImageError: the first that cannot be used.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    for frame in (meta or {}).get("frames", []):
        if Path(frame["file_path"]).suffix:  # Blender's form leaves it out
            check_image_header(folder / frame["file_path"])


def _join(parts: list[DataparserOutputs]) -> DataparserOutputs:
    """One entry per image file of several splits; metadata is the first split's."""
    entries: dict[Path, tuple[int, int]] = {}
    for part, outputs in enumerate(parts):
        for index, path in enumerate(outputs.image_filenames):
            entries.setdefault(path, (part, index))
    first = parts[0]
    if len(entries) == len(first.image_filenames):
        return first
    complete = next((outputs for outputs in parts if len(set(outputs.image_filenames)) == len(entries)), None)
    if complete is not None:
        return dataclasses.replace(complete, metadata=first.metadata)
    order = [entries[path] for path in sorted(entries)]
    with_masks = all(outputs.mask_filenames is not None for outputs in parts if len(outputs.image_filenames))
    return dataclasses.replace(
        first,
        image_filenames=[parts[part].image_filenames[index] for part, index in order],
        mask_filenames=[(parts[part].mask_filenames or [])[index] for part, index in order] if with_masks else None,
        cameras=_join_cameras(parts, order),
    )


def _join_cameras(parts: list[DataparserOutputs], order: list[tuple[int, int]]) -> Cameras:
    start = [0]
    for outputs in parts:
        start.append(start[-1] + len(outputs.cameras))
    picked = torch.tensor([start[part] + index for part, index in order])

    def column(name: str) -> Any:
        values = [getattr(outputs.cameras, name) for outputs in parts]
        if all(value is None for value in values):
            return None
        return torch.cat([value if value is not None else torch.zeros(len(o.cameras), 6) for value, o in zip(values, parts)])[picked]

    names = ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height", "distortion_params", "camera_type", "times")
    return Cameras(**{name: column(name) for name in names}, metadata=parts[0].cameras.metadata)


def _check_poses(source: SceneSource, outputs: DataparserOutputs, camera_to_world: Float[Tensor, "frames 4 4"]) -> None:
    rotation = camera_to_world[:, :3, :3]
    finite = camera_to_world.isfinite().flatten(1).all(dim=1)
    rigid = (rotation @ rotation.transpose(1, 2) - torch.eye(3)).abs().amax(dim=(1, 2)) < 1e-2
    right_handed = torch.linalg.det(rotation.nan_to_num(0)) > 0
    wrong: Int[Tensor, " k"] = (~(finite & rigid & right_handed)).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        path = outputs.image_filenames[first]
        if not bool(finite[first]):
            what = "is not finite (NaN or infinite)"
        elif not bool(rigid[first]):
            what = "is no rotation and translation"
        else:  # nerfstudio 1.1.5 negates two poses where its principal axes point the wrong way
            what = "mirrors the world (left-handed axes; orientation_method pca makes such poses: choose another)"
        raise SceneError(f"the pose of {path} (scene {source.path}) {what}; remove the frame or compute its pose again")
