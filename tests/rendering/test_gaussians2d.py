"""2D splatting: what the formulas of the paper give, their exact gradients, and the published kernels' numbers."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scripts.check_parity import main
from token_methods.rendering import gaussians2d_torch
from token_methods.rendering.gaussians2d import Gaussians2D, splat

FIELDS = ("means", "scales", "rotations", "features", "opacities")


def some_gaussians(
    batch: int, count: int, channels: int, seed: int = 0, scales: tuple[float, float] = (0.1, 4.0), opacity: float | None = 1.0, **kind: Any
) -> Gaussians2D:
    """Random Gaussians, some of them just outside the map; opacities up to `opacity`."""
    g = torch.Generator().manual_seed(seed)
    gaussians = Gaussians2D(
        means=2.4 * torch.rand(batch, count, 2, generator=g) - 1.2,
        scales=scales[0] + (scales[1] - scales[0]) * torch.rand(batch, count, 2, generator=g),
        rotations=math.pi * torch.rand(batch, count, 1, generator=g),
        features=torch.randn(batch, count, channels, generator=g),
        opacities=None if opacity is None else opacity * torch.rand(batch, count, 1, generator=g),
    )
    return gaussians.map(lambda value: value.to(**kind))


def dense_splat(gaussians: Gaussians2D, height: int, width: int) -> Tensor:
    """The formulas, written out: every Gaussian at every pixel, through the covariance and its inverse."""
    (mx, my), (sx, sy), t = gaussians.means.unbind(-1), gaussians.scales.unbind(-1), gaussians.rotations[..., 0]
    cx, cy = 0.5 * width * (mx + 1), 0.5 * height * (my + 1)
    turn = torch.stack([t.cos(), t.sin(), -t.sin(), t.cos()], dim=-1).unflatten(-1, (2, 2))
    covariance = turn @ torch.diag_embed(gaussians.scales**2) @ turn.mT
    a, b, d = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    determinant, middle = sx**2 * sy**2, (a + d) / 2
    radius = torch.ceil(3 * (middle + (middle**2 - determinant).clamp_min(0.1).sqrt()).sqrt()).detach()
    determinant = torch.where(determinant == 0, math.inf, determinant)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    in_box = determinant.isfinite()[..., None, None]
    for center, pixel in ((cx, x), (cy, y)):
        first = ((center / 16 - radius / 16).trunc().clamp_min(0))[..., None, None]
        last = (center / 16 + radius / 16 + 1).trunc()[..., None, None]
        in_box = in_box & (pixel // 16 >= first) & (pixel // 16 < last)
    dx, dy = cx[..., None, None] - x, cy[..., None, None] - y
    a, b, d, determinant = (value[..., None, None] for value in (a, b, d, determinant))
    sigma = (0.5 * (d * dx**2 + a * dy**2) - b * dx * dy) / determinant
    opacity = torch.ones_like(sigma) if gaussians.opacities is None else gaussians.opacities[..., None]
    alpha = (opacity * torch.exp(-sigma)).clamp(max=1)
    alpha = torch.where(in_box & (alpha >= 1 / 255), alpha, 0)
    return torch.einsum("bnhw,bnc->bchw", alpha, gaussians.features)


def with_gradients(draw: Any, gaussians: Gaussians2D, *size: int, **options: Any) -> list[Tensor]:
    """The map, and the gradients of a fixed weighted sum of it by every field that is there."""
    leaves = gaussians.map(lambda value: value.detach().clone().requires_grad_())
    image = draw(leaves, *size, **options)
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(image)
    inputs = [getattr(leaves, name) for name in FIELDS if getattr(leaves, name) is not None]
    return [image.detach(), *torch.autograd.grad((image * weight).sum(), inputs)]


def largest_error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest difference in shares of the largest value of each tensor."""
    assert [value.shape for value in ours] == [value.shape for value in theirs]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) for a, b in zip(ours, theirs))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 30),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([None, 0.9, 3.0]),
    st.sampled_from([(0.1, 4.0), (0.02, 0.3), (3.0, 30.0)]),
    st.integers(0, 10_000),
)
def test_any_size_equals_the_dense_formulas(batch, count, channels, height, width, opacity, scales, seed):
    gaussians = some_gaussians(batch, count, channels, seed, scales, opacity, dtype=torch.float64)
    ours, theirs = with_gradients(splat, gaussians, height, width), with_gradients(dense_splat, gaussians, height, width)
    assert largest_error(ours, theirs) < 1e-9


