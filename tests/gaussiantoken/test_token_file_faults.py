"""Files of tokens that others wrote, cut or forged: one error each, never a crash."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.gaussiantoken.token_samples import BITS, LAYOUT, forged, some_pictures
from token_methods.gaussiantoken.bit_packing import pack
from token_methods.gaussiantoken.token_file import encode_tokens, read_tokens
from token_methods.gaussiantoken.token_file_header import HEADER_KEY, TokenFileError


def put(*place: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(told: dict[str, Any]) -> None:
        *way, last = place
        for key in way:
            told = told[key]  # type: ignore[index]
        told[last] = value  # type: ignore[index]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("version", value=2), "of version 2, and this is a reader of version 1"),
        (put("version", value=None), "of version None"),
        (put("codebook", value=[]), "'codebook' must be an object"),
        (put("codebook", "size", value=2**40), "'size' of 'codebook' must be a whole number"),
        (put("codebook", "size", value=True), "'size' of 'codebook' must be a whole number"),
        (put("codebook", "size", value=2000), "2000 codes take 11 bits, not 10"),
        (put("codebook", "sha256", value="x"), "64 hexadecimal digits"),
        (put("tile", "height", value=0), "'height' of 'tile'"),
        (put("tile", "tokens", value=10**9), "'tokens' of 'tile'"),
        (put("tile", "tokens", value=6), "but its header promises"),
        (put("map", "width", value=-1), "'width' of 'map'"),
        (put("bits", "position", value=17), "position bits must be 1 to 16"),
        (put("bits", "position", value=8), "but its header promises"),
        (put("bits", "scale", value=32), "but its header promises"),
        (put("scale_range", value=None), "belong together"),
        (put("scale_range", value=[3.0, 0.1]), "smallest and largest"),
        (put("scale_range", value=[0.1, float("nan")]), "smallest and largest"),
        (put("scale_range", value=[0.1, float("inf")]), "smallest and largest"),
        (put("crc32", value=1), "checksum"),
        (put("pictures", value=[]), "there are no pictures"),
        (put("pictures", value=7), "'pictures' of the header must be a list"),
        (put("pictures", 0, value=["a", 1]), "a picture is"),
        (put("pictures", 0, 1, value=0), "pixels, and there can be 1 to"),
        (put("pictures", 0, 1, value=10**12), "pixels, and there can be 1 to"),
        (put("pictures", 0, 1, value=10_000), "but its header promises"),
        (put("pictures", 1, 0, value="a.png"), "two pictures have the name a.png"),
        (lambda told: told.pop("bits"), "the header lacks 'bits'"),
    ],
)
def test_headers_are_not_believed(change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path) -> None:
    path = forged(tmp_path, change)
    with pytest.raises(TokenFileError, match=re.escape(said)) as refused:
        read_tokens(path)
    assert str(path) in str(refused.value) and "again" in str(refused.value)


def test_tensors_are_compared_with_the_header(tmp_path: Path) -> None:
    assert len(read_tokens(forged(tmp_path, lambda told: None))) == 3
    for streams in (
        {"indices": np.zeros(3, np.uint8)},
        {"indices": np.zeros((5, 10), np.uint8)},
        {"means": np.zeros(4, np.float32)},
        {"more": np.zeros(4, np.uint8)},
    ):
        with pytest.raises(TokenFileError, match="but its header promises"):
            read_tokens(forged(tmp_path, lambda told: None, streams))


def test_codes_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    """Ten bits hold 1024 numbers, and there are 1000 codes."""
    count = sum(tokens.indices.size for _, tokens in some_pictures())
    file = read_tokens(forged(tmp_path, lambda told: None, {"indices": pack(np.full(count, 1001), 10)}))
    with pytest.raises(TokenFileError, match=r"code 1001 of a\.png, but there are 1000 codes"):
        file.tokens(0)


@pytest.mark.parametrize("value", [np.nan, 2.0])
def test_exact_geometry_that_is_none_is_refused(value: float, tmp_path: Path) -> None:
    count = sum(tokens.indices.size for _, tokens in some_pictures())
    file = read_tokens(forged(tmp_path, put("bits", "position", value=32), {"means": np.full(2 * count, value, np.float32)}))
    with pytest.raises(TokenFileError, match=r"is damaged \(a\.png: means of Gaussians"):
        file.tokens(0)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"w": np.zeros(2, np.float32)}, path)
    with pytest.raises(TokenFileError, match="holds no tokens of pictures"):
        read_tokens(path)
    for text in ("[" * 100_000, "7", '{"version":1}', "{", '{"version":' + "9" * 5000 + "}"):
        save_file({}, path, metadata={HEADER_KEY: text})
        with pytest.raises(TokenFileError, match="damaged header"):
            read_tokens(path)
    with pytest.raises(TokenFileError, match="there is no token file"):
        read_tokens(tmp_path)


def test_a_cut_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    content = encode_tokens(some_pictures(), LAYOUT, BITS)
    path = tmp_path / "cut.safetensors"
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(TokenFileError, match=r"cut off|damaged"):
            read_tokens(path)


def opened_or_refused(path: Path) -> None:
    """Everything of a file is read, or one error says what is wrong."""
    said = str(path)
    try:
        file = read_tokens(path)
        for number in range(len(file)):
            file.tokens(number)
    except TokenFileError as error:
        said = str(error)
    assert str(path) in said and "\n" not in said


FUZZING = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZING
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "random.safetensors"
    path.write_bytes(content)
    with pytest.raises(TokenFileError):
        read_tokens(path)


@FUZZING
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_changes_do_no_harm(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(encode_tokens(some_pictures(), LAYOUT, BITS))
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content)
    opened_or_refused(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PLACES = [("codebook",), ("codebook", "size"), ("tile", "tokens"), ("tile", "height"), ("scale_range",), ("scale_range", 0), ("bits",)]
PLACES += [("bits", "index"), ("bits", "position"), ("crc32",), ("pictures",), ("pictures", 0), ("pictures", 0, 0), ("pictures", 0, 1)]


@FUZZING
@given(st.sampled_from(PLACES), JSON)
def test_random_headers_do_no_harm(tmp_path: Path, place: tuple[str | int, ...], value: object) -> None:
    opened_or_refused(forged(tmp_path, put(*place, value=value)))
