"""The pictures that a command line names: files, and what is in folders and zip archives."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from token_methods.multiscene.images import split_archive_path

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
"""In folders and archives; a file that is named by itself may have any ending."""


@dataclass(frozen=True)
class PictureFile:
    """A picture that has not been opened."""

    name: str
    """Its path below the folder or archive that was named, with slashes; no two pictures have the same."""
    path: Path
    """A file, or `ARCHIVE.zip/MEMBER`."""


def picture_files(places: Sequence[Path]) -> list[PictureFile]:
    """The pictures in several places, in their order; those of a folder or archive sorted by name.

    Raises:
        ValueError: a place that does not exist, is no archive, or holds no picture; two pictures of one name.
    """
    listed = [(place, name, path) for place in places for name, path in _pictures(place.expanduser())]
    times = Counter(name for _, name, _ in listed)
    # Two folders may hold the same names: those are told apart by the folder.
    files = [PictureFile(f"{place.absolute().stem}/{name}" if times[name] > 1 else name, path) for place, name, path in listed]
    for name, count in Counter(file.name for file in files).items():
        if count > 1:
            raise ValueError(f"{count} pictures would have the name {name}: rename one, or put them into files of their own")
    if not files:
        raise ValueError("name at least one picture, folder or zip archive")
    return files


def _pictures(place: Path) -> Iterator[tuple[str, Path]]:
    if place.is_dir():
        names = sorted(_below(place))
    elif place.is_file() and place.suffix.lower() == ".zip":
        names = sorted(_members(place))
    elif place.is_file() or split_archive_path(place) is not None:
        yield _readable(place.name), place
        return
    else:
        raise ValueError(f"{place} does not exist: name pictures, folders of pictures or zip archives")
    if not names:
        raise ValueError(f"{place} holds no pictures ({' '.join(sorted(SUFFIXES))}): name another one")
    yield from ((_readable(name), place / name) for name in names)


def _below(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = PurePosixPath(Path(place).relative_to(folder))
        yield from (str(relative / name) for name in names if _is_picture(name))


def _members(archive: Path) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [member.filename for member in opened.infolist() if member.filename and not member.is_dir()]
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise ValueError(f"{archive} is no complete zip archive ({error}): copy or download it again") from error
    return [name for name in names if _is_picture(name)]


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.parts[0] != "__MACOSX"


def _readable(name: str) -> str:
    """Bytes of a file name that are no text become question marks."""
    return name.encode("utf-8", "replace").decode()
