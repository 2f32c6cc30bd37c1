"""Normalisation on CUDA: the fused kernels against PyTorch's operators, and the networks that are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from token_methods.gaussiantoken import group_norm
from token_methods.gaussiantoken.autoencoder import NORM_EPS, NORM_GROUPS, ImageDecoder, ImageEncoder
from token_methods.gaussiantoken.group_norm import norm_modulated, norm_swish, residual_sum

pytestmark = pytest.mark.gpu

SIZES = [(1, 128, 256, 256), (8, 256, 32, 32), (3, 512, 17, 23), (2, 32, 1, 1), (5, 1024, 4, 4), (70_000, 32, 2, 2)]


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Any:
    pytest.importorskip("triton", reason="the CUDA kernels need Triton")
    from token_methods.gaussiantoken import group_norm_triton

    return group_norm_triton


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Convolutions and matrix products without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def with_gradients(x: Tensor, scale: Tensor, shift: Tensor, swish: bool) -> list[Tensor]:
    x, scale, shift = (value.detach().clone().requires_grad_() for value in (x, scale, shift))
    if swish:
        norm = nn.GroupNorm(NORM_GROUPS, x.shape[1], eps=NORM_EPS).to(x.device, scale.dtype)
        norm.weight, norm.bias = nn.Parameter(scale.detach()), nn.Parameter(shift.detach())
        scale, shift = norm.weight, norm.bias
        y = norm_swish(x, norm)
    else:
        y = norm_modulated(x, scale, shift, NORM_GROUPS, NORM_EPS)
    return [y.detach(), *torch.autograd.grad(y, [x, scale, shift], random(*y.shape, seed=9).to(y.dtype))]


def operands(size: tuple[int, int, int, int], swish: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = size
    leading = () if swish else (batch,)
    x = random(batch, channels, height, width) + random(channels, 1, 1, seed=3)
    return x, 1 + 0.3 * random(*leading, channels, seed=1), 0.5 * random(*leading, channels, seed=2)


def assert_close(ours: list[Tensor], theirs: list[Tensor], share: float) -> None:
    """Within a share of each tensor's largest value."""
    for value, expected in zip(ours, theirs, strict=True):
        assert value.shape == expected.shape
        assert (value.double() - expected.double()).abs().max() <= share * expected.abs().max()


