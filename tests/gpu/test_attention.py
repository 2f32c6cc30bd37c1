"""Deformable attention on CUDA: the fused kernels against PyTorch's operators in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from token_methods.gaussiantoken.attention import DeformableAttention, cell_centres

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


@pytest.mark.parametrize(("dim", "heads"), [(64, 4), (32, 4), (96, 4), (512, 4)])  # heads of 24 channels are PyTorch's
@pytest.mark.parametrize("own", [True, False], ids=["own places", "shared places"])
def test_values_and_gradients(dim: int, heads: int, own: bool) -> None:
    torch.manual_seed(0)
    height, width, batch = 16, 12, 5
    layer = DeformableAttention(dim, heads, 4).cuda()
    with torch.no_grad():
        layer.sampling_offsets.weight += 0.3 * torch.randn_like(layer.sampling_offsets.weight)
        layer.attention_weights.weight += 0.3 * torch.randn_like(layer.attention_weights.weight)
    count = 31 if own else height * width
    references = random(batch, count, 2, seed=1).sigmoid() if own else cell_centres(height, width).cuda()
    inputs = [random(batch, count, dim, seed=2), references, random(batch, height * width, dim, seed=3)]
    cotangent, results = random(batch, count, dim, seed=4), []
    for twin in (layer, copy.deepcopy(layer).double()):
        values = [value.to(twin.value_proj.weight.dtype).requires_grad_() for value in inputs]
        seen = twin(*values, (height, width))
        trained = [*values, *(parameter for parameter in twin.parameters() if parameter.requires_grad)]
        results.append([seen, *torch.autograd.grad(seen, trained, cotangent.to(seen.dtype))])
    for ours, exact in zip(*results, strict=True):
        assert (ours - exact).abs().max() <= 1e-3 * exact.abs().max()  # points at the edge of a cell may be seen on its other side
