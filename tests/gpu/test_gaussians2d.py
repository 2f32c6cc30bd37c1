"""2D splatting on CUDA: the Triton kernels against the torch backend, and what they promise beside the numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from token_methods.rendering.gaussians2d import Gaussians2D, splat

pytestmark = pytest.mark.gpu

FIELDS = ("means", "scales", "rotations", "features", "opacities")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Any:
    """The kernels' module; `splat` uses it wherever it can be imported."""
    pytest.importorskip("triton", reason="the CUDA kernels need Triton")
    from token_methods.rendering import gaussians2d_triton

    return gaussians2d_triton


def some_gaussians(
    batch: int, count: int, channels: int, scales: tuple[float, float] = (0.1, 4.0), opacity: float | None = 1.0, seed: int = 0
) -> Gaussians2D:
    g = torch.Generator().manual_seed(seed)
    return Gaussians2D(
        means=2.4 * torch.rand(batch, count, 2, generator=g) - 1.2,
        scales=scales[0] + (scales[1] - scales[0]) * torch.rand(batch, count, 2, generator=g),
        rotations=math.pi * torch.rand(batch, count, 1, generator=g),
        features=torch.randn(batch, count, channels, generator=g),
        opacities=None if opacity is None else opacity * torch.rand(batch, count, 1, generator=g),
    )


def with_gradients(gaussians: Gaussians2D, height: int, width: int, device: str = "cuda") -> list[Tensor]:
    """The map, and the gradients of a fixed weighted sum of it, all on the CPU."""
    leaves = gaussians.map(lambda value: value.detach().to(device).requires_grad_())
    image = splat(leaves, height, width)
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(7)).to(image)
    inputs = [getattr(leaves, name) for name in FIELDS if getattr(leaves, name) is not None]
    return [value.detach().cpu() for value in (image, *torch.autograd.grad(image, inputs, weight))]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Within 1e-4 of the largest value, except where rounding moved an alpha across the cut (an entry in a thousand, by little)."""
    for value, expected in zip(ours, theirs, strict=True):
        assert value.shape == expected.shape
        error = (value - expected).abs() / expected.abs().max().clamp_min(1e-6)
        assert (error > 1e-4).float().mean() <= 1e-3
        assert error.max() < 0.02


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((1, 1, 1, 1, 1), {}),
        ((1, 1, 3, 17, 1), {"opacity": None}),
        ((256, 64, 3, 16, 16), {"opacity": None}),
        ((256, 64, 4, 16, 16), {}),
        ((16, 256, 8, 32, 32), {"opacity": None}),
        ((3, 37, 5, 24, 40), {"opacity": 3.0}),
        ((2, 300, 16, 33, 49), {}),
        ((2, 50, 37, 20, 20), {}),
        ((1, 700, 3, 100, 70), {"scales": (0.02, 0.5)}),
        ((2, 40, 2, 130, 90), {"scales": (5.0, 40.0)}),
        ((5000, 3, 1, 16, 16), {}),
    ],
)
def test_the_kernels_say_what_torch_says(size, options):
    batch, count, channels, height, width = size
    gaussians = some_gaussians(batch, count, channels, **options)
    assert_close(with_gradients(gaussians, height, width), with_gradients(gaussians, height, width, device="cpu"))


@pytest.mark.parametrize(("count", "channels"), [(0, 3), (6, 0)])
def test_no_gaussians_or_no_channels(count, channels):
    image, *gradients = with_gradients(some_gaussians(2, count, channels), 16, 20)
    assert image.shape == (2, channels, 16, 20) and not image.any() and not any(gradient.any() for gradient in gradients)


def test_ten_thousand_gaussians_on_a_photograph():
    gaussians = some_gaussians(1, 10_000, 3, scales=(2.0, 6.0), opacity=None)
    assert_close(with_gradients(gaussians, 512, 768), with_gradients(gaussians, 512, 768, device="cpu"))


def test_nothing_to_draw_is_zero_and_what_is_not_finite_is_not_drawn():
    gaussians = some_gaussians(2, 6, 3)
    for change in (
        {"means": gaussians.means + 40},
        {"scales": gaussians.scales * torch.tensor([1.0, 0.0])},
        {"opacities": torch.zeros(2, 6, 1)},
    ):
        assert not any(value.any() for value in with_gradients(dataclasses.replace(gaussians, **change), 20, 20))
    for number in (math.nan, math.inf, -math.inf):
        broken = dataclasses.replace(gaussians, means=gaussians.means.clone())
        broken.means[:, 2] = number
        others = gaussians.map(lambda value: value[:, [0, 1, 3, 4, 5]])
        assert_close([splat(broken.to("cuda"), 20, 20).cpu()], [splat(others, 20, 20)])


def test_the_same_bits_every_time():
    gaussians = some_gaussians(2, 500, 8)
    first, second = with_gradients(gaussians, 64, 64), with_gradients(gaussians, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_float32_under_autocast_and_views_as_inputs():
    gaussians = some_gaussians(2, 40, 3)
    plain = with_gradients(gaussians, 32, 32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(with_gradients(gaussians, 32, 32), plain))
    table = torch.cat([getattr(gaussians, name) for name in FIELDS], dim=-1).cuda().requires_grad_()
    image = splat(Gaussians2D(*table.split([2, 2, 1, 3, 1], dim=-1)), 32, 32)
    assert torch.equal(image.detach().cpu(), plain[0])
    image.sum().backward()  # an expanded gradient
    assert table.grad.isfinite().all() and table.grad.any()


def test_inputs_may_begin_anywhere_in_memory():
    gaussians = some_gaussians(2, 40, 3).to("cuda")
    plain = splat(gaussians, 32, 32)
    assert torch.equal(splat(gaussians, 32, 32), plain)  # the kernel is kept by now

    def shifted(value: Tensor) -> Tensor:
        return torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)

    assert shifted(gaussians.features).data_ptr() % 16 == 4
    assert torch.equal(splat(gaussians.map(shifted), 32, 32), plain)


def test_float64_is_drawn_by_torch():
    gaussians = some_gaussians(2, 40, 3).map(Tensor.double)
    assert (splat(gaussians.to("cuda"), 20, 20).cpu() - splat(gaussians, 20, 20)).abs().max() < 1e-12


def test_the_host_never_waits_and_a_graph_can_be_captured():
    gaussians = some_gaussians(4, 64, 3).to("cuda").map(lambda value: value.requires_grad_())
    inputs = [getattr(gaussians, name) for name in FIELDS]
    weight = torch.randn(4, 3, 16, 16, device="cuda")

    def step() -> list[Tensor]:
        image = splat(gaussians, 16, 16)
        return [image, *torch.autograd.grad(image, inputs, weight)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))
