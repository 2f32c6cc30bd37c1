"""Layer normalisation of short rows on CUDA against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from token_methods.gaussiantoken.layer_norm import LayerNorm

pytestmark = pytest.mark.gpu


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


@pytest.mark.parametrize("size", [(384, 256, 64), (384, 64, 128), (7, 3, 64), (1, 512), (5, 100), (4, 2048)])
def test_values_and_gradients(size: tuple[int, ...]) -> None:
    norm = LayerNorm(size[-1]).cuda()
    with torch.no_grad():
        norm.weight += 0.3 * random(size[-1], seed=2)
        norm.bias += random(size[-1], seed=3)
    x, cotangent = random(*size) + 3, random(*size, seed=1)
    inputs = [x.clone().requires_grad_(), norm.weight, norm.bias]
    exact = [value.detach().double().requires_grad_() for value in inputs]
    y, expected = norm(inputs[0]), F.layer_norm(exact[0], size[-1:], exact[1], exact[2], norm.eps)
    ours, theirs = torch.autograd.grad(y, inputs, cotangent), torch.autograd.grad(expected, exact, cotangent.double())
    for value, precise in zip([y, *ours], [expected, *theirs], strict=True):
        assert (value - precise).abs().max() <= 1e-5 * precise.abs().max()


def test_other_types_are_pytorchs() -> None:
    norm, x = LayerNorm(64).cuda(), random(3, 64)
    assert norm.double()(x.double()).dtype == torch.float64
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(norm.float()(x.bfloat16()), F.layer_norm(x.bfloat16(), (64,), norm.weight, norm.bias))
