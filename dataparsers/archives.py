"""Zip archives that came from elsewhere: checked before anything in them is believed, read without unpacking."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

_LARGEST_MEMBER = 512 * 2**20
"""Bytes; a 4K picture as PNG has about 25 MiB."""
_LARGEST_TOTAL = 256 * 2**30
_LARGEST_RATIO = 100
"""Unpacked over packed size; pictures hardly shrink and JSON by a factor of ten, but a megabyte of zeros by a thousand."""
_RATIO_MATTERS_FROM = 2**20
_ENCRYPTED = 0x1
_LONGEST_REASON = 200
"""Characters of what zipfile says."""


class SceneArchive:
    """A zip file whose table of contents has been found sane.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a zip file, cut off, encrypted, with members outside of it (absolute or `..` names), or that would unpack to an
            absurd size. The message names the archive and the member.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist.")
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{path} is not a complete zip archive ({error}). Copy or download it again.") from None
        available, total = path.stat().st_size, 0
        for member in members:
            total += member.file_size
            if fault := _fault(member, available):
                raise ValueError(f"{path}: the member {member.filename[:200]!r} {fault}. Get the archive anew from its source.")
        if total > _LARGEST_TOTAL:
            raise ValueError(f"{path} would unpack to {total / 2**30:.0f} GiB, more than any scene. Do not use this archive.")
        self.members = frozenset(member.filename for member in members if not member.is_dir())

    def read(self, member: str) -> bytes:
        """The content of one member.

        Raises:
            FileNotFoundError: the archive has no such member.
            ValueError: the member is damaged.
        """
        if member not in self.members:
            raise FileNotFoundError(f"{self.path} has no member {member}.")
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
            reason = str(error)[:_LONGEST_REASON]  # zipfile quotes a whole damaged header
            raise ValueError(f"{self.path}: the member {member} is damaged ({reason}). Copy or download the archive again.") from None


def _fault(member: zipfile.ZipInfo, available: int) -> str | None:
    """What is wrong with an entry of the table of contents of an archive of `available` bytes."""
    name = member.filename
    if not name:
        return "has no name"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or "\0" in name:
        return "has an absolute name"
    if ".." in re.split(r"[/\\]", name):
        return "lies outside of the archive"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.file_size > _LARGEST_MEMBER:
        return f"would unpack to {member.file_size / 2**20:.0f} MiB"
    if member.file_size > _RATIO_MATTERS_FROM and member.file_size > _LARGEST_RATIO * max(1, member.compress_size):
        return f"would grow {member.file_size // max(1, member.compress_size)} times when it is unpacked"
    if member.header_offset + member.compress_size > available:
        return "is cut off"
    return None
