"""Calls that may be replayed as CUDA graphs, on a CPU, where none is."""

from __future__ import annotations

import torch
from torch import nn

from token_methods.core.graph_replay import PLAIN_CALLS, GraphReplay


def test_the_module_runs_as_it_is() -> None:
    module = nn.Linear(8, 4)
    replay = GraphReplay(module)
    x = torch.ones(2, 8, requires_grad=True)
    for _ in range(PLAIN_CALLS + 2):
        (y,) = replay(x)
        assert torch.equal(y, module(x)) and y.requires_grad
