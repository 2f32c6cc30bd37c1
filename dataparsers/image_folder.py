"""`image-folder-data`: pictures as they lie in a folder or a zip archive, with the split of the data set where it has one.

    ROOT/train/CLASS/NAME.JPEG, ROOT/val/[CLASS/]NAME.JPEG          ImageNet
    ROOT/images/NAME.jpg, ROOT/{train,val,test}.csv                 Mini-ImageNet; the first column names the file
    ROOT/.../NAME.png                                               any other folder: a share is held out
    FILE.png                                                        a single picture, trained on and evaluated

ROOT may be a zip archive, which stays packed. No picture is opened here.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from dataparsers.archives import SceneArchive
from dataparsers.picture_cameras import picture_outputs

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
_NOMINAL_SIZE = 256
"""Of all cameras: the true sizes are in the files, and a data set may have millions of them."""
_LEFT_OUT = "n06596364_9591.JPEG"
"""A training picture of ImageNet that the publication leaves out as well."""
_SPLITS = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}
"""Where the pictures of a split are; the first there is of these."""


@dataclass
class ImageFolderDataParserConfig(DataParserConfig):
    """Pictures in a folder or a zip archive: ImageNet, Mini-ImageNet, or any others."""

    _target: type = field(default_factory=lambda: ImageFolderDataParser)
    data: Path = Path("data/images")
    """Folder or zip archive with pictures, or a single picture."""
    eval_fraction: float = 0.1
    """Share of the pictures that is held out where the data have no split of their own: at least one of two; 1 holds out all."""
    seed: int = 42
    """Of that choice."""


class ImageFolderDataParser(DataParser):
    """Lists pictures; sorted by name in each split."""

    config: ImageFolderDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: object) -> DataparserOutputs:
        """The pictures of a split: files, or members of an archive as `ARCHIVE.zip/MEMBER`. Cameras have a nominal size.

        Raises:
            FileNotFoundError: `data` does not exist, holds no picture, or a list names files that are not there.
            ValueError: the archive is damaged, a list cannot be read, or `eval_fraction` is no share.
        """
        data = self.config.data
        if not 0 <= self.config.eval_fraction <= 1:
            raise ValueError(f"image-folder-data: eval_fraction is a share from 0 to 1, not {self.config.eval_fraction}.")
        if not data.exists():
            raise FileNotFoundError(f"image-folder-data: {data} does not exist. Give --data a folder or a zip archive with pictures.")
        if data.is_file() and _is_picture(data.name):
            return picture_outputs([data], _NOMINAL_SIZE, _NOMINAL_SIZE)
        if data.is_file() and data.suffix.lower() != ".zip":
            raise ValueError(f"image-folder-data: {data} is neither a picture nor a zip archive. Give --data a folder with pictures.")
        files = _Archive(data) if data.is_file() else _Folder(data)
        names = self._names(files, split)
        return picture_outputs([files.root / name for name in names], _NOMINAL_SIZE, _NOMINAL_SIZE)

    def _names(self, files: _Archive | _Folder, split: str) -> list[str]:
        if files.has("train.csv"):
            listed = next((f"{name}.csv" for name in _SPLITS[split] if files.has(f"{name}.csv")), None)
            if listed is None:
                raise FileNotFoundError(f"{files.root} has a train.csv, but neither val.csv nor test.csv beside it. Copy one there.")
            return _listed(files, listed)
        if any(files.pictures("train")) and any(any(files.pictures(name)) for name in _SPLITS["val"]):
            folder = next(name for name in _SPLITS[split] if any(files.pictures(name)))
            return sorted(name for name in files.pictures(folder) if not name.endswith(_LEFT_OUT))
        names = sorted(files.pictures(""))
        if not names:
            raise FileNotFoundError(f"image-folder-data: {files.root} holds no pictures ({' '.join(sorted(_SUFFIXES))}). Check --data.")
        held_out = _held_out(names, self.config.eval_fraction, self.config.seed)
        return [name for name in names if len(names) == 1 or (name in held_out) == (split != "train")]


class _Folder:
    """Pictures in a folder; names are relative to it, with slashes."""

    def __init__(self, path: Path) -> None:
        self.root = path

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def pictures(self, folder: str) -> Iterator[str]:
        """Below `folder`, in no order. Links to folders are followed, but never in a circle."""
        seen = set()
        for place, folders, names in os.walk(self.root / folder, followlinks=True):
            real = os.path.realpath(place)
            folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
            if real not in seen:
                seen.add(real)
                relative = PurePosixPath(Path(place).relative_to(self.root))
                yield from (str(relative / name) for name in names if _is_picture(name))


class _Archive:
    """Pictures in a zip archive; names are those of its members, below the folder that holds everything if there is one."""

    def __init__(self, path: Path) -> None:
        self.archive = SceneArchive(path)
        self.root = path
        members = [name for name in self.archive.members if not name.startswith("__MACOSX/")]
        first = {name.partition("/")[0] for name in members}
        if len(first) == 1 and all("/" in name for name in members):
            self.root = path / first.pop()
        self._below = self.root.relative_to(path).as_posix().removeprefix(".")

    def has(self, name: str) -> bool:
        return self._member(name) in self.archive.members

    def read(self, name: str) -> bytes:
        return self.archive.read(self._member(name))

    def pictures(self, folder: str) -> Iterator[str]:
        """Below `folder`, in no order."""
        start = self._member(f"{folder}/" if folder else "")
        skipped = len(self._member(""))
        return (member[skipped:] for member in self.archive.members if member.startswith(start) and _is_picture(member))

    def _member(self, name: str) -> str:
        return f"{self._below}/{name}" if self._below else name


def _is_picture(name: str) -> bool:
    base = PurePosixPath(name).name
    return not base.startswith(".") and PurePosixPath(base).suffix.lower() in _SUFFIXES and not name.startswith("__MACOSX/")


def _listed(files: _Archive | _Folder, list_name: str) -> list[str]:
    """The pictures that the first column of a list names, below its header row."""
    where = files.root / list_name
    try:
        rows = list(csv.reader(io.StringIO(files.read(list_name).decode("utf-8-sig"))))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is no list of files and labels with commas ({error}). Copy it again.") from None
    wanted = sorted({f"images/{row[0].strip()}" for row in rows[1:] if row})
    if not wanted:
        raise ValueError(f"{where} lists no picture below its header row. It must hold rows of a file name and a label.")
    there = set(files.pictures("images"))
    missing = [name for name in wanted if name not in there]
    if missing:
        raise FileNotFoundError(
            f"{where}: {len(missing)} of the {len(wanted)} pictures that it names are missing, first {files.root / missing[0]}."
        )
    return wanted


def _held_out(names: list[str], fraction: float, seed: int) -> set[str]:
    """By a hash of seed and name, so that a picture added later hardly moves the others."""
    count = round(fraction * len(names))
    if 0 < fraction < 1:
        count = min(max(count, 1), len(names) - 1)
    return set(sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())[:count])


image_folder_data = DataParserSpecification(
    config=ImageFolderDataParserConfig(), description="Pictures in a folder or zip archive: ImageNet, Mini-ImageNet or any others."
)