@pytest.mark.parametrize("swish", [True, False], ids=["swish", "modulated"])
@pytest.mark.parametrize("size", SIZES)
def test_float32_is_exact(size: tuple[int, int, int, int], swish: bool) -> None:
    x, scale, shift = operands(size, swish)
    compared = slice(0, 1) if x[0].numel() == NORM_GROUPS else slice(None)  # groups of one number have no gradient
    exact = with_gradients(x.double(), scale.double(), shift.double(), swish)
    for memory in (torch.contiguous_format, torch.channels_last):
        ours = with_gradients(x.contiguous(memory_format=memory), scale, shift, swish)
        assert ours[0].is_contiguous(memory_format=torch.channels_last) and ours[0].dtype == torch.float32
        assert_close(ours[compared], exact[compared], 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("swish", [True, False], ids=["swish", "modulated"])
@pytest.mark.parametrize("size", SIZES[:3])
def test_sixteen_bits_come_out_where_they_go_in(size: tuple[int, int, int, int], swish: bool, dtype: torch.dtype) -> None:
    x, scale, shift = operands(size, swish)
    x = x.to(dtype, memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype=dtype):
        ours = with_gradients(x, scale, shift, swish)
    assert [value.dtype for value in ours] == [dtype, dtype, torch.float32, torch.float32]
    assert_close(ours, with_gradients(x.double(), scale.double(), shift.double(), swish), 0.01)


@pytest.mark.parametrize("size", SIZES[:3])
def test_a_residual_sum_and_the_norm_that_takes_it(size: tuple[int, int, int, int]) -> None:
    x, scale, shift = operands(size, swish=True)
    x = x.bfloat16().to(memory_format=torch.channels_last)
    y = random(*size, seed=5).bfloat16().to(memory_format=torch.channels_last)
    norm = nn.GroupNorm(NORM_GROUPS, size[1], eps=NORM_EPS).cuda()
    norm.weight, norm.bias = nn.Parameter(scale), nn.Parameter(shift)
    inputs = [x.requires_grad_(), y.requires_grad_()]
    total = residual_sum(*inputs, NORM_GROUPS)
    assert torch.equal(total, x + y)
    normed, again = norm_swish(total, norm), norm_swish(total.detach(), norm)
    assert torch.equal(normed, again)
    gradients = torch.autograd.grad(normed, [*inputs, total], random(*size, seed=9).bfloat16())
    assert all(torch.equal(gradient, gradients[2]) for gradient in gradients)


def test_a_mean_far_from_zero_costs_no_more_digits_than_float32_has() -> None:
    x, scale, shift = operands((2, 128, 64, 64), swish=True)
    ours, exact = with_gradients(x + 1000, scale, shift, True), with_gradients((x + 1000).double(), scale.double(), shift.double(), True)
    assert_close(ours[:2], exact[:2], 1e-3)


def test_the_same_bits_every_time() -> None:
    x, scale, shift = operands((4, 128, 64, 64), swish=True)
    assert all(torch.equal(a, b) for a, b in zip(with_gradients(x, scale, shift, True), with_gradients(x, scale, shift, True)))


def test_float64_and_odd_channels_are_left_to_pytorch() -> None:
    for x in (random(2, 32, 5, 5).double(), random(2, 96, 5, 5)):
        norm = nn.GroupNorm(NORM_GROUPS, x.shape[1], eps=NORM_EPS).to(x)
        assert torch.equal(norm_swish(x, norm), F.silu(norm(x)))


def networks() -> list[tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    both = [(ImageEncoder(64, (1, 2), 2, 3), random(2, 3, 32, 48)), (ImageDecoder(64, (1, 2), 2, 3), random(2, 3, 16, 24))]
    return [(network.cuda().to(memory_format=torch.channels_last), x) for network, x in both]


def network_results() -> list[Tensor]:
    values = []
    for network, x in networks():
        y = network(x)
        values += [y.detach(), *torch.autograd.grad(y, list(network.parameters()), random(*y.shape, seed=8).to(y.dtype))]
    return values


def test_encoder_and_decoder_are_the_same_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = network_results()
    monkeypatch.setattr(group_norm, "_kernels", lambda x, groups: None)
    assert_close(ours, network_results(), 1e-4)


def test_bfloat16_networks_stay_in_channels_last_and_keep_half_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept_bytes() -> int:
        network, x = networks()[0]
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = network(x)
        assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
        return torch.cuda.memory_allocated() - before

    left: list[nn.Module] = []

    def look(module: nn.Module, inputs: object, output: Tensor) -> None:
        if output.ndim == 4 and not (output.dtype == torch.bfloat16 and output.is_contiguous(memory_format=torch.channels_last)):
            left.append(module)

    for network, x in networks():
        for module in network.modules():
            module.register_forward_hook(look)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            network(x)
    assert not left
    kept_bytes()  # libraries allocate what they keep for ever
    fused = kept_bytes()
    monkeypatch.setattr(group_norm, "_kernels", lambda x, groups: None)
    assert fused < 0.6 * kept_bytes()


def test_the_host_never_waits_and_a_graph_can_be_captured() -> None:
    x, scale, shift = operands((2, 64, 8, 8), swish=False)
    inputs = [value.requires_grad_() for value in (x, scale, shift)]
    cotangent = random(*x.shape, seed=9)

    def step() -> list[Tensor]:
        y = norm_modulated(x, scale, shift, NORM_GROUPS, NORM_EPS)
        return [y, *torch.autograd.grad(y, inputs, cotangent)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [value.detach().clone() for value in step()]
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))
