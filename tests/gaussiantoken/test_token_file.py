"""Token files: what is written comes back, what is quantised is off by half a step at most, and nothing foreign is believed."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from token_methods.gaussiantoken.bit_packing import pack, packed_size, unpack
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.geometry_quantization import EXACT, NO_GEOMETRY, GeometryBits, dequantize, part_range, quantize
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.gaussiantoken.picture_tokens import PictureTokens, TokenGeometry, TokenLayout
from token_methods.gaussiantoken.token_file import encode_tokens, kept_tokens, picture_bytes, read_tokens, write_tokens
from token_methods.gaussiantoken.token_file_header import HEADER_KEY, TokenFileError
from token_methods.gaussiantoken.tokenizer import ImageTokenizer
from token_methods.rendering.gaussians2d import Gaussians2D, splat

PAGE = Path(__file__).resolve().parents[2] / "docs" / "token_file.md"
SCALES = (0.1, 3.0)
LAYOUT = TokenLayout(1000, 4, "0" * 64, 32, 32, 8, 8, 5, SCALES)
GRID = replace(LAYOUT, tokens_per_tile=64, scale_range=None)
BITS = GeometryBits(7, 5, 6)


def random_geometry(tiles: int, count: int, seed: int) -> TokenGeometry:
    random = np.random.default_rng(seed)
    return TokenGeometry(
        means=random.uniform(-1, 1, (tiles, count, 2)).astype(np.float32),
        scales=random.uniform(*SCALES, (tiles, count, 2)).astype(np.float32),
        rotations=random.uniform(0, math.pi, (tiles, count, 1)).astype(np.float32),
    )


def random_tokens(height: int, width: int, seed: int = 0, layout: TokenLayout = LAYOUT) -> PictureTokens:
    shape = (layout.num_tiles(height, width), layout.tokens_per_tile)
    indices = np.random.default_rng(seed).integers(0, layout.codebook_size, shape)
    return PictureTokens(height, width, indices, None if layout.scale_range is None else random_geometry(*shape, seed))


def some_pictures(layout: TokenLayout = LAYOUT) -> list[tuple[str, PictureTokens]]:
    sizes = {"a.png": (40, 70), "folder/b c.jpg": (1, 1), "\u00e9t\u00e9.webp": (32, 33)}
    return [(name, random_tokens(*size, seed, layout)) for seed, (name, size) in enumerate(sizes.items())]


# Bits.


@given(st.integers(1, 32), st.data())
def test_packed_numbers_come_back_from_anywhere(bits: int, data: st.DataObject) -> None:
    numbers = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40)), dtype=np.int64)
    packed = pack(numbers, bits)
    assert packed.size == packed_size(len(numbers), bits)
    first = data.draw(st.integers(0, len(numbers)))
    assert np.array_equal(unpack(packed, bits, len(numbers) - first, first), numbers[first:])
    text = "".join(f"{number:0{bits}b}" for number in numbers)
    assert "".join(f"{byte:08b}" for byte in packed) == text.ljust(8 * packed.size, "0")


def test_long_streams_are_packed_without_gaps() -> None:
    numbers = np.random.default_rng(0).integers(0, 8, 200_001)
    packed = pack(numbers, 3)
    assert packed.size == packed_size(len(numbers), 3)
    assert np.array_equal(unpack(packed, 3, 150_000, 50_001), numbers[50_001:])


@pytest.mark.parametrize(("numbers", "bits"), [([8], 3), ([-1], 3), ([0], 0), ([0], 33)])
def test_numbers_that_do_not_fit_are_refused(numbers: list[int], bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        pack(np.array(numbers), bits)


def test_a_stream_that_ends_early_is_refused() -> None:
    with pytest.raises(ValueError, match="hold fewer than 4 numbers of 7 bits"):
        unpack(np.zeros(3, np.uint8), 7, 2, 2)


# Geometry.


@given(
    st.tuples(*[st.integers(1, 16)] * 3),
    st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2),
    st.lists(st.floats(np.float32(SCALES[0]).item(), SCALES[1], width=32), min_size=2, max_size=2),
    st.floats(-10, 10, width=32),
)
def test_geometry_is_off_by_half_a_step_at_most(bits: tuple[int, int, int], means: list[float], scales: list[float], turn: float) -> None:
    depth = GeometryBits(*bits)
    before = TokenGeometry(*(np.array(value, np.float32).reshape(1, 1, -1) for value in (means, scales, [turn])))
    after = dequantize(quantize(before, depth, SCALES), depth, SCALES)
    rounding = 2e-6
    assert np.abs(after.means - before.means).max() <= 1 / 2**depth.position + rounding
    # The same ellipse may have its axes in the other order, a quarter turn away.
    quarters = round((turn - float(after.rotations.item())) / (math.pi / 2))
    swapped = after.scales[..., ::-1] if quarters % 2 else after.scales
    assert np.abs(swapped - before.scales).max() <= (SCALES[1] - SCALES[0]) / 2 ** (depth.scale + 1) + rounding
    assert abs(turn - after.rotations.item() - quarters * math.pi / 2) <= math.pi / 4 / 2**depth.rotation + rounding


def test_quantised_gaussians_draw_the_same_picture() -> None:
    """At 16 bits nothing can be seen of the swapped axes and the steps."""
    geometry = random_geometry(1, 12, seed=3)
    features = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
    depth = GeometryBits(16, 16, 16)
    maps = [
        splat(Gaussians2D(*(torch.from_numpy(part) for part in (own.means, own.scales, own.rotations)), features), 16, 16)
        for own in (geometry, dequantize(quantize(geometry, depth, SCALES), depth, SCALES))
    ]
    # What falls below 1/255 of a Gaussian's peak is not drawn, and may be so on one side only.
    assert (maps[0] - maps[1]).abs().max() < 2e-2
    assert (maps[0] - maps[1]).abs().mean() < 2e-4 < maps[0].abs().mean() / 100


def test_exact_geometry_is_untouched() -> None:
    geometry = random_geometry(2, 5, seed=1)
    after = dequantize(quantize(geometry, EXACT, SCALES), EXACT, SCALES)
    assert all(np.array_equal(getattr(geometry, part), getattr(after, part)) for part in ("means", "scales", "rotations"))


def test_every_step_is_used_evenly() -> None:
    """A quarter turn has all codes of a rotation, so none of its bits is wasted."""
    for part in ("means", "scales", "rotations"):
        low, high = part_range(part, SCALES)
        values = np.linspace(low, high, 64 * 50, endpoint=False, dtype=np.float64)
        geometry = random_geometry(1, len(values), seed=0)
        width = getattr(geometry, part).shape[-1]
        filled = replace(geometry, **{part: np.repeat(values[None, :, None], width, axis=2)})
        if part == "scales":
            filled = replace(filled, rotations=np.zeros_like(geometry.rotations))
        steps = quantize(filled, GeometryBits(6, 6, 6), SCALES)[part]
        counts = np.bincount(steps[0, :, 0], minlength=64)
        assert len(counts) == 64 and counts.min() >= 48 and counts.max() <= 52


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"means": np.full((1, 5, 2), 1.1, np.float32)}, r"means of Gaussians must lie in -1\.\.1"),
        ({"scales": np.full((1, 5, 2), 3.1, np.float32)}, r"scales of Gaussians must lie in 0\.1\.\.3"),
        ({"rotations": np.full((1, 5, 1), np.nan, np.float32)}, "rotations of Gaussians must be finite"),
    ],
)
def test_geometry_outside_of_its_range_is_not_bent(change: dict[str, np.ndarray], said: str) -> None:
    tokens = random_tokens(8, 8)
    assert tokens.geometry is not None
    with pytest.raises(ValueError, match=f"x.png: {said}"):
        encode_tokens([("x.png", replace(tokens, geometry=replace(tokens.geometry, **change)))], LAYOUT, BITS)


@pytest.mark.parametrize("bits", [(0, 6, 6), (8, 17, 6), (8, 6, 33), (8, 6, -1)])
def test_odd_numbers_of_bits_are_refused(bits: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="1 to 16, or 32"):
        GeometryBits(*bits)


# Files.


@pytest.mark.parametrize("bits", [BITS, EXACT, GeometryBits(1, 32, 3), GeometryBits(32, 4, 32)])
def test_tokens_come_back(bits: GeometryBits, tmp_path: Path) -> None:
    pictures = some_pictures()
    size = write_tokens(pictures, LAYOUT, bits, tmp_path / "t.safetensors")
    assert size == (tmp_path / "t.safetensors").stat().st_size
    assert list(tmp_path.iterdir()) == [tmp_path / "t.safetensors"]
    file = read_tokens(tmp_path / "t.safetensors")
    assert file.layout == LAYOUT and file.bits == bits and len(file) == 3
    for number, (name, tokens) in enumerate(pictures):
        back, expected = file.tokens(number), kept_tokens(tokens, LAYOUT, bits)
        assert file.pictures[number].name == name and (back.height, back.width) == (tokens.height, tokens.width)
        assert np.array_equal(back.indices, tokens.indices)
        assert back.geometry is not None and expected.geometry is not None and tokens.geometry is not None
        for part in ("means", "scales", "rotations"):
            assert np.array_equal(getattr(back.geometry, part), getattr(expected.geometry, part)), part
            if bits == EXACT:
                assert np.array_equal(getattr(back.geometry, part), getattr(tokens.geometry, part)), part


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


# Foreign files.


def forged(folder: Path, change: Callable[[dict[str, Any]], object], streams: dict[str, np.ndarray] | None = None) -> Path:
    """A token file with another header, or other tensors; its checksum is right."""
    content = encode_tokens(some_pictures(), LAYOUT, BITS)
    start = 8 + struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8:start])
    told = json.loads(table.pop("__metadata__")[HEADER_KEY])
    own = {name: np.frombuffer(content[start:], np.uint8)[slice(*entry["data_offsets"])] for name, entry in table.items()}
    own.update(streams or {})
    told["crc32"] = zlib.crc32(b"".join(own[name].tobytes() for name in ("indices", "means", "scales", "rotations") if name in own))
    change(told)
    save_file(own, folder / "forged.safetensors", metadata={HEADER_KEY: json.dumps(told)})
    return folder / "forged.safetensors"


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


# Pictures.


def tiny_tokenizer(preset: str = "tiny") -> ImageTokenizer:
    """An untrained network with random codes."""
    torch.manual_seed(0)
    architecture = PRESETS[preset].architecture
    network = GaussianTokenNetwork(replace(architecture, channels=32, num_residual_blocks=1))
    network.quantize.codebook.copy_(torch.randn_like(network.quantize.codebook))
    return ImageTokenizer(network)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_tiles_are_coded_as_pictures_of_their_own() -> None:
    tokenizer = tiny_tokenizer()
    picture = noise(64, 32)
    whole, parts = tokenizer.tokenize(picture), [tokenizer.tokenize(picture[:32]), tokenizer.tokenize(picture[32:])]
    assert np.array_equal(whole.indices, np.concatenate([part.indices for part in parts]))
    back = tokenizer.detokenize(whole)
    assert back.shape == picture.shape and back.dtype == np.uint8
    difference = back.astype(int) - np.concatenate([tokenizer.detokenize(part) for part in parts]).astype(int)
    assert np.abs(difference).max() <= 1
    with torch.inference_mode():
        direct = tokenizer.network(torch.from_numpy(picture[:32]).permute(2, 0, 1)[None] / 127.5 - 1)[0].permute(1, 2, 0)
    assert np.abs(back[:32] - ((direct + 1) / 2).clamp(0, 1).mul(255).numpy()).max() <= 0.51


def test_odd_sizes_are_padded_with_their_border_and_cut_back() -> None:
    tokenizer = tiny_tokenizer()
    picture = noise(33, 40)
    padded = np.pad(picture, ((0, 31), (0, 24), (0, 0)), mode="edge")
    tokens, expected = tokenizer.tokenize(picture), tokenizer.tokenize(padded)
    assert tokens.indices.shape == (4, 16) and np.array_equal(tokens.indices, expected.indices)
    assert np.array_equal(tokenizer.detokenize(tokens), tokenizer.detokenize(expected)[:33, :40])


@pytest.mark.parametrize("preset", ["tiny", "vqgan-cifar"])
def test_pictures_share_batches_and_come_back_in_order(preset: str) -> None:
    tokenizer = tiny_tokenizer(preset)
    tokenizer.batch_size = 3
    pictures = [noise(20, 70, 1), noise(32, 32, 2), noise(65, 10, 3)]
    tokens = tokenizer.tokenize_all(pictures)
    for picture, own, back in zip(pictures, tokens, tokenizer.detokenize_all(tokens)):
        alone = tokenizer.tokenize(picture)
        assert np.array_equal(own.indices, alone.indices) and (own.height, own.width) == picture.shape[:2] == back.shape[:2]
        assert np.abs(back.astype(int) - tokenizer.detokenize(alone).astype(int)).max() <= 1
    assert tokenizer.tokenize_all([]) == [] and tokenizer.detokenize_all([]) == []


def test_what_is_no_picture_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    for picture in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"must be uint8 \[height, width, 3\]"):
            tokenizer.tokenize(picture)


def test_networks_are_told_apart() -> None:
    layout, other = tiny_tokenizer().layout, tiny_tokenizer("vqgan-cifar").layout
    assert not list(layout.differences(replace(layout, scale_range=(0.1, 3.5))))
    assert "the codebook 00000000 instead of" in next(replace(layout, codebook_sha256="0" * 64).differences(layout))
    assert "Gaussians for tokens instead of cells" in list(layout.differences(other))
