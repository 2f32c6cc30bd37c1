"""Which scenes a `--data` path holds, by what the dataparser accepts."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.dnerf_dataparser import DNeRFDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.dataparsers.sdfstudio_dataparser import SDFStudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.transforms_file import read_json


@dataclass(frozen=True)
class SceneSource:
    """Where a scene lies and how it is parsed; nothing is read yet."""

    name: str
    """Unique among the scenes found together."""
    path: Path
    """What the dataparser is given as `data`."""
    dataparser: DataParserConfig
    """The scene's own copy of the dataparser configuration."""


def find_scenes(data: Path, dataparser: DataParserConfig) -> list[SceneSource]:
    """The scenes under `data`, sorted by name.

    `data` is one scene, a folder of scenes (up to two levels deep), or a list of scene folders: a text file with one
    path a line, or a JSON file with a list of paths (relative ones start at the list's own folder). A dataparser
    configuration with a method `scene_folders()` names its scenes itself.

    Raises:
        SceneError: nothing is there, or nothing that the dataparser accepts.
    """
    dataparser = with_data(dataparser, data)
    if hasattr(dataparser, "scene_folders"):
        folders: Iterable[Path] = dataparser.scene_folders()
    elif not data.exists():
        raise SceneError(f"--data {data} does not exist")
    elif (listed := _read_list(data)) is not None:
        folders = listed
    elif is_scene(data, dataparser):
        folders = [data]
    else:
        folders = _scenes_below(data, dataparser)
    sources = _named(list(folders), dataparser)
    if not sources:
        refusal = _refusal(data, dataparser) or "it lists none"
        raise SceneError(f"no scene found in {data} or the folders in it ({refusal}); check --data and the dataparser")
    return sources


def dataparser_that_reads(data: Path, preferred: DataParserConfig) -> DataParserConfig:
    """The dataparser for data that a run was not trained on: its own if that reads them, else the one whose files are there.

    A dataparser that would make what is missing (`scene_folders()`) reads only what is there.

    Raises:
        SceneError: none of them finds a scene.
    """
    if not data.exists():
        raise SceneError(f"--data {data} does not exist")
    for candidate in (preferred, *_KNOWN_BY_THEIR_FILES):
        try:
            first = find_scenes(data, candidate)[0]
        except SceneError:
            continue
        if first.path.exists() and (marker_files(candidate) or is_scene(first.path, candidate)):
            return candidate
    wanted = " or ".join(marker for candidate in _KNOWN_BY_THEIR_FILES for marker in marker_files(candidate) if not marker.endswith(".txt"))
    raise SceneError(f"no scene found in {data} or the folders in it: photographs with poses have {wanted} beside them; check --data")


_KNOWN_BY_THEIR_FILES: tuple[DataParserConfig, ...] = (
    NerfstudioDataParserConfig(),
    ColmapDataParserConfig(),
    ColmapDataParserConfig(colmap_path=Path("sparse/0")),
    BlenderDataParserConfig(),
)


def with_data(dataparser: DataParserConfig, data: Path) -> DataParserConfig:
    """A copy of the configuration that looks at `data`, and asks the user nothing.

    nerfstudio's colmap parser asks whether to write smaller copies of large photographs; where there are none, full size is taken.
    """
    dataparser = copy.deepcopy(dataparser)
    dataparser.data = data
    if isinstance(dataparser, ColmapDataParserConfig) and dataparser.downscale_factor is None:
        images = data / dataparser.images_path
        if not any(images.parent.glob(f"{images.name}_[0-9]*")):
            dataparser.downscale_factor = 1
    return dataparser


def marker_files(dataparser: DataParserConfig) -> tuple[str, ...]:
    """Files any of which marks a folder as a scene for this dataparser; empty when it is not known."""
    if isinstance(dataparser, ColmapDataParserConfig):
        return tuple(f"{dataparser.colmap_path.as_posix()}/cameras.{suffix}" for suffix in ("bin", "txt"))
    if isinstance(dataparser, (BlenderDataParserConfig, DNeRFDataParserConfig)):
        return ("transforms_train.json",)
    if isinstance(dataparser, (NerfstudioDataParserConfig, InstantNGPDataParserConfig)):
        return ("transforms.json",)
    if isinstance(dataparser, SDFStudioDataParserConfig):
        return ("meta_data.json",)
    return ()


def is_scene(path: Path, dataparser: DataParserConfig) -> bool:
    """Whether the dataparser takes `path` as a scene: by its marker file, or else by trying."""
    return _refusal(path, dataparser) is None


def _refusal(path: Path, dataparser: DataParserConfig) -> str | None:
    """Why `path` is no scene for the dataparser; None if it is one."""
    markers = marker_files(dataparser)
    if markers:
        found = (path.is_file() and path.suffix == ".json") or any((path / marker).is_file() for marker in markers)
        return None if found else f"{type(dataparser).__name__} looks for {' or '.join(markers)}"
    try:
        with CONSOLE.capture():
            outputs = with_data(dataparser, path).setup().get_dataparser_outputs("train")
        return None if outputs.image_filenames else f"{type(dataparser).__name__} finds no images"
    except (Exception, SystemExit) as error:
        return f"{type(dataparser).__name__} says {type(error).__name__}: {error}".replace("\n", " ")


def _scenes_below(folder: Path, dataparser: DataParserConfig) -> list[Path]:
    level = _folders(folder)
    for _ in range(2):
        found = [path for path in level if is_scene(path, dataparser)]
        if found:
            return found
        level = [child for path in level for child in _folders(path)]
    return []


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")) if folder.is_dir() else []


def _read_list(data: Path) -> list[Path] | None:
    """The folders that a list file names; None when `data` is no list."""
    if not data.is_file() or data.suffix not in (".txt", ".json"):
        return None
    if data.suffix == ".txt":
        lines: object = [line.strip() for line in data.read_text(encoding="utf-8").splitlines()]
    else:
        lines = read_json(data)
    if not isinstance(lines, list):
        return None
    if not all(isinstance(line, str) for line in lines):
        raise SceneError(f"{data} must list scene folders as strings")
    folders = [data.parent / line for line in lines if line and not line.startswith("#")]
    for folder in folders:
        if not folder.exists():
            raise SceneError(f"{data} lists {folder}, which does not exist")
    return folders


def _named(folders: list[Path], dataparser: DataParserConfig) -> list[SceneSource]:
    """One source per distinct place; equal folder names are told apart by their parents."""
    distinct = list({path.resolve(): path for path in folders}.values())
    names = {path: _name(path) for path in distinct}
    counts = Counter(names.values())
    for path, name in names.items():
        if counts[name] > 1:
            names[path] = f"{path.resolve().parent.name}/{name}"
    if len(set(names.values())) < len(names):
        names = {path: path.as_posix() for path in distinct}
    return sorted((SceneSource(name, path, with_data(dataparser, path)) for path, name in names.items()), key=lambda source: source.name)


def _name(path: Path) -> str:
    path = path.resolve()
    if path.name == "transforms.json":
        return path.parent.name
    return path.stem if path.suffix in (".json", ".zip") else path.name
