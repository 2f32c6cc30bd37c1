"""`dl3dv-data`: the DL3DV-10K scenes (Ling et al., 2024), in zip archives that stay packed, or as folders.

Layouts (a scene is named by its hash):

    ROOT/{1K..11K}/SCENE.zip    SCENE/transforms.json, SCENE/images/NAME or SCENE/images_4/NAME      training
    ROOT/SCENE.zip              SCENE/gaussian_splat/transforms.json, .../images_4/NAME              benchmark
    the same unpacked, and ROOT/SCENE/nerfstudio/transforms.json, .../images_{8,4}/NAME

`transforms.json` is nerfstudio's, but its intrinsics belong to full-size pictures of which smaller copies are stored. Its lens distortion
is ignored, as the published methods do that train on this data.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from PIL import Image, UnidentifiedImageError

from dataparsers.archives import SceneArchive
from dataparsers.transforms import parse_transforms, split_frames

_INSIDE = ("gaussian_splat", "nerfstudio", "")
"""Where in a scene its transforms.json may lie, first come first served."""
_IMAGE_FOLDERS = ("images_4", "images_8", "images_2", "images")


@dataclass
class DL3DVDataParserConfig(DataParserConfig):
    """DL3DV-10K scenes, read inside their zip archives."""

    _target: type = field(default_factory=lambda: DL3DVDataParser)
    data: Path = Path("data/dl3dv")
    """Folder of all scenes (with or without the subfolders 1K to 11K), or one scene's zip archive or folder."""
    image_folder: str | None = None
    """Which copies to read: images_8 (480x270), images_4 (960x540), images_2 or images. By default the first there is of images_4,
    images_8, images_2, images."""

    def scene_folders(self) -> list[Path]:
        """Every scene, archive or folder, in the published order: 1K, 2K, ... 11K, by name in each.

        Raises:
            FileNotFoundError: `data` does not exist or holds no scene.
        """
        if not self.data.exists():
            raise FileNotFoundError(f"dl3dv-data: {self.data} does not exist. Give --data the folder that holds the scenes.")
        if _is_scene(self.data):
            return [self.data]
        batches = sorted((int(folder.name[:-1]), folder) for folder in self.data.iterdir() if re.fullmatch(r"\d+K", folder.name))
        scenes: list[Path] = []
        for folder in [folder for _, folder in batches] or [self.data]:
            # an archive and the folder that it was unpacked to are one scene
            found = {path.name.removesuffix(".zip"): path for path in sorted(folder.iterdir()) if _is_scene(path)}
            scenes += [found[name] for name in sorted(found)]
        if not scenes:
            raise FileNotFoundError(f"dl3dv-data: {self.data} holds neither scene archives (.zip) nor folders with a transforms.json.")
        return scenes


class DL3DVDataParser(DataParser):
    """Parses one scene; with a folder of scenes as `data`, its first one."""

    config: DL3DVDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: object) -> DataparserOutputs:
        """Outputs of one scene, in the world of its transforms.json and the order of its frames, nothing centred, turned or scaled.

        `train` holds all frames; `val` and `test` hold every eighth of them. Pictures in an archive have virtual names,
        `ARCHIVE.zip/MEMBER`. The published readers turn the world by half a turn about (1, 1, 0) besides, which the normalisation by a
        camera takes back; here z stays up.

        Raises:
            ValueError: archive, transforms.json or first picture is damaged, or something in them is missing or makes no sense.
            FileNotFoundError: no scene, or a frame has no picture.
        """
        path = self.config.scene_folders()[0]
        scene = _PackedScene(path) if path.suffix == ".zip" else _SceneFolder(path)
        where = scene.path(scene.transforms)
        transforms = parse_transforms(scene.read(scene.transforms), str(where))
        chosen = split_frames(len(transforms.frames), split)
        folder = self._image_folder(scene)
        names = [folder + _base_name(frame["file_path"]) for frame in transforms.frames]
        for i, name in enumerate(names):
            if not scene.has(name):
                raise FileNotFoundError(f"{where}: the picture of frames[{i}] is missing: {scene.path(name)}")
        width, height = _image_size(scene.read(names[0]), str(scene.path(names[0])))
        across, down = width / transforms.width, height / transforms.height
        poses = torch.from_numpy(transforms.poses[chosen, :3]).float()
        reach = float(poses[:, :, 3].abs().max()) + 1.0
        return DataparserOutputs(
            image_filenames=[scene.path(names[i]) for i in chosen],
            cameras=Cameras(
                camera_to_worlds=poses,
                fx=transforms.fx * across,
                fy=transforms.fy * down,
                cx=transforms.cx * across,
                cy=transforms.cy * down,
                width=width,
                height=height,
                camera_type=CameraType.PERSPECTIVE,
            ),
            scene_box=SceneBox(aabb=torch.tensor([[-reach] * 3, [reach] * 3])),
        )

    def _image_folder(self, scene: _PackedScene | _SceneFolder) -> str:
        """The folder of the pictures beside transforms.json, with a slash at its end."""
        base = scene.transforms.removesuffix("transforms.json")
        wanted = (self.config.image_folder,) if self.config.image_folder else _IMAGE_FOLDERS
        for name in wanted:
            if scene.has_folder(f"{base}{name}/"):
                return f"{base}{name}/"
        raise FileNotFoundError(f"{scene.path(base)} has no folder {' or '.join(wanted)} with pictures. Name another with --image-folder.")


class _PackedScene:
    """A scene in a zip archive."""

    def __init__(self, path: Path) -> None:
        self.archive = SceneArchive(path)
        found = [m for m in self.archive.members if PurePosixPath(m).name == "transforms.json"]
        places = {str(PurePosixPath(m).parent.name): m for m in sorted(found, key=lambda m: -m.count("/"))}
        for place in _INSIDE[:2]:
            if place in places:
                self.transforms = places[place]
                return
        if not found:
            raise FileNotFoundError(f"{path} holds no transforms.json: it is not a DL3DV scene.")
        self.transforms = min(found, key=lambda m: (m.count("/"), m))

    def read(self, name: str) -> bytes:
        return self.archive.read(name)

    def has(self, name: str) -> bool:
        return name in self.archive.members

    def has_folder(self, name: str) -> bool:
        return any(member.startswith(name) for member in self.archive.members)

    def path(self, name: str) -> Path:
        return self.archive.path / name


class _SceneFolder:
    """A scene that was unpacked."""

    def __init__(self, path: Path) -> None:
        self.folder = path
        self.transforms = next(f"{place}/transforms.json".lstrip("/") for place in _INSIDE if (path / place / "transforms.json").is_file())

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def has_folder(self, name: str) -> bool:
        return self.path(name).is_dir()

    def path(self, name: str) -> Path:
        return self.folder / name


def _is_scene(path: Path) -> bool:
    if path.suffix == ".zip":
        return path.is_file()
    return path.is_dir() and any((path / place / "transforms.json").is_file() for place in _INSIDE)


def _base_name(file_path: str) -> str:
    return re.split(r"[/\\]", file_path)[-1]


def _image_size(content: bytes, where: str) -> tuple[int, int]:
    """Width and height as stored."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} is not a picture that can be read ({error}).") from None


dl3dv_data = DataParserSpecification(
    config=DL3DVDataParserConfig(), description="DL3DV-10K: training archives, benchmark archives or unpacked folders."
)
