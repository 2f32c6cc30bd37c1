"""The network against the published one, and what follows from its construction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from scripts.parity.tokengs_case import Comparison, ParityCase
from scripts.parity.tokengs_comparisons import compare_forward, compare_inputs, compare_training, compare_tuning
from token_methods.core.views import Views
from token_methods.tokengs.config import PRESETS, TokenGSArchitecture
from token_methods.tokengs.network import TokenGSNetwork

CASES = ("base_square", "base_wide_batch2", "latent_ssim", "latent_lpips_4v")
SMALL = TokenGSArchitecture(
    patch_size=4, dec_patch_size=2, enc_depth=1, dec_depth=2, enc_embed_dim=16, enc_num_heads=2, num_gs_tokens=6, clip_head_readout_std=0.3
)
SMALL_LATENT = TokenGSArchitecture(
    patch_size=4,
    dec_patch_size=2,
    enc_depth=2,
    dec_depth=1,
    enc_embed_dim=16,
    enc_num_heads=2,
    num_gs_tokens=6,
    num_latents=5,
    latent_cross_attn_depth=1,
    multiscale_encoder_layers=(0, 1),
)


def context_views(batch: int = 2, count: int = 3) -> Views:
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(batch, count, 1, 1)
    poses[..., :3, 3] = 0.1 * torch.randn(batch, count, 3, generator=generator)
    images = torch.rand(batch, count, 3, 8, 12, generator=generator)
    return Views(8, 12, images, poses, torch.tensor([9.0, 8.0, 6.0, 4.0]).expand(batch, count, 4))


@pytest.mark.parametrize("compare", [compare_inputs, compare_forward, compare_tuning, compare_training], ids=lambda f: f.__name__[8:])
@pytest.mark.parametrize("name", CASES)
def test_published_run_is_reproduced(
    name: str, compare: Callable[[ParityCase, Views, Views], Iterator[Comparison]], reference: Path
) -> None:
    """Stages, Gaussians, renders, losses, gradients, tuning and training steps within the tolerances of the case."""
    case = ParityCase(reference / "parity" / "tokengs" / "cases" / name)
    results = list(compare(case, case.context(), case.target()))
    failed = [str(result) for result in results if not result.passed]
    assert not failed, "\n".join(failed)
    expected = {"compare_tuning": "ttt", "compare_training": "train"}.get(compare.__name__)
    assert results or (expected is not None and expected not in case.report)


def test_keys_and_shapes_are_the_published_ones(reference: Path) -> None:
    manifest = json.loads((reference / "parity" / "tokengs" / "state_dict_manifest.json").read_text())
    for name, preset in PRESETS.items():
        entries = manifest["manifests"][manifest["preset_to_manifest"][name]]["entries"]
        with torch.device("meta"):
            state = TokenGSNetwork(preset.architecture).state_dict()
        assert {key: [list(value.shape), "float32"] for key, value in state.items()} == entries, name


def test_weight_decay_groups_are_the_published_ones(reference: Path) -> None:
    manifests = json.loads((reference / "parity" / "tokengs" / "state_dict_manifest.json").read_text())["manifests"]
    for name in ("manifest_0", "manifest_2"):
        with torch.device("meta"):
            network = TokenGSNetwork(PRESETS[manifests[name]["presets"][0]].architecture)
        decayed, kept = network.weight_decay_groups()
        assert len(kept) == manifests[name]["n_no_decay"]
        assert len(decayed) + len(kept) == len(manifests[name]["entries"])
        assert any(parameter is network.gs_tokens for parameter in decayed)


@pytest.mark.parametrize(("name", "depth"), [("train_dl3dv_base", 1.0), ("eval_dl3dv_latent_2view_ssim", 0.1)])
def test_untrained_gaussians_start_at_one_spot(name: str, depth: float) -> None:
    """Readout of near-zero tokens with the published initialisation, at a size that fits a test."""
    published = PRESETS[name].architecture
    small = {"patch_size": 4, "enc_depth": 1, "dec_depth": 1, "enc_embed_dim": 16, "enc_num_heads": 2, "num_gs_tokens": 6}
    latent = {"num_latents": 4, "latent_cross_attn_depth": 1} if published.num_latents else {}
    architecture = replace(published, multiscale_encoder_layers=(), **small, **latent)  # type: ignore[arg-type]
    gaussians = TokenGSNetwork(architecture)(context_views(count=2))
    assert gaussians.num_gaussians == 6 * 64
    torch.testing.assert_close(gaussians.means, torch.tensor([0.0, 0.0, depth]).expand_as(gaussians.means), atol=0.02, rtol=0)
    torch.testing.assert_close(gaussians.opacities, torch.full_like(gaussians.opacities, 0.1192), atol=2e-3, rtol=0)
    torch.testing.assert_close(gaussians.scales, torch.full_like(gaussians.scales, 0.02759), atol=1e-3, rtol=0)


def test_layer_scale_starts_where_the_publication_says() -> None:
    network = TokenGSNetwork(SMALL)
    assert network.enc_dec_backbone.decoder_blocks[0].mlp_scale.gamma[0].item() == pytest.approx(5e-3 * 1e-2)
    assert network.enc_dec_backbone.encoder[0].ls1.gamma[0].item() == pytest.approx(0.01)


@pytest.mark.parametrize("architecture", [SMALL, SMALL_LATENT], ids=["base", "latent"])
def test_gaussians_do_not_depend_on_the_order_of_the_views(architecture: TokenGSArchitecture) -> None:
    network, views = TokenGSNetwork(architecture), context_views()
    expected, shuffled = network(views), network(views.select([2, 0, 1]))
    for field in fields(expected):
        torch.testing.assert_close(getattr(shuffled, field.name), getattr(expected, field.name))


@pytest.mark.parametrize("architecture", [SMALL, SMALL_LATENT], ids=["base", "latent"])
def test_scenes_of_a_batch_do_not_see_each_other(architecture: TokenGSArchitecture) -> None:
    network, views = TokenGSNetwork(architecture), context_views()
    together, alone = network(views), network(views.scenes(slice(1, 2)))
    torch.testing.assert_close(together.means[1:], alone.means)


def test_gaussians_are_within_their_limits_for_any_raw_value() -> None:
    head = TokenGSNetwork(SMALL).activation_head
    gaussians = head(1e3 * torch.randn(2, 50, 16).clamp(-2, 2))
    assert gaussians.scales.max() <= SMALL.gaussian_scale_cap
    assert gaussians.scales.min() >= 0
    for value in (gaussians.opacities, gaussians.colors):
        assert 0 <= value.min() <= value.max() <= 1
    torch.testing.assert_close(gaussians.quats.norm(dim=-1), torch.ones(2, 200))


def test_an_outer_autocast_does_not_change_the_result() -> None:
    network, views = TokenGSNetwork(SMALL), context_views()
    expected = network(views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(network(views).means, expected.means)


def test_wrong_views_are_refused() -> None:
    network = TokenGSNetwork(SMALL)
    views = context_views()
    with pytest.raises(ValueError, match="8 x 10 is not a multiple of the patch size 4"):
        network(Views(8, 10, torch.rand(1, 2, 3, 8, 10), views.camera_to_world[:1, :2], views.intrinsics[:1, :2]))
    with pytest.raises(ValueError, match="images and cameras"):
        network(Views(8, 12, images=views.images))
    with pytest.raises(ValueError, match="no scene latents"):
        network.scene_latents(views)
