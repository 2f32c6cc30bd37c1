"""The header of a token file: JSON that is read as if an enemy had written it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from token_methods.gaussiantoken.geometry_quantization import NO_GEOMETRY, GeometryBits
from token_methods.gaussiantoken.picture_tokens import TokenLayout
from token_methods.multiscene.images import MAX_PIXELS

HEADER_KEY = "gaussiantoken"
"""Where the header stands in the metadata of the safetensors file."""
VERSION = 1
MAX_NUMBER = 1 << 24
"""No size in a header is larger: sizes of pictures, tiles, maps and codebooks are far below."""
MAX_NAME = 1024


class TokenFileError(ValueError):
    """A token file that cannot be read or written; the message says which, why, and what to do."""


@dataclass(frozen=True)
class PictureEntry:
    """A picture in the list of a file."""

    name: str
    """A relative path with slashes."""
    height: int
    width: int


@dataclass(frozen=True)
class TokenFileHeader:
    """What a file says of itself.

    Raises:
        ValueError: no pictures, or names that cannot be kept.
    """

    layout: TokenLayout
    bits: GeometryBits
    pictures: tuple[PictureEntry, ...]
    crc32: int
    """Of all streams, one behind the other."""

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("there are no pictures")
        names = set()
        for picture in self.pictures:
            check_name(picture.name)
            if picture.name in names:
                raise ValueError(f"two pictures have the name {picture.name}")
            names.add(picture.name)

    def to_json(self) -> str:
        """The header as text, in as few bytes as possible."""
        layout, bits = self.layout, self.bits
        told = {
            "version": VERSION,
            "codebook": {"size": layout.codebook_size, "dim": layout.code_dim, "sha256": layout.codebook_sha256},
            "tile": {"height": layout.tile_height, "width": layout.tile_width, "tokens": layout.tokens_per_tile},
            "map": {"height": layout.map_height, "width": layout.map_width},
            "scale_range": layout.scale_range,
            "bits": {"index": layout.index_bits, "position": bits.position, "scale": bits.scale, "rotation": bits.rotation},
            "crc32": self.crc32,
            "pictures": [[picture.name, picture.height, picture.width] for picture in self.pictures],
        }
        return json.dumps(told, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, path: Path) -> TokenFileHeader:
        """The header of the file `path`.

        Raises:
            TokenFileError: it is of another version, or not what a header is.
        """
        try:
            told = json.loads(text)
            if isinstance(told, dict) and told.get("version") != VERSION:
                raise TokenFileError(
                    f"{path} is a token file of version {str(told.get('version'))[:40]}, and this is a reader of version {VERSION}: "
                    "install the release of nerfstudio-tokens that wrote it, or tokenize the pictures again"
                )
            return cls._from_told(_Section(told, "the header"))
        except TokenFileError:
            raise
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise TokenFileError(f"{path} has a damaged header ({reason}): copy it again or tokenize the pictures again") from error

    @classmethod
    def _from_told(cls, told: _Section) -> TokenFileHeader:
        codebook, tile, cells, bits = (told.section(name) for name in ("codebook", "tile", "map", "bits"))
        layout = TokenLayout(
            codebook_size=codebook.integer("size"),
            code_dim=codebook.integer("dim"),
            codebook_sha256=codebook.text("sha256"),
            tile_height=tile.integer("height"),
            tile_width=tile.integer("width"),
            map_height=cells.integer("height"),
            map_width=cells.integer("width"),
            tokens_per_tile=tile.integer("tokens"),
            scale_range=told.scale_range("scale_range"),
        )
        geometry = GeometryBits(*(bits.integer(name, 0) for name in ("position", "scale", "rotation")))
        if bits.integer("index") != layout.index_bits:
            raise ValueError(f"{layout.codebook_size} codes take {layout.index_bits} bits, not {bits.integer('index')}")
        if (geometry == NO_GEOMETRY) != (layout.scale_range is None):
            raise ValueError("'scale_range' and bits for geometry belong together")
        if not re.fullmatch("[0-9a-f]{64}", layout.codebook_sha256):
            raise ValueError("'sha256' must be 64 hexadecimal digits")
        return cls(layout, geometry, tuple(map(_picture, told.rows("pictures"))), told.integer("crc32", 0, 1 << 32))


def check_name(name: str) -> None:
    """Refuse a name that could lead out of the folder that pictures are written to.

    Raises:
        ValueError: which name, and what a name must be.
    """
    parts = name.split("/")
    odd = any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 or character in "\\:\x7f" for character in name)
    if odd or len(name) > MAX_NAME or not all(part.strip(". ") for part in parts):
        raise ValueError(f"{name[:80]!a} cannot be the name of a picture: a relative path with slashes is wanted, without '..'")


def _picture(row: Any) -> PictureEntry:
    if not (isinstance(row, list) and [type(value) for value in row] == [str, int, int]):
        raise ValueError(f"a picture is [name, height, width], not {str(row)[:80]!a}")
    name, height, width = row
    if not (height >= 1 and width >= 1 and height * width <= MAX_PIXELS):
        raise ValueError(f"{name[:80]!a} claims {str(width)[:20]} x {str(height)[:20]} pixels, and there can be 1 to {MAX_PIXELS:,}")
    return PictureEntry(name, height, width)


class _Section:
    """A JSON object whose values are asked for by name and type."""

    def __init__(self, told: Any, name: str) -> None:
        if not isinstance(told, dict):
            raise ValueError(f"{name} must be an object")
        self.told, self.name = told, name

    def section(self, key: str) -> _Section:
        return _Section(self._value(key), f"{key!r}")

    def integer(self, key: str, least: int = 1, limit: int = MAX_NUMBER) -> int:
        value = self._value(key)
        if type(value) is not int or not least <= value < limit:  # True is an int as well
            raise ValueError(f"{key!r} of {self.name} must be a whole number of {least} or more and below {limit}")
        return value

    def text(self, key: str) -> str:
        value = self._value(key)
        if not isinstance(value, str):
            raise ValueError(f"{key!r} of {self.name} must be text")
        return value

    def rows(self, key: str) -> list[Any]:
        value = self._value(key)
        if not isinstance(value, list):
            raise ValueError(f"{key!r} of {self.name} must be a list")
        return value

    def scale_range(self, key: str) -> tuple[float, float] | None:
        value = self._value(key)
        if value is None:
            return None
        numbers = isinstance(value, list) and len(value) == 2 and all(type(number) in (int, float) for number in value)
        if not numbers or not (0 <= value[0] < value[1] < math.inf):
            raise ValueError(f"{key!r} of {self.name} must be null or two numbers, smallest and largest")
        return float(value[0]), float(value[1])

    def _value(self, key: str) -> Any:
        if key not in self.told:
            raise ValueError(f"{self.name} lacks {key!r}")
        return self.told[key]
