"""The fused normalisation: the same as PyTorch's where its kernels cannot run, and the kernels, interpreted, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.gaussiantoken.interpreter import interpreted
from token_methods.gaussiantoken import group_norm
from token_methods.gaussiantoken.autoencoder import ImageDecoder, ImageEncoder
from token_methods.gaussiantoken.group_norm import norm_modulated, norm_swish, residual_sum

GROUPS, EPS = 4, 1e-6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def affine_norm(channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(GROUPS, channels, eps=EPS)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * random(channels, seed=1))
        norm.bias.copy_(0.5 * random(channels, seed=2))
    return norm


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The interpreted kernels in place of PyTorch's operators, in small blocks, so that images have several parts."""
    from token_methods.gaussiantoken import group_norm_autograd, group_norm_triton

    monkeypatch.setattr(group_norm, "_kernels", lambda x, groups: group_norm_autograd if group_norm_autograd.fits(x, groups) else None)
    for name in ("FORWARD_NUMBERS", "BACKWARD_NUMBERS"):
        monkeypatch.setattr(group_norm_triton, name, 64)
    monkeypatch.setattr(group_norm_triton, "LEAST_STEPS", 2)
    monkeypatch.setattr(group_norm_triton, "MOST_PARTS", 8)
    group_norm_triton._shares.cache_clear()
    yield group_norm_triton
    group_norm_triton._shares.cache_clear()


def both_ways(x: Tensor, scale: Tensor, shift: Tensor, swish: bool) -> list[Tensor]:
    """The value and the gradients of a weighted sum of it, with whatever is in place."""
    x, scale, shift = (value.detach().clone().requires_grad_() for value in (x, scale, shift))
    if swish:
        norm = nn.GroupNorm(GROUPS, x.shape[1], eps=EPS)
        norm.weight, norm.bias = nn.Parameter(scale.detach()), nn.Parameter(shift.detach())
        scale, shift = norm.weight, norm.bias
        y = norm_swish(x, norm)
    else:
        y = norm_modulated(x, scale, shift, GROUPS, EPS)
    return [y.detach(), *torch.autograd.grad(y, [x, scale, shift], random(*y.shape, seed=9).to(y.dtype))]


def exact(x: Tensor, scale: Tensor, shift: Tensor, swish: bool) -> list[Tensor]:
    """The formulas in float64."""
    x, scale, shift = (value.detach().double().requires_grad_() for value in (x, scale, shift))
    cells = x.unflatten(1, (GROUPS, -1)).flatten(2)
    normalised = ((cells - cells.mean(-1, keepdim=True)) / (cells.var(-1, correction=0, keepdim=True) + EPS).sqrt()).view(x.shape)
    y = scale[..., None, None] * normalised + shift[..., None, None]
    y = y * y.sigmoid() if swish else y
    return [y.detach(), *torch.autograd.grad(y, [x, scale, shift], random(*y.shape, seed=9).double())]


def assert_close(ours: list[Tensor], theirs: list[Tensor], share: float) -> None:
    """Within a share of each tensor's largest value."""
    for value, expected in zip(ours, theirs, strict=True):
        assert value.shape == expected.shape
        assert (value.double() - expected).abs().max() <= share * expected.abs().max()


