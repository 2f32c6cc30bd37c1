"""The network: published numbers and presets, tokens there and back, precision, and that it learns."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.parity.gaussiantoken_autoencoder import compare
from scripts.parity.gaussiantoken_case import GaussianTokenCase
from token_methods.gaussiantoken.config import PRESETS, EmbedderArchitecture, GaussianTokenArchitecture
from token_methods.gaussiantoken.network import GaussianTokenNetwork

TINY = replace(PRESETS["tiny"].architecture, map_size=(4, 6), embedder=EmbedderArchitecture(num_gaussians=5, embed_dim=32))
GRID = replace(TINY, embedder=None)
PUBLISHED = {"cifar": "cifar_gqgan", "mini-imagenet": "mini_gqgan", "imagenet": "imagenet_gqgan", "vqgan": "mini_vqgan"}


def network_of(architecture: GaussianTokenArchitecture = TINY, seed: int = 0) -> GaussianTokenNetwork:
    """A network whose codebook has seen a batch."""
    torch.manual_seed(seed)
    network = GaussianTokenNetwork(architecture)
    network.train().tokenize(images_of(99))
    return network


def images_of(seed: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("pattern", ["autoencoder_tiny_*", "autoencoder_full_cifar"])
def test_published_numbers(pattern: str, reference: Path) -> None:
    cases = sorted((reference / "parity" / "gaussiantoken" / "cases").glob(f"{pattern}.safetensors"))
    assert cases
    for path in cases:
        for comparison in compare(GaussianTokenCase(path)):
            assert comparison.passed, f"{path.stem}: {comparison}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_ones(name: str, reference: Path) -> None:
    told: dict[str, Any] = json.loads((reference / "parity" / "gaussiantoken" / "presets.json").read_text())[PUBLISHED[name]]
    preset, model, trainer = PRESETS[name], told["model"], told["trainer"]
    architecture, training, codes = preset.architecture, preset.training, model["vq_cfg"]
    assert list(architecture.map_size) == model["fm_shape"]
    assert architecture.image_size == (told["image_size"], told["image_size"])
    for cnn, ends in (("img_encoder_cfg", architecture.encoder_channels), ("img_decoder_cfg", architecture.code_dim)):
        expected = {
            "ch": architecture.channels,
            "ch_mult": list(architecture.multipliers),
            "num_res_blocks": architecture.num_residual_blocks,
        }
        assert model[cnn] == model[cnn] | expected | {"z_channels": ends}
    assert architecture.num_tokens == model["num_gs"]
    expected = {"dim": architecture.code_dim, "codebook_size": architecture.codebook_size, "decay": architecture.codebook_decay}
    expected |= {"kmeans_iters": architecture.kmeans_iterations, "threshold_ema_dead_code": architecture.dead_code_threshold}
    assert codes == codes | expected
    assert architecture.dead_code_vectors == training.num_processes * training.batch_size * architecture.num_tokens
    assert (training.batch_size, training.num_processes) == (told["data"]["init_args"]["batch_size"], trainer["devices"])
    assert (training.num_epochs, training.gan_start_epoch) == (trainer["max_epochs"], model["loss_cfg"]["gan_start_epoch"])
    schedule = told["lr_scheduler"]
    assert (training.warmup_lr, training.warmup_epochs) == (schedule["warmup_lr"], schedule["warmup_epochs"])
    for side in ("optimizer_generator", "optimizer_discriminator"):
        expected = {"opt": training.optimizer, "lr": training.lr, "betas": list(training.betas), "weight_decay": training.weight_decay}
        assert told[side] == expected

    with torch.device("meta"):
        network = GaussianTokenNetwork(architecture)
    sizes = told["derived"]["params"]
    for part in ("img_encoder", "img_decoder"):
        assert sum(parameter.numel() for parameter in network.get_submodule(part).parameters()) == sizes[f"{part}."]
    if network.gs_embed is not None:
        readouts = sum(parameter.numel() for parameter in network.gs_embed.layers[-1].to_features.parameters())  # type: ignore[union-attr]
        unused = sizes["gs_embed.op_module_map."] + 2 * readouts
        assert sum(parameter.numel() for parameter in network.gs_embed.parameters()) == sizes["gs_embed."] - unused


def test_the_cifar_baseline_is_a_fair_one() -> None:
    ours, baseline = PRESETS["cifar"].architecture, PRESETS["vqgan-cifar"].architecture
    for name in ("num_tokens", "image_size", "code_dim", "codebook_size", "dead_code_vectors", "channels"):
        assert getattr(ours, name) == getattr(baseline, name), name


@pytest.mark.parametrize("architecture", [TINY, GRID], ids=["gaussians", "grid"])
def test_tokens_tell_the_whole_image(architecture: GaussianTokenArchitecture) -> None:
    network, images = network_of(architecture).eval(), images_of(1)
    tokens, commitment = network.tokenize(images)
    assert commitment == 0
    assert (tokens.height, tokens.width) == architecture.map_size
    assert tokens.indices.shape == (2, architecture.num_tokens)
    if tokens.gaussians is None:
        again = network.tokens_from(tokens.indices)
    else:
        assert torch.equal(tokens.gaussians.features, tokens.features)
        geometry = tokens.gaussians.means, tokens.gaussians.scales, tokens.gaussians.rotations
        again = network.tokens_from(tokens.indices, *geometry, tokens.gaussians.opacities)
    assert torch.equal(network.decode(again), network.reconstruct(images))
    assert network.decode(again).shape == images.shape


def test_the_grid_has_its_cells_where_they_came_from() -> None:
    network, images = network_of(GRID).eval(), images_of(1)
    tokens, _ = network.tokenize(images)
    vectors = network.img_encoder(images)
    nearest = network.quantize.nearest(vectors.movedim(1, -1))
    assert torch.equal(tokens.indices.view(2, 4, 6), nearest)
    assert torch.equal(network.feature_map(tokens), network.quantize.lookup(nearest).movedim(-1, 1))


def test_images_do_not_depend_on_those_beside_them() -> None:
    network, images = network_of().eval(), images_of(1, count=3)
    torch.testing.assert_close(network.reconstruct(images)[1:2], network.reconstruct(images[1:2]), rtol=1e-4, atol=1e-5)


def test_wrong_input_is_named() -> None:
    network, grid = network_of().eval(), network_of(GRID).eval()
    with pytest.raises(ValueError, match="images of 32 x 16 pixels: crop or resize them to 24 x 16"):
        network.tokenize(torch.zeros(1, 3, 16, 32))
    with pytest.raises(ValueError, match="code indices 0 to 64, but the codebook has 64 codes, from 0"):
        grid.tokens_from(torch.arange(0, 65)[None])
    with pytest.raises(ValueError, match="code indices -1 to 3"):
        grid.tokens_from(torch.tensor([[-1, 3]]))
    with pytest.raises(ValueError, match="give their means, scales and rotations"):
        network.tokens_from(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="tokens are 24 indices per image and nothing else"):
        grid.tokens_from(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="embed_dim 40 must be a multiple of 32"):
        EmbedderArchitecture(num_gaussians=4, embed_dim=40)
    with pytest.raises(ValueError, match="channels 48 is not a multiple of 32"):
        replace(TINY, channels=48)


def test_only_the_convolutions_follow_autocast() -> None:
    network, images = network_of().eval(), images_of(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert network.img_encoder(images).dtype == torch.bfloat16
        tokens, _ = network.tokenize(images)
        assert tokens.gaussians is not None
        fields = [tokens.gaussians.means, tokens.gaussians.scales, tokens.features, network.feature_map(tokens), network.decode(tokens)]
        assert {value.dtype for value in fields} == {torch.float32}
        splatted = network.feature_map(tokens)
    assert torch.equal(splatted, network.feature_map(tokens))


def test_codebook_and_scale_range_learn_in_training_only() -> None:
    network, images = network_of(), images_of(2)
    moving = ("cluster_size", "embed_avg", "embed", "current_range_max", "ema")
    state = {key: value.clone() for key, value in network.state_dict().items()}
    network.eval().reconstruct(images)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    network.train().reconstruct(images)
    moved = {key.rsplit(".", 1)[-1] for key, value in network.state_dict().items() if not torch.equal(value, state[key])}
    assert moved == set(moving)


def test_the_published_splat_changes_gradients_only() -> None:
    results = []
    for published in (False, True):
        network = network_of()
        network.published_splat = published
        reconstruction = network.reconstruct(images_of(3))
        reconstruction.square().mean().backward()
        assert network.gs_embed is not None
        results.append((reconstruction, network.gs_embed.gaussian_lifter.anchor.grad, network.last_layer.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][2], results[1][2])
    assert not torch.allclose(results[0][1], results[1][1])


@pytest.mark.parametrize("architecture", [TINY, GRID], ids=["gaussians", "grid"])
def test_every_parameter_learns_and_a_batch_is_learnt(architecture: GaussianTokenArchitecture) -> None:
    network, images = network_of(architecture), images_of(4, count=4)
    images = torch.nn.functional.interpolate(images[..., ::8, ::8], images.shape[-2:], mode="bilinear")
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=2e-3)
    errors = []
    for _ in range(15):
        tokens, commitment = network.tokenize(images)
        error = (network.decode(tokens) - images).abs().mean()
        optimizer.zero_grad()
        (error + 0.25 * commitment).backward()
        assert all(parameter.grad is not None for parameter in trained.values())
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.7 * errors[0]


def test_a_copied_network_calls_its_own_parts() -> None:
    network = network_of().eval()
    network.replay_graphs(False)
    twin = copy.deepcopy(network)
    for calls, part in ((twin._encode, twin.img_encoder), (twin._embed, twin.gs_embed), (twin._decode, twin.img_decoder)):
        assert calls is not None and calls.module is part and not calls.enabled
    before = network.reconstruct(images_of(1))
    with torch.no_grad():
        twin.img_decoder.conv_out.weight.zero_()
    assert torch.equal(network.reconstruct(images_of(1)), before) and not torch.equal(twin.reconstruct(images_of(1)), before)
