"""A running average of a network's weights, which is what is evaluated (Polyak and Juditsky 1992, exponential as in Mean Teacher)."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage(AveragedModel):
    """A copy of a network whose parameters follow the trained ones: average <- decay * average + (1 - decay) * weights.

    It begins at the network's own weights, takes the network's buffers as they are, is never trained and stays in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay
        self.requires_grad_(False)
        self.restart(network)

    def restart(self, network: nn.Module) -> None:
        """Begin again at the weights of `network`."""
        self.module.load_state_dict(network.state_dict())
        self.n_averaged.fill_(1)  # at 0 the first update would copy instead of average
        self.train()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """One step after the weights of `model`. As PyTorch's own, which sorts hundreds of tensors by device and type for it each time."""
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - self.decay)
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(model.buffers()))
        self.n_averaged.add_(1)

    def train(self, mode: bool = True) -> WeightAverage:
        """Stays in evaluation mode."""
        super().train(False)
        return self
