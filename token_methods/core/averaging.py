"""A running average of a network's weights, which is what is evaluated (Polyak and Juditsky 1992, exponential as in Mean Teacher)."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage(AveragedModel):
    """A copy of a network whose parameters follow the trained ones: average <- decay * average + (1 - decay) * weights.

    It begins at the network's own weights, takes the network's buffers as they are, is never trained and stays in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.requires_grad_(False)
        self.restart(network)

    def restart(self, network: nn.Module) -> None:
        """Begin again at the weights of `network`."""
        self.module.load_state_dict(network.state_dict())
        self.n_averaged.fill_(1)  # at 0 the first update would copy instead of average
        self.train()

    def train(self, mode: bool = True) -> WeightAverage:
        """Stays in evaluation mode."""
        super().train(False)
        return self
