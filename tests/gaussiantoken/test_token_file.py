"""Files of tokens: what is written comes back, also through the reader in the documentation."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gaussiantoken.token_samples import BITS, GRID, LAYOUT, PAGE, SCALES, forged, random_tokens, some_pictures
from token_methods.gaussiantoken.geometry_quantization import EXACT, NO_GEOMETRY, GeometryBits
from token_methods.gaussiantoken.picture_tokens import TokenLayout
from token_methods.gaussiantoken.token_file import encode_tokens, kept_tokens, picture_bytes, read_tokens, write_tokens
from token_methods.gaussiantoken.token_file_header import TokenFileError


@pytest.mark.parametrize("bits", [BITS, EXACT, GeometryBits(1, 32, 3), GeometryBits(32, 4, 32)])
def test_tokens_come_back(bits: GeometryBits, tmp_path: Path) -> None:
    pictures = some_pictures()
    size = write_tokens(pictures, LAYOUT, bits, tmp_path / "t.safetensors")
    assert size == (tmp_path / "t.safetensors").stat().st_size
    assert list(tmp_path.iterdir()) == [tmp_path / "t.safetensors"]
    file = read_tokens(tmp_path / "t.safetensors")
    assert replace(file.layout, scale_range=SCALES) == LAYOUT and file.bits == bits and len(file) == 3
    for number, ((name, tokens), expected) in enumerate(zip(pictures, kept_tokens(pictures, LAYOUT, bits))):
        back = file.tokens(number)
        assert file.pictures[number].name == name and (back.height, back.width) == (tokens.height, tokens.width)
        assert np.array_equal(back.indices, tokens.indices)
        assert back.geometry is not None and expected.geometry is not None and tokens.geometry is not None
        for part in ("means", "scales", "rotations"):
            assert np.array_equal(getattr(back.geometry, part), getattr(expected.geometry, part)), part
            if bits == EXACT:
                assert np.array_equal(getattr(back.geometry, part), getattr(tokens.geometry, part)), part


def test_steps_of_scales_are_as_small_as_the_gaussians_of_a_file_allow(tmp_path: Path) -> None:
    """A trained network fills a small part of the range that it could use."""
    tokens = random_tokens(64, 64)
    assert tokens.geometry is not None
    scales = 0.5 + tokens.geometry.scales / 10
    narrow = replace(tokens, geometry=replace(tokens.geometry, scales=scales))
    write_tokens([("a.png", narrow)], LAYOUT, GeometryBits(32, 6, 32), tmp_path / "t.safetensors")
    file = read_tokens(tmp_path / "t.safetensors")
    assert file.layout.scale_range == (scales.min(), scales.max())
    back = file.tokens(0)
    assert back.geometry is not None
    assert np.abs(back.geometry.scales - scales).max() <= (scales.max() - scales.min()) / 2**7 + 1e-6


def test_scales_that_are_all_the_same_are_kept_in_the_range_of_the_network(tmp_path: Path) -> None:
    tokens = random_tokens(8, 8)
    assert tokens.geometry is not None
    even = replace(tokens, geometry=replace(tokens.geometry, scales=np.full_like(tokens.geometry.scales, 0.75)))
    write_tokens([("a.png", even)], LAYOUT, BITS, tmp_path / "t.safetensors")
    geometry = read_tokens(tmp_path / "t.safetensors").tokens(0).geometry
    assert geometry is not None and np.abs(geometry.scales - 0.75).max() <= (SCALES[1] - SCALES[0]) / 2 ** (BITS.scale + 1)


def test_the_grid_has_codes_alone(tmp_path: Path) -> None:
    pictures = some_pictures(GRID)
    write_tokens(pictures, GRID, NO_GEOMETRY, tmp_path / "t.safetensors")
    file = read_tokens(tmp_path / "t.safetensors")
    assert all(np.array_equal(file.tokens(number).indices, tokens.indices) for number, (_, tokens) in enumerate(pictures))
    assert file.tokens(0).geometry is None and list(file.streams) == ["indices"]
    with pytest.raises(ValueError, match="give it no bits"):
        encode_tokens(pictures, GRID, BITS)
    with pytest.raises(ValueError, match="need bits for their geometry"):
        encode_tokens(some_pictures(), LAYOUT, NO_GEOMETRY)


def test_a_file_is_its_tokens_and_a_short_header() -> None:
    tokens = random_tokens(320, 320)
    assert picture_bytes(tokens, LAYOUT, BITS) == 100 * 5 * (10 + 2 * 7 + 2 * 5 + 6) / 8
    content = encode_tokens([("a.png", tokens)], LAYOUT, BITS)
    assert picture_bytes(tokens, LAYOUT, BITS) <= len(content) < picture_bytes(tokens, LAYOUT, BITS) + 750


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a/../../b.png", "a\\b.png", "C:/a.png", "", ".", "a//b", "a\nb", "x" * 1025])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a picture"):
        encode_tokens([(name, random_tokens(8, 8))], LAYOUT, BITS)
    path = forged(tmp_path, lambda told: told["pictures"][0].__setitem__(0, name))
    with pytest.raises(TokenFileError, match="cannot be the name of a picture"):
        read_tokens(path)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tokens = random_tokens(8, 8)
    for pictures, said in (
        ([], "no pictures"),
        ([("a.png", tokens), ("a.png", tokens)], "two pictures have the name"),
        ([("a.png", replace(tokens, height=33))], r"indices \[1, 5\], but 8 x 33 pixels need \[2, 5\]"),
        ([("a.png", replace(tokens, indices=tokens.indices + 1000))], "but there are 1000"),
        ([("a.png", replace(tokens, geometry=None))], "Gaussians have one"),
    ):
        with pytest.raises(ValueError, match=said):
            encode_tokens(pictures, LAYOUT, BITS)
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenFileError, match="cannot be written"):
        write_tokens([("a.png", tokens)], LAYOUT, BITS, tmp_path / "file" / "t.safetensors")


# The page about the format.


@pytest.mark.parametrize(("layout", "bits"), [(LAYOUT, BITS), (LAYOUT, GeometryBits(32, 5, 32)), (GRID, NO_GEOMETRY)])
def test_the_reader_in_the_documentation_reads_the_same(layout: TokenLayout, bits: GeometryBits, tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    write_tokens(some_pictures(layout), layout, bits, tmp_path / "t.safetensors")
    header, numbers = names["read_token_file"](tmp_path / "t.safetensors")
    file = read_tokens(tmp_path / "t.safetensors")
    pictures = [file.tokens(number) for number in range(len(file))]
    assert [name for name, _, _ in header["pictures"]] == [picture.name for picture in file.pictures]
    assert np.array_equal(numbers["indices"][:, 0], np.concatenate([tokens.indices.ravel() for tokens in pictures]))
    for part in ("means", "scales", "rotations") if bits.any else ():
        ours = np.concatenate([getattr(tokens.geometry, part).reshape(-1, numbers[part].shape[1]) for tokens in pictures])
        assert np.abs(numbers[part] - ours).max() < 1e-6
    assert ("means" in numbers) == bits.any
