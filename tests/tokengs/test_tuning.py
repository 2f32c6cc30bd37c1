"""Test-time tuning: it fits the scene, touches nothing else, and says what it cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from token_methods.core.views import Views, concatenate_views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import render
from token_methods.tokengs.config import LossWeights, TokenGSArchitecture
from token_methods.tokengs.losses import tokengs_losses
from token_methods.tokengs.network import TokenGSNetwork
from token_methods.tokengs.tuning import GaussianLoss, tune_scene_latents, tune_tokens

BASE = TokenGSArchitecture(
    patch_size=8,
    dec_patch_size=2,
    enc_depth=1,
    dec_depth=1,
    enc_embed_dim=16,
    enc_num_heads=2,
    num_gs_tokens=16,
    gs_token_std=1.0,
    clip_head_readout_std=0.05,
    dec_init_values=1.0,
)
LATENT = replace(BASE, num_latents=6, latent_cross_attn_depth=1)


def make_context() -> Views:
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = 0.1
    row = torch.linspace(0, 1, 16)[:, None].expand(16, 16)
    picture = torch.stack([row, row.t(), 1 - row]) + 0.1 * torch.rand(1, 2, 3, 16, 16, generator=generator)
    return Views(16, 16, picture.clamp(0, 1), poses, torch.tensor([16.0, 16.0, 8.0, 8.0]).expand(1, 2, 4))


def setting(architecture: TokenGSArchitecture) -> tuple[TokenGSNetwork, Views]:
    torch.manual_seed(0)
    return TokenGSNetwork(architecture), make_context()


def loss_on(context: Views) -> GaussianLoss:
    def loss(gaussians: Gaussians3D) -> Tensor:
        return tokengs_losses(render(gaussians, context), gaussians, context, LossWeights())["loss"]

    return loss


@pytest.mark.parametrize("what", ["tokens", "scene_latents"])
def test_tuning_fits_the_scene_and_nothing_else_moves(what: str) -> None:
    network, context = setting(BASE if what == "tokens" else LATENT)
    network.gs_tokens.requires_grad_(False)  # what was frozen before must be frozen after
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trainable = [parameter.requires_grad for parameter in network.parameters()]
    told: list[tuple[int, float]] = []
    settings = (loss_on(context), 30, 5e-2, lambda step, value: told.append((step, value)))
    with torch.no_grad():
        tokens, keys_values = network.tokens(1), network.keys_values(context)
        start = tokens if what == "tokens" else network.scene_latents(context)
    if what == "tokens":
        tuned = tune_tokens(network, keys_values, tokens, *settings)
    else:
        tuned = tune_scene_latents(network, start, tokens, *settings)
    assert [step for step, _ in told] == list(range(1, 31))
    assert told[-1][1] < 0.95 * told[0][1]
    assert tuned.shape == start.shape
    assert not tuned.requires_grad
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert [parameter.requires_grad for parameter in network.parameters()] == trainable
    assert all(parameter.grad is None for parameter in network.parameters())


def test_no_steps_change_nothing() -> None:
    network, context = setting(BASE)
    tokens = network.tokens(1)
    assert torch.equal(tune_tokens(network, network.keys_values(context), tokens, loss_on(context), steps=0), tokens)


def test_scenes_of_a_batch_are_tuned_apart() -> None:
    network, context = setting(BASE)
    two = concatenate_views([context, replace(context, images=1 - context.images)], dim=0)
    tuned = tune_tokens(network, network.keys_values(two), network.tokens(2), loss_on(two), 3, 1e-2)
    alone = tune_tokens(network, network.keys_values(context), network.tokens(1), loss_on(context), 3, 1e-2)
    torch.testing.assert_close(tuned[:1], alone, atol=1e-3, rtol=0)
    assert (tuned[0] - tuned[1]).abs().max() > 1e-2


def test_weights_are_released_when_rendering_fails() -> None:
    network, context = setting(BASE)

    def broken(_: Gaussians3D) -> Tensor:
        raise RuntimeError("renderer gone")

    with pytest.raises(RuntimeError, match="renderer gone"):
        tune_tokens(network, network.keys_values(context), network.tokens(1), broken)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_it_works_where_gradients_are_off() -> None:
    network, context = setting(BASE)
    with torch.no_grad():
        tuned = tune_tokens(network, network.keys_values(context), network.tokens(1), loss_on(context), 1, 1e-2)
    assert (tuned - network.gs_tokens).abs().max() > 1e-3


def test_divergence_is_told() -> None:
    network, context = setting(BASE)
    with pytest.raises(ValueError, match=r"diverged at learning rate .* smaller"):
        tune_tokens(network, network.keys_values(context), network.tokens(1), lambda g: g.means.sum() * float("nan"), 2, 1e-2)


def test_base_architecture_has_no_latents_to_tune() -> None:
    network, context = setting(BASE)
    with pytest.raises(ValueError, match="use a latent preset"):
        tune_scene_latents(network, torch.zeros(1, 6, 16), network.tokens(1), loss_on(context))
