"""Image files of every kind, and the sentence that a broken one gets."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from token_methods.multiscene.errors import ImageError
from token_methods.multiscene.images import read_image, read_mask

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def test_plain_and_archived_images_have_the_same_pixels(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "scene.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "inside/images/a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "scene.zip" / "inside" / "images" / "a.png"), RGB)


def test_grey_palette_and_deep_pictures_become_rgb(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.repeat(grey[..., None] // 128 * 255, 3, axis=2)).convert("P").save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png")[..., 0], grey // 128 * 255)


def test_transparent_pixels_show_the_background_not_their_hidden_colour(tmp_path: Path) -> None:
    alpha = np.full((6, 5, 1), 255, dtype=np.uint8)
    alpha[0] = 0
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / "cut.png")
    white = read_image(tmp_path / "cut.png", background=(1.0, 1.0, 1.0))
    assert (white[0] == 255).all() and (read_image(tmp_path / "cut.png")[0] == 0).all()
    np.testing.assert_array_equal(white[1:], RGB[1:])


def test_masks_are_true_where_pixels_count(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[1] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), mask == 1)


def _enormous_png(path: Path) -> None:
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000)))):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


@pytest.mark.parametrize("fault", ["missing", "missing in archive", "no image", "empty", "truncated", "oversized", "broken archive"])
def test_an_unusable_image_is_named_with_its_fault(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "frame.png"
    said = {"no image": "not an image", "empty": "not an image", "truncated": "truncated", "oversized": "more"}.get(fault, "does not exist")
    if fault == "missing in archive":
        with zipfile.ZipFile(tmp_path / "scene.zip", "w") as archive:
            archive.writestr("other.png", b"")
        path = tmp_path / "scene.zip" / "frame.png"
    elif fault == "no image":
        path.write_text("this is text")
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif fault == "oversized":
        _enormous_png(path)
    elif fault == "broken archive":
        (tmp_path / "scene.zip").write_bytes(b"PK not a zip")
        path, said = tmp_path / "scene.zip" / "frame.png", "broken"
    with pytest.raises(ImageError, match=said) as raised:
        read_image(path)
    assert str(path) in str(raised.value)
