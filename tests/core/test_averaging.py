"""The running average of weights against its formula, and what else it holds."""

from __future__ import annotations

import copy

import torch
from torch import nn

from token_methods.core.averaging import WeightAverage

DECAY = 0.9


class Trained(nn.Module):
    """Has everything that a network may have: trained and frozen parameters, dropout, and buffers of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout()
        self.constant = nn.Parameter(torch.tensor([0.3]), requires_grad=False)

    def move(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
            for name, buffer in self.named_buffers():
                buffer.copy_(torch.full(buffer.shape, step if name.endswith("tracked") else step / 7))


def test_parameters_follow_the_formula_and_buffers_are_the_networks_own() -> None:
    network = Trained()
    expected = {name: parameter.detach().double() for name, parameter in network.named_parameters()}
    average = WeightAverage(network, DECAY)
    for step in range(5):
        network.move(step)
        average.update_parameters(network)
        for name, parameter in network.named_parameters():
            expected[name] -= (1 - DECAY) * (expected[name] - parameter.detach().double())
    for name, parameter in average.module.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], atol=1e-7, rtol=1e-6)
    assert all(torch.equal(buffer, network.get_buffer(name)) for name, buffer in average.module.named_buffers())
    assert average.module.constant.item() == network.constant.item()


def test_the_first_update_averages_and_does_not_copy() -> None:
    network = Trained()
    average = WeightAverage(network, DECAY)
    start = average.module.linear.weight.clone()
    network.move(1)
    average.update_parameters(network)
    torch.testing.assert_close(average.module.linear.weight, DECAY * start + (1 - DECAY) * network.linear.weight)


def test_it_is_never_trained_and_leaves_the_network_alone() -> None:
    network = Trained()
    before = copy.deepcopy(network.state_dict())
    average = WeightAverage(network, DECAY)
    average.train()
    assert not any(module.training for module in average.modules()) and network.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for name, parameter in network.named_parameters() if name != "constant")
    average.module.linear.weight.fill_(9.0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_it_goes_on_from_its_own_state() -> None:
    """As a resumed run does: the next update is that of the run that was not interrupted."""
    network = Trained()
    average = WeightAverage(network, DECAY)
    network.move(1)
    average.update_parameters(network)
    resumed = WeightAverage(Trained(), DECAY)
    resumed.load_state_dict(average.state_dict())
    network.move(2)
    for one in (average, resumed):
        one.update_parameters(network)
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_it_can_begin_again_at_other_weights() -> None:
    network, other = Trained(), Trained()
    average = WeightAverage(network, DECAY)
    average.update_parameters(network)
    average.restart(other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in average.module.state_dict().items())
    assert not any(module.training for module in average.modules())
    start = average.module.linear.weight.clone()
    other.move(1)
    average.update_parameters(other)
    torch.testing.assert_close(average.module.linear.weight, DECAY * start + (1 - DECAY) * other.linear.weight)
