"""TokenGS on a GPU: what bfloat16 may and may not change, and the ways to save memory and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from scripts.parity.tokengs_case import ParityCase
from token_methods.core.losses import outside_distance, ssim
from token_methods.core.views import Views
from token_methods.rendering.rasterize import render
from token_methods.tokengs.config import LossWeights, TokenGSArchitecture
from token_methods.tokengs.losses import chunked_losses, deferred_render, tokengs_losses
from token_methods.tokengs.network import TokenGSNetwork
from token_methods.tokengs.tuning import frozen, tune_tokens

pytestmark = pytest.mark.gpu

ARCHITECTURE = TokenGSArchitecture(
    enc_depth=2,
    dec_depth=2,
    enc_embed_dim=128,
    enc_num_heads=2,
    num_gs_tokens=64,
    dec_patch_size=4,
    gs_token_std=1.0,
    clip_head_readout_std=0.03,
    dec_init_values=0.1,
)


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Matrix products and convolutions without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def make_views(batch: int = 2, count: int = 3) -> Views:
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(batch, count, 1, 1)
    poses[..., :3, 3] = 0.1 * torch.randn(batch, count, 3, generator=generator)
    images = torch.rand(batch, count, 3, 32, 48, generator=generator)
    return Views(32, 48, images, poses, torch.tensor([40.0, 40.0, 24.0, 16.0]).repeat(batch, count, 1)).to("cuda")


def make_network(architecture: TokenGSArchitecture = ARCHITECTURE, dtype: torch.dtype = torch.bfloat16) -> TokenGSNetwork:
    torch.manual_seed(0)
    return TokenGSNetwork(architecture, dtype).cuda()


@pytest.mark.parametrize("name", ["base_square", "base_wide_batch2", "latent_ssim", "latent_lpips_4v"])
def test_float32_equals_the_published_cpu_run(name: str, reference: Path, full_precision: None) -> None:
    case = ParityCase(reference / "parity" / "tokengs" / "cases" / name)
    network = case.network().cuda()
    network.cuda_dtype = torch.float32
    gaussians = network(case.context().to("cuda"))
    parts = [gaussians.means, gaussians.opacities[..., None], gaussians.scales, gaussians.quats, gaussians.colors]
    result = case.compare("stage/gaussians", torch.cat(parts, dim=-1).cpu())
    assert result.passed, str(result)


@pytest.mark.parametrize("latents", [None, 32])
def test_bfloat16_stays_near_float32_and_hands_out_float32(latents: int | None) -> None:
    architecture = replace(ARCHITECTURE, num_latents=latents, latent_cross_attn_depth=1)
    views = make_views()
    rounded, exact = make_network(architecture)(views), make_network(architecture, torch.float32)(views)
    for field in fields(exact):
        value = getattr(rounded, field.name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, getattr(exact, field.name), atol=0.05, rtol=0.05)


def test_an_outer_float16_autocast_changes_nothing() -> None:
    network, views = make_network(), make_views()
    expected = network(views)
    with torch.autocast("cuda", dtype=torch.float16):
        inside = network(views)
    for field in fields(expected):
        assert torch.equal(getattr(inside, field.name), getattr(expected, field.name))


def test_residual_stream_is_float32() -> None:
    network, seen = make_network(), []
    for block in (*network.enc_dec_backbone.encoder, *network.enc_dec_backbone.decoder_blocks):
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    network(make_views())
    assert seen == [torch.float32] * 4


def test_frozen_weights_give_the_very_same_gaussians() -> None:
    network, views = make_network(), make_views()
    with torch.no_grad():
        keys_values = network.keys_values(views)
        expected = network.decode(keys_values, network.tokens(2))
        with frozen(network):
            inside = network.decode(keys_values, network.tokens(2))
    for field in fields(expected):
        assert torch.equal(getattr(inside, field.name), getattr(expected, field.name))
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in network.parameters())


def test_tuning_fits() -> None:
    network, views = make_network(), make_views()
    values: list[float] = []
    with torch.no_grad():
        keys_values = network.keys_values(views)

    def loss(gaussians):
        return tokengs_losses(render(gaussians, views), gaussians, views, LossWeights())["loss"]

    tune_tokens(network, keys_values, network.tokens(2), loss, 30, 5e-2, lambda _, value: values.append(value))
    assert values[-1] < 0.95 * values[0]


@pytest.mark.parametrize("way", ["chunked", "deferred"])
def test_memory_savers_give_the_same_gradients(way: str) -> None:
    network, views = make_network(dtype=torch.float32), make_views()
    gradients = []
    for saving in (False, True):
        network.zero_grad()
        gaussians = network(views)
        if saving and way == "chunked":
            losses = chunked_losses(gaussians, views, render, LossWeights(), views_per_chunk=2)
        else:
            draw: Callable = deferred_render if saving else lambda g, v, r: r(g, v)
            losses = tokengs_losses(draw(gaussians, views, render), gaussians, views, LossWeights())
        losses["loss"].backward()
        gradients.append(network.activation_head.deconv.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3 * gradients[0].abs().max().item(), rtol=1e-3)


def test_losses_equal_those_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 4, 3, 40, 56, generator=generator)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        on_gpu = ssim(x.cuda(), y.cuda())
    torch.testing.assert_close(on_gpu.cpu(), ssim(x, y), atol=1e-5, rtol=0)
    views, means = make_views(), torch.randn(2, 500, 3, generator=generator)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        distance = outside_distance(means.cuda(), views, 1.0)
    torch.testing.assert_close(distance.cpu(), outside_distance(means, views.to("cpu"), 1.0), atol=1e-5, rtol=0)


def test_network_and_losses_do_not_wait_for_the_device() -> None:
    """Forward, backward and optimiser step, all but the renderer: nothing is read back, so the host runs ahead."""
    network, views = make_network(), make_views()
    assert views.images is not None
    pictures = views.images.flatten(0, 1)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        gaussians = network(views)
        value = outside_distance(gaussians.means, views, 1.0).sum() + ssim(pictures * gaussians.opacities.mean(), pictures).sum()
        value.backward()
        optimiser.step()
        optimiser.zero_grad()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