def operands(batch: int, channels: int, height: int, width: int, swish: bool) -> tuple[Tensor, Tensor, Tensor]:
    leading = () if swish else (batch,)
    return (
        random(batch, channels, height, width) * (1 + random(channels, 1, 1, seed=4).abs()) + random(channels, 1, 1, seed=3),
        1 + 0.3 * random(*leading, channels, seed=1),
        0.5 * random(*leading, channels, seed=2),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_a_gpu_it_is_pytorch_to_the_bit(dtype: torch.dtype) -> None:
    norm, x = affine_norm(16).to(dtype), random(2, 16, 5, 6).to(dtype)
    assert torch.equal(norm_swish(x, norm), F.silu(norm(x)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm_swish(x, norm), F.silu(norm(x)))


def test_an_images_own_scale_and_shift() -> None:
    x, scale, shift = operands(2, 16, 5, 6, swish=False)
    assert_close(both_ways(x, scale, shift, swish=False), exact(x, scale, shift, swish=False), 1e-6)
    assert norm_modulated(x.bfloat16(), scale, shift, GROUPS, EPS).dtype == torch.bfloat16


@interpreted
@pytest.mark.parametrize("swish", [True, False], ids=["swish", "modulated"])
@pytest.mark.parametrize("size", [(2, 16, 5, 6), (1, 4, 1, 1), (1, 64, 1, 3), (3, 8, 9, 13)])
def test_the_kernels_are_exact(size: tuple[int, int, int, int], swish: bool, kernels: Any) -> None:
    x, scale, shift = operands(*size, swish)
    # A group of one number has a deviation of zero, and its gradient is what rounding leaves of nothing.
    compared = slice(0, 1) if size == (1, 4, 1, 1) else slice(None)
    for memory in (torch.contiguous_format, torch.channels_last):
        ours = both_ways(x.contiguous(memory_format=memory), scale, shift, swish)
        assert ours[0].is_contiguous(memory_format=torch.channels_last) and ours[0].dtype == torch.float32
        assert_close(ours[compared], exact(x, scale, shift, swish)[compared], 2e-6)


@interpreted
def test_parts_are_united_without_losing_digits(kernels: Any) -> None:
    x, scale, shift = operands(1, 8, 16, 16, swish=True)
    assert kernels._shares(1, 256, 8, kernels.FORWARD_NUMBERS)[2] == 8
    ours, theirs = both_ways(x + 1000, scale, shift, swish=True), exact(x + 1000, scale, shift, swish=True)
    assert_close(ours, theirs, 1e-4)  # of 1000, float32 keeps four digits after the point
    x[0, :, 4:] *= 1e-3
    assert_close(both_ways(x, scale, shift, swish=True), exact(x, scale, shift, swish=True), 2e-6)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_residual_sum_and_the_norm_that_takes_it(dtype: torch.dtype, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, cotangent = (random(2, 16, 9, 13, seed=seed).to(dtype) for seed in (5, 6, 9))
    norm = affine_norm(16).to(dtype)

    def results() -> list[Tensor]:
        inputs = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        total = residual_sum(*inputs, GROUPS)
        with monkeypatch.context() as patch:
            patch.setattr("token_methods.gaussiantoken.group_norm_autograd.measure", None)  # nothing is measured twice
            normed = norm_swish(total, norm)
        return [total.detach(), normed.detach(), *torch.autograd.grad(normed, [*inputs, *norm.parameters()], cotangent)]

    ours = results()
    monkeypatch.setattr(group_norm, "_kernels", lambda x, groups: None)
    assert dtype == torch.bfloat16 or torch.equal(ours[0], x + y)  # the interpreter cuts to 16 bits where a GPU rounds
    assert_close(ours, [value.double() for value in results()], 2e-6 if dtype == torch.float32 else 0.03)


@interpreted
@pytest.mark.parametrize("swish", [True, False], ids=["swish", "modulated"])
def test_the_type_that_goes_in_comes_out(swish: bool, kernels: Any) -> None:
    x, scale, shift = operands(2, 16, 6, 5, swish)
    x = x.bfloat16()
    ours = both_ways(x, scale, shift, swish)
    assert [value.dtype for value in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert_close(ours, exact(x, scale, shift, swish), 0.01)


@interpreted
def test_what_the_kernels_cannot_take_is_left_to_pytorch(kernels: Any) -> None:
    assert kernels.fits(random(1, 8, 2, 2), GROUPS)
    assert not kernels.fits(random(1, 8, 2, 2).double(), GROUPS)
    assert not kernels.fits(random(1, 12, 2, 2), GROUPS)
    assert not kernels.fits(random(0, 8, 2, 2), GROUPS)
    x, norm = random(1, 12, 2, 2), affine_norm(12)
    assert torch.equal(norm_swish(x, norm), F.silu(norm(x)))


@interpreted
def test_encoder_and_decoder_are_the_same_with_it(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def results() -> list[Tensor]:
        torch.manual_seed(0)
        values = []
        for network, x in ((ImageEncoder(32, (1, 2), 1, 3), random(1, 3, 4, 8)), (ImageDecoder(32, (1, 2), 1, 3), random(1, 3, 2, 4))):
            y = network.to(memory_format=torch.channels_last)(x)
            values += [y.detach(), *torch.autograd.grad(y, list(network.parameters()), random(*y.shape, seed=8))]
        return values

    ours = results()
    monkeypatch.setattr(group_norm, "_kernels", lambda x, groups: None)
    # Small gradients are the rests of large sums.
    assert_close(ours, [value.double() for value in results()], 1e-4)
