"""CUDA graphs that are recorded on the way: the same numbers as without, in training and evaluation."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from token_methods.core.graph_replay import PLAIN_CALLS, GraphReplay
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.rendering.gaussians2d import Gaussians2D, splat

pytestmark = pytest.mark.gpu
CALLS = PLAIN_CALLS + 3


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    precision = torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before
    torch.set_float32_matmul_precision(precision)


class Counting(nn.Module):
    """Has what a network may have that changes from call to call."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = nn.Linear(8, 4), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.dropout(self.linear(x))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def tokenizer(dropout: float = 0.0, recomputed: int = 0) -> GaussianTokenNetwork:
    torch.manual_seed(0)
    architecture = PRESETS["tiny"].architecture
    assert architecture.embedder is not None
    architecture = replace(architecture, embedder=replace(architecture.embedder, dropout=dropout))
    return GaussianTokenNetwork(architecture, recomputed).cuda().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload,no-any-return]


def differentiate(network: GaussianTokenNetwork, call: int, accumulated: int = 1) -> float:
    """Moves the weights in place, the same way every time, and takes gradients of the error of a few images.

    Without the quantiser, which is not recorded: nearest codes jump at the slightest rounding.
    """
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter += 0.05 * numbers(*parameter.shape, seed=1000 * call + number)
    network.zero_grad()
    total = 0.0
    for part in range(accumulated):
        images = numbers(4, 3, 32, 32, seed=10 * call + part).tanh()
        (feature_map,) = network._encode(images)
        assert network._embed is not None
        gaussians = Gaussians2D(*network._embed(feature_map))
        (result,) = network._decode(splat(gaussians, *network.architecture.map_size))
        loss = (result - images).square().mean()
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize(("accumulated", "recomputed"), [(1, 0), (2, 0), (1, 2)])
def test_gradients_are_the_same_with_graphs(accumulated: int, recomputed: int) -> None:
    """Of weights that move from call to call, as in training.

    Trained weights are not compared: rounding in the last bit of a weight grows to a tenth of its movement within five steps, with
    graphs or without, while it changes gradients of the same weights by a ten-thousandth.
    """
    network, plain = tokenizer(recomputed=recomputed), tokenizer()
    plain.replay_graphs(False)
    for call in range(CALLS):
        assert differentiate(network, call, accumulated) == pytest.approx(differentiate(plain, call, accumulated), rel=1e-3)
        for part in ("img_encoder", "gs_embed", "img_decoder"):
            grads, expected = (
                torch.cat([value.grad.flatten() for value in getattr(of, part).parameters() if value.grad is not None])
                for of in (network, plain)
            )
            assert (grads - expected).norm() <= 0.01 * expected.norm(), f"{part} in call {call}"
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(network.get_buffer(name), buffer, rtol=1e-3, atol=1e-6)
    for replay in (network._encode, network._embed, network._decode):
        assert replay is not None and len(replay._recordings) == 1


def test_dropout_draws_anew_and_a_seed_repeats_it() -> None:
    network, again = tokenizer(dropout=0.1), tokenizer(dropout=0.1)
    losses, repeated = [], []
    for of, told in ((network, losses), (again, repeated)):
        torch.manual_seed(1)
        told += [differentiate(of, call) for call in range(CALLS)]
    assert losses == pytest.approx(repeated, rel=1e-3)
    network, x = Counting().cuda().train(), torch.ones(64, 8, device="cuda")
    replay = GraphReplay(network)
    masks = [replay(x)[0] == 0 for _ in range(CALLS)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(masks))


def test_recording_counts_no_call_of_its_own() -> None:
    network = Counting().cuda().train()
    replay = GraphReplay(network)
    for call in range(CALLS):
        (y,) = replay(torch.ones(2, 8, device="cuda"))
        y.sum().backward()
        assert network.calls.item() == call + 1
    assert len(replay._recordings) == 1


def test_other_shapes_and_modes_run_as_they_are() -> None:
    network = Counting().cuda().eval()
    replay = GraphReplay(network)
    with torch.inference_mode():
        results = [replay(numbers(5, 8, seed=seed))[0] for seed in range(CALLS)]
    twin = copy.deepcopy(replay)
    assert twin.module is not network and not twin._recordings
    with torch.no_grad():
        for seed, result in enumerate(results):  # none was written over
            torch.testing.assert_close(result, network(numbers(5, 8, seed=seed)))
        torch.testing.assert_close(replay(numbers(3, 8))[0], network(numbers(3, 8)))
        torch.testing.assert_close(replay(numbers(5, 8))[0], network(numbers(5, 8)))
        network.linear.weight.mul_(2)  # read where it lies
        torch.testing.assert_close(replay(numbers(5, 8))[0], network(numbers(5, 8)))
        network.linear = nn.Linear(8, 4).cuda()  # somewhere else
        torch.testing.assert_close(replay(numbers(5, 8))[0], network(numbers(5, 8)))


def test_gradients_come_once() -> None:
    replay = GraphReplay(Counting().cuda().eval())
    x = numbers(5, 8)
    for _ in range(CALLS):
        (y,) = replay(x)
    y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken once"):
        y.sum().backward()
    first, _ = replay(x)[0], replay(x)
    with pytest.raises(RuntimeError, match="taken once"):
        first.sum().backward()
