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

pytestmark = pytest.mark.gpu
CALLS = PLAIN_CALLS + 3


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


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


def trained(
    graphs: bool, dropout: float, accumulated: int = 1, recomputed: int = 0, steps: int = CALLS
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and state of a tokenizer after a few steps."""
    torch.manual_seed(0)
    architecture = PRESETS["tiny"].architecture
    assert architecture.embedder is not None
    architecture = replace(architecture, embedder=replace(architecture.embedder, dropout=dropout))
    network = GaussianTokenNetwork(architecture, recomputed).cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.replay_graphs(graphs)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulated):
            images = numbers(4, 3, 32, 32, seed=10 * step + part).tanh()
            tokens, commitment = network.train().tokenize(images)
            loss = (network.decode(tokens) - images).abs().mean() + commitment
            loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses, network.state_dict()


@pytest.mark.parametrize(("accumulated", "recomputed"), [(1, 0), (2, 0), (1, 2)])
def test_training_is_the_same_with_graphs(accumulated: int, recomputed: int) -> None:
    losses, state = trained(graphs=True, dropout=0.0, accumulated=accumulated, recomputed=recomputed)
    expected_losses, expected = trained(graphs=False, dropout=0.0, accumulated=accumulated)
    _, start = trained(graphs=False, dropout=0.0, steps=0)
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    moved, expected_moved = (torch.cat([(end[key] - start[key]).flatten().double() for key in start]) for end in (state, expected))
    # Some gradients are summed in another order every time.
    assert (moved - expected_moved).norm() <= 0.02 * expected_moved.norm()


def test_dropout_draws_anew_and_a_seed_repeats_it() -> None:
    losses, _ = trained(graphs=True, dropout=0.1)
    again, _ = trained(graphs=True, dropout=0.1)
    assert losses == pytest.approx(again, rel=1e-3)
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
