"""Image files to pixels: ordinary files, and members of zip archives under a virtual path `ARCHIVE.zip/member.png`."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, UnidentifiedImageError

from token_methods.multiscene.errors import ImageError

MAX_PIXELS = 150_000_000
"""Larger pictures are refused: the largest camera sensors stay below, decompression bombs do not."""
MAX_BYTES = 1 << 30
"""Larger members of an archive are refused before they are unpacked."""


def read_image(path: Path, background: Sequence[float] | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image to 8-bit RGB.

    Grey, palette, CMYK and 16-bit pictures are converted. A picture with transparency is laid over `background` (RGB in
    [0, 1]; black when the dataset names none), so that the colours hidden under transparent pixels never show.

    Raises:
        ImageError: the file is missing, is no image, is truncated or is absurdly large.
    """
    picture = _decode(path)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        pixels = np.asarray(picture.convert("RGBA"))
        if bool((pixels[..., 3] == 255).all()):
            return np.ascontiguousarray(pixels[..., :3])
        alpha = pixels[..., 3:].astype(np.float32) / 255
        ground = 255 * np.asarray(background or (0.0, 0.0, 0.0), dtype=np.float32)
        return (pixels[..., :3] * alpha + ground * (1 - alpha)).round().astype(np.uint8)
    if picture.mode.startswith("I"):
        grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ImageError(f"{path} holds floating-point pixels, not an 8- or 16-bit picture; convert it to PNG or JPEG")
    return np.array(picture.convert("RGB"))


def read_mask(path: Path) -> Bool[np.ndarray, "height width"]:
    """Decode a mask: True where a pixel counts (any value but 0).

    Raises:
        ImageError: as for `read_image`.
    """
    picture = _decode(path)
    pixels = np.asarray(picture.convert("L") if picture.mode in ("RGB", "RGBA", "CMYK") else picture)
    return (pixels[..., 0] if pixels.ndim == 3 else pixels) != 0


def split_archive_path(path: Path) -> tuple[Path, str] | None:
    """`(archive, member)` of a virtual path into a zip archive; None for an ordinary path."""
    if ".zip" not in str(path).lower():
        return None
    for parent in path.parents:
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def check_image_header(path: Path) -> None:
    """Look at an image file without decoding it.

    Raises:
        ImageError: it is missing, is no image or is absurdly large.
    """
    _decode(path, header_only=True)


def _decode(path: Path, header_only: bool = False) -> Image.Image:
    try:
        picture = Image.open(_open(path))
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"{path} claims {width} x {height} pixels, more than {MAX_PIXELS:,}; scale it down or remove it")
        if not header_only:
            picture.load()
        return picture
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} claims more pixels than any photograph has ({error}); scale it down or remove it") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image that can be read; replace the file or remove it from the data") from error
    except FileNotFoundError as error:
        raise ImageError(f"image {path} does not exist; restore the file or remove it from the data") from error
    except (OSError, SyntaxError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path} is truncated or broken ({error}); copy it again or remove it from the data") from error


def _open(path: Path) -> Path | io.BytesIO:
    place = split_archive_path(path)
    if place is None:
        if not path.is_file():
            raise FileNotFoundError(path)
        return path
    archive, member = place
    changed = archive.stat()
    unpacked = _archive(archive, changed.st_mtime_ns, changed.st_size)
    try:
        size = unpacked.getinfo(member).file_size
    except KeyError as error:
        raise FileNotFoundError(path) from error
    if size > MAX_BYTES:
        raise ImageError(f"{path} unpacks to {size:,} bytes, more than any image has; remove it from the archive")
    return io.BytesIO(unpacked.read(member))


@functools.lru_cache(maxsize=16)
def _archive(path: Path, changed: int, size: int) -> zipfile.ZipFile:
    """An archive, kept open while it is in use: the table of contents of many small pictures takes longer to read than one of them.

    Threads may read from it at the same time. A file that was written anew is opened anew.
    """
    return zipfile.ZipFile(path)