@pytest.mark.parametrize(("batch", "count", "channels", "size"), [(4, 64, 3, 16), (1, 256, 8, 32)])
def test_float32_loses_no_more_than_its_digits(batch, count, channels, size):
    gaussians = some_gaussians(batch, count, channels)
    ours, theirs = with_gradients(splat, gaussians, size, size), with_gradients(dense_splat, gaussians.map(Tensor.double), size, size)
    assert all(value.dtype == torch.float32 for value in ours)
    assert largest_error(ours, [value.float() for value in theirs]) < 1e-5


def test_gradients_equal_finite_differences():
    gaussians = some_gaussians(1, 4, 2, seed=3, scales=(1.0, 3.0), opacity=0.8, dtype=torch.float64)
    fields = [getattr(gaussians, name).requires_grad_() for name in FIELDS]
    assert torch.autograd.gradcheck(lambda *values: splat(Gaussians2D(*values), 5, 18), fields, eps=1e-7, atol=1e-5)


def test_blocks_and_bands_change_nothing(monkeypatch):
    gaussians = some_gaussians(3, 50, 3, scales=(0.5, 9.0))
    whole = with_gradients(splat, gaussians, 70, 50)
    monkeypatch.setattr(gaussians2d_torch, "BLOCK_PAIRS", 7 * 256)
    monkeypatch.setattr(gaussians2d_torch, "LIST_ENTRIES", 2 * 4 * 50)
    assert largest_error(with_gradients(splat, gaussians, 70, 50), whole) < 1e-5
    published = with_gradients(splat, some_gaussians(1, 50, 4), 70, 50, published=True)
    monkeypatch.undo()
    assert largest_error(published, with_gradients(splat, some_gaussians(1, 50, 4), 70, 50, published=True)) < 1e-5


def test_one_narrow_gaussian_lies_where_the_convention_says():
    def drawn(mean: tuple[float, float], scales: tuple[float, float], angle: float) -> Tensor:
        one = Gaussians2D(torch.tensor([[mean]]), torch.tensor([[scales]]), torch.tensor([[[angle]]]), torch.ones(1, 1, 1))
        return splat(one, 8, 8)[0, 0]

    assert drawn((-1.0, -1.0), (0.3, 0.3), 0.0).argmax() == 0  # the middle of the first pixel, without half a pixel
    assert drawn((0.5, -0.25), (0.3, 0.3), 0.0).argmax() == 3 * 8 + 6  # x before y
    turned = drawn((0.0, 0.0), (2.0, 0.5), math.pi / 4)
    assert turned[3, 5] > 10 * turned[5, 5]  # the long axis rises to the right


@pytest.mark.parametrize("channels", [0, 3])
def test_nothing_to_draw_is_zero_with_zero_gradients(channels):
    gaussians = some_gaussians(2, 6, channels)
    assert not splat(some_gaussians(2, 0, 3), 5, 7).any()
    outside = dataclasses.replace(gaussians, means=gaussians.means + 40)
    flat = dataclasses.replace(gaussians, scales=gaussians.scales * torch.tensor([1.0, 0.0]))
    faint = dataclasses.replace(gaussians, opacities=torch.full((2, 6, 1), 0.003))
    transparent = dataclasses.replace(gaussians, opacities=torch.zeros(2, 6, 1))
    for case in (outside, flat, faint, transparent):
        values = with_gradients(splat, case, 5, 7)
        assert values[0].shape == (2, channels, 5, 7)
        assert not any(value.any() for value in values)


def test_a_gaussian_that_is_not_finite_leaves_the_others_alone():
    gaussians = some_gaussians(1, 6, 3, opacity=None)
    for name in ("means", "scales", "rotations"):
        for number in (math.nan, math.inf) if name == "means" else (math.nan,):
            broken = dataclasses.replace(gaussians, **{name: getattr(gaussians, name).clone()})
            getattr(broken, name)[0, 2, 0] = number
            others = gaussians.map(lambda value: value[:, [0, 1, 3, 4, 5]])
            assert torch.equal(splat(broken, 20, 20), splat(others, 20, 20))


def test_alpha_stops_at_one_and_so_does_its_gradient():
    opacities = torch.full((1, 1, 1), 3.0, requires_grad=True)
    one = Gaussians2D(torch.zeros(1, 1, 2), torch.full((1, 1, 2), 2.0), torch.zeros(1, 1, 1), torch.ones(1, 1, 3), opacities)
    image = splat(one, 8, 8)
    assert image[0, 0, 4, 4] == 1 and image[0, 0, 4, 5] == 1
    assert torch.autograd.grad(image[0, 0, 4, 4], opacities)[0] == 0
    (published,) = torch.autograd.grad(splat(one, 8, 8, published=True)[0, 0, 4, 5], opacities)
    assert published.item() == pytest.approx(math.exp(-1 / 8))


