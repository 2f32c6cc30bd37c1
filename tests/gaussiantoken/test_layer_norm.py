"""Layer normalisation of short rows: PyTorch's where its kernels cannot run, and the kernels, interpreted, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.gaussiantoken.interpreter import interpreted
from token_methods.gaussiantoken.layer_norm import LayerNorm

EPS = 1e-5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_without_a_gpu_it_is_pytorch_to_the_bit() -> None:
    x = random(3, 5, 64)
    assert torch.equal(LayerNorm(64)(x), nn.LayerNorm(64)(x))
    assert list(LayerNorm(64).state_dict()) == list(nn.LayerNorm(64).state_dict())


@interpreted
@pytest.mark.parametrize("size", [(64, 32), (3, 41, 64), (1, 8), (700, 16)])
def test_the_kernels_are_exact(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from token_methods.gaussiantoken import layer_norm_triton

    monkeypatch.setattr(layer_norm_triton, "FORWARD_NUMBERS", 512)
    monkeypatch.setattr(layer_norm_triton, "BACKWARD_NUMBERS", 512)
    monkeypatch.setattr(layer_norm_triton, "PROGRAMS", 3)
    layer_norm_triton._shares.cache_clear()
    x, cotangent = random(*size) + 3, random(*size, seed=1)
    scale, shift = 1 + 0.3 * random(size[-1], seed=2), random(size[-1], seed=3)
    ours = [value.clone().requires_grad_() for value in (x, scale, shift)]
    exact = [value.double().requires_grad_() for value in (x, scale, shift)]
    y, expected = layer_norm_triton.fused_layer_norm(*ours, EPS), F.layer_norm(exact[0], size[-1:], exact[1], exact[2], EPS)
    pairs = [(y, expected), *zip(torch.autograd.grad(y, ours, cotangent), torch.autograd.grad(expected, exact, cotangent.double()))]
    layer_norm_triton._shares.cache_clear()
    for value, precise in pairs:
        assert value.shape == precise.shape and (value - precise).abs().max() <= 3e-6 * precise.abs().max()


@interpreted
def test_what_the_kernels_take() -> None:
    from token_methods.gaussiantoken.layer_norm_triton import fits

    assert fits(random(2, 64))
    assert not any(map(fits, (random(2, 64).double(), random(2, 96), random(0, 64), random(1, 1024))))
