"""Test-time tuning: fit the tokens (or latents) of a scene to its own context views, all weights fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.tokengs.network import KeysValues, TokenGSNetwork

GaussianLoss = Callable[[Gaussians3D], Tensor]
"""Renders Gaussians at the context views and compares: the preset's training loss."""
Progress = Callable[[int, float], None]
"""Called after each step with the number of steps made and the loss before the step."""


def tune_tokens(
    network: TokenGSNetwork,
    keys_values: KeysValues,
    tokens: Float[Tensor, "batch tokens dim"],
    loss: GaussianLoss,
    steps: int = 50,
    learning_rate: float = 1e-4,
    progress: Progress | None = None,
) -> Float[Tensor, "batch tokens dim"]:
    """Gaussian tokens of each scene, tuned by Adam; what the decoder looks at stays fixed.

    Raises:
        ValueError: the tokens ran away to infinity.
    """
    keys_values = KeysValues(*(part.detach() for part in keys_values))
    return _tune(network, tokens, lambda tuned: network.decode(keys_values, tuned), loss, steps, learning_rate, progress)


def tune_scene_latents(
    network: TokenGSNetwork,
    scene_latents: Float[Tensor, "batch latents dim"],
    tokens: Float[Tensor, "batch tokens dim"],
    loss: GaussianLoss,
    steps: int = 50,
    learning_rate: float = 1e-2,
    progress: Progress | None = None,
) -> Float[Tensor, "batch latents dim"]:
    """Scene latents of each scene, tuned by Adam; Gaussian tokens stay fixed. Needs the latent architecture.

    Raises:
        ValueError: the network has no latents, or they ran away to infinity.
    """
    if not network.has_latents:
        raise ValueError("this architecture has no scene latents to tune; tune tokens, or use a latent preset")
    tokens = tokens.detach()

    def decode(tuned: Tensor) -> Gaussians3D:
        return network.decode(network.keys_values_from_latents(tuned), tokens)

    return _tune(network, scene_latents, decode, loss, steps, learning_rate, progress)


def _tune(
    network: TokenGSNetwork,
    start: Tensor,
    decode: Callable[[Tensor], Gaussians3D],
    loss: GaussianLoss,
    steps: int,
    learning_rate: float,
    progress: Progress | None,
) -> Tensor:
    variable = start.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([variable], lr=learning_rate)
    with torch.enable_grad(), frozen(network):
        for step in range(steps):
            value = loss(decode(variable))
            (variable.grad,) = torch.autograd.grad(value, [variable])
            optimiser.step()
            if progress is not None:
                progress(step + 1, value.item())
    if not torch.isfinite(variable).all():
        raise ValueError(f"test-time tuning diverged at learning rate {learning_rate}: choose a smaller one")
    return variable.detach()


@contextmanager
def frozen(network: TokenGSNetwork) -> Iterator[None]:
    """The network without parameter gradients, its matrices held in the precision they are multiplied in.

    Autocast keeps its rounded copies of trainable parameters only; fixed ones it would round anew at every step.
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [module.weight for module in network.modules() if isinstance(module, nn.Linear)]
    full = [matrix.data for matrix in matrices]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        for matrix in matrices:
            matrix.data = matrix.data.to(network.dtype)
        yield
    finally:
        for matrix, data in zip(matrices, full, strict=True):
            matrix.data = data
        for parameter in trainable:
            parameter.requires_grad_(True)