def test_only_three_published_channels_stop_at_256_gaussians_of_a_tile():
    def total(channels: int, published: bool) -> float:
        stack = Gaussians2D(torch.zeros(1, 300, 2), torch.ones(1, 300, 2), torch.zeros(1, 300, 1), torch.ones(1, 300, channels))
        return splat(stack, 16, 16, published)[0, 0, 8, 8].item()

    assert (total(3, False), total(3, True), total(4, True)) == (300, 256, 300)


def test_published_gradients_leave_out_the_last_gaussian_of_a_tile_unless_there_are_three_channels():
    for channels, missing in ((3, False), (4, True)):
        stack = Gaussians2D(torch.zeros(1, 5, 2), torch.full((1, 5, 2), 2.0), torch.zeros(1, 5, 1), torch.ones(1, 5, channels))
        features = with_gradients(splat, stack, 16, 16, published=True)[4]
        assert features[0, :4].any(dim=-1).all()
        assert bool(features[0, 4].any()) is not missing


def test_everything_is_float32_under_autocast_and_from_halves():
    gaussians = some_gaussians(2, 20, 3, opacity=None)
    plain = with_gradients(splat, gaussians, 20, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(with_gradients(splat, gaussians, 20, 20), plain))
    halves = dataclasses.replace(gaussians, features=gaussians.features.bfloat16())
    image = splat(halves, 20, 20)
    assert torch.equal(image, splat(dataclasses.replace(gaussians, features=halves.features.float()), 20, 20))


def test_many_gaussians_on_a_large_map_take_no_memory_for_all_pairs():
    count, height, width = 1500, 192, 128
    gaussians = some_gaussians(1, count, 3, scales=(0.5, 4.0))
    with torch.profiler.profile(profile_memory=True) as profile:
        values = with_gradients(splat, gaussians, height, width)
    assert 0 < max(event.cpu_memory_usage for event in profile.events()) < 4 * count * height * width / 20
    # One row of tiles is a map of its own.
    means = torch.stack([gaussians.means[..., 0], ((gaussians.means[..., 1] + 1) * height - 2 * 96) / 16 - 1], dim=-1)
    band = dense_splat(dataclasses.replace(gaussians, means=means), 16, width)
    assert (values[0][:, :, 96:112] - band).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": torch.zeros(6, 2)}, r"means \[batch, n, 2\]"),
        ({"scales": torch.zeros(1, 6, 3)}, r"Gaussians2D.scales must be \[1, 6, 2\], got \[1, 6, 3\]"),
        ({"rotations": torch.zeros(1, 6)}, r"Gaussians2D.rotations must be \[1, 6, 1\], got \[1, 6\]"),
        ({"features": torch.zeros(1, 5, 3)}, r"Gaussians2D.features must be \[1, 6, 3\], got \[1, 5, 3\]"),
        ({"opacities": torch.zeros(2, 6, 1)}, r"Gaussians2D.opacities must be \[1, 6, 1\], got \[2, 6, 1\]"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(some_gaussians(1, 6, 3), **change)


def test_a_map_without_pixels_is_refused():
    with pytest.raises(ValueError, match="at least one pixel, got height 0"):
        splat(some_gaussians(1, 6, 3), 0, 4)


def test_the_cases_of_the_published_kernels_pass(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = sorted((reference / "parity" / "gaussiantoken" / "cases").glob("splat2d*.safetensors"))
    assert cases
    status = main(["gaussiantoken", *(str(case) for case in cases)])
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((2, 7, 3, 16, 16), {}),
        ((1, 20, 5, 20, 37), {"opacity": 2.0}),
        ((1, 20, 18, 5, 3), {"opacity": None}),
        ((1, 1, 1, 1, 1), {}),
        ((1, 19, 2, 20, 20), {"scales": (3.0, 20.0)}),
    ],
)
@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None,
    reason="needs Triton and TRITON_INTERPRET=1, which must be set before Triton is loaded",
)
def test_the_cuda_kernels_say_the_same_when_they_are_interpreted(size, options, monkeypatch):
    from token_methods.rendering import gaussians2d_triton as kernels

    def draw(gaussians: Gaussians2D, height: int, width: int) -> Tensor:
        return kernels.splat_fused(*(getattr(gaussians, name) for name in FIELDS), height, width)

    monkeypatch.setattr(kernels, "MOST_CHUNK", 16)
    monkeypatch.setattr(kernels, "MOST_PROGRAMS", 2)
    batch, count, channels, height, width = size
    gaussians = some_gaussians(batch, count, channels, **options)
    gaussians.scales[0, -1, 0] = 0.0 if count > 1 else 1.0
    assert largest_error(with_gradients(draw, gaussians, height, width), with_gradients(splat, gaussians, height, width)) < 1e-5
