"""Numbers packed to bits, and geometry to few of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.gaussiantoken.token_samples import BITS, LAYOUT, SCALES, random_geometry, random_tokens
from token_methods.gaussiantoken.bit_packing import pack, packed_size, unpack
from token_methods.gaussiantoken.geometry_quantization import EXACT, GeometryBits, dequantize, part_range, quantize
from token_methods.gaussiantoken.picture_tokens import TokenGeometry
from token_methods.gaussiantoken.token_file import encode_tokens
from token_methods.rendering.gaussians2d import Gaussians2D, splat

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
