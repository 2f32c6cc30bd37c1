"""Published checkpoints: what is read of them, what is refused by name, and that they go there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from token_methods.core.weights import WeightsError
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.discriminator import PatchDiscriminator
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.gaussiantoken.weights import (
    check_weights,
    discriminator_weights,
    fit_presets,
    load_weights,
    published_tensors,
    published_weights,
    read_checkpoint,
    shadow_name,
    unread_keys,
    write_checkpoint,
)

TINY = PRESETS["tiny"].architecture
MANIFESTS = {"cifar_gqgan": "cifar", "imagenet_gqgan": "imagenet", "mini_vqgan": "vqgan"}
RANGE = "gs_embed.layers.8.range_scheduler"


def network_of(seed: int) -> GaussianTokenNetwork:
    torch.manual_seed(seed)
    return GaussianTokenNetwork(TINY)


def checkpoint_of(live: GaussianTokenNetwork, average: GaussianTokenNetwork) -> dict[str, Tensor]:
    """What the publication saves: two copies of what is trained, the loss's networks, and what nothing reads."""
    discriminator = PatchDiscriminator(4).state_dict()
    unread = {
        "gs_embed.op_module_map.ffn.identity_fc.weight": torch.zeros(3),
        "model_ema.gs_embedop_module_mapffnidentity_fcweight": torch.zeros(3),
        "gs_embed.layers.2.to_features.0.weight": torch.zeros(3),
        "gs_embed.layers.5.range_scheduler.current_range_max": torch.zeros(()),
        "model_ema.gs_embedlayers5to_features0weight": torch.zeros(3),
        "loss.perceptual_loss.scaling_layer.shift": torch.zeros(3),
    }
    return published_weights(live.state_dict(), TINY, average.state_dict(), discriminator) | unread


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_what_is_read_is_what_the_publication_uses(manifest: str, reference: Path) -> None:
    told = json.loads((reference / "parity" / "gaussiantoken" / "state_dict_manifest.json").read_text())["presets"][manifest]
    architecture = PRESETS[MANIFESTS[manifest]].architecture
    published = published_tensors(architecture)
    used = {key: entry for key, entry in told.items() if entry[2] in ("used", "const", "buffer") and not key.startswith("model_ema.")}
    assert {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in published.tensors.items()} == {
        key: entry[:2] for key, entry in used.items()
    }
    everything = {key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, (shape, dtype, _) in told.items()}
    read = {shadow_name(key) if key in published.averaged else key for key in published.tensors}
    live = {key for key in published.averaged if told[key][2] == "used"}
    assert read | live | set(unread_keys(everything, architecture)) == everything.keys()
    assert not read & set(unread_keys(everything, architecture))
    expected = ["mini-imagenet", "imagenet"] if manifest == "imagenet_gqgan" else [MANIFESTS[manifest]]
    assert fit_presets(everything) == expected


def drop(weights: dict[str, Tensor], key: str) -> str:
    del weights[key]
    return f"1 missing: {key}"


def rename(weights: dict[str, Tensor], key: str) -> str:
    weights[f"{key}_"] = weights.pop(key)
    return f"1 missing: {key}; 1 unexpected: {key}_"


def reshape(weights: dict[str, Tensor], key: str) -> str:
    shape = list(weights[key].shape)
    weights[key] = torch.empty(7, *shape, device="meta")
    return f"1 misshapen: {key} {[7, *shape]} instead of {shape}"


@pytest.mark.parametrize("mutate", [drop, rename, reshape])
@pytest.mark.parametrize("averaged", [True, False])
def test_every_key_is_guarded(mutate: Callable[[dict[str, Tensor], str], str], averaged: bool) -> None:
    complete = checkpoint_of(network_of(0), network_of(1))
    published = published_tensors(TINY)
    places = [shadow_name(key) if averaged and key in published.averaged else key for key in published.tensors]
    for key in [*places[::7], "quantize._codebook.embed", f"{RANGE}.current_range_max"]:
        weights = dict(complete)
        difference = mutate(weights, key)
        with pytest.raises(WeightsError) as refused:
            check_weights(weights, TINY, "last.ckpt", averaged)
        assert f"last.ckpt does not fit this model: {difference}. Nothing was loaded" in str(refused.value)


def test_the_preset_that_would_fit_is_named() -> None:
    weights = dict(published_tensors(PRESETS["imagenet"].architecture).tensors)
    with pytest.raises(WeightsError, match="they fit the presets mini-imagenet, imagenet"):
        check_weights(weights, PRESETS["cifar"].architecture, "last.ckpt")
    with pytest.raises(WeightsError, match="no preset fits either"):
        check_weights(weights | {"other": torch.zeros(1)}, PRESETS["cifar"].architecture, "last.ckpt")


def test_averages_are_taken_of_what_is_trained_and_live_values_of_the_rest() -> None:
    live, average = network_of(0), network_of(1)
    live.train().tokenize(torch.rand(4, 3, 32, 32))
    weights = checkpoint_of(live, average)
    trained = {key for key, parameter in live.named_parameters() if parameter.requires_grad}
    for averaged in (True, False):
        network = network_of(2)
        load_weights(network, weights, "last.ckpt", averaged)
        for key, value in network.state_dict().items():
            if key == f"{RANGE}.ema":
                assert value == pytest.approx(2.05)
            else:
                source = average if averaged and key in trained else live
                assert torch.equal(value, source.state_dict()[key]), key
    assert {"quantize._codebook.embed", "gs_embed.layers.0.layers.0.cross_attn.fixed_offsets"}.isdisjoint(trained)


def test_files_without_averages_give_what_they_have() -> None:
    network, other = network_of(0), network_of(1)
    network.train().tokenize(torch.rand(4, 3, 32, 32))
    load_weights(other, network.state_dict(), "ours.safetensors")
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_nothing_is_loaded_when_something_is_wrong() -> None:
    network = network_of(0)
    weights = checkpoint_of(network_of(1), network_of(2))
    weights[shadow_name("gs_embed.gaussian_lifter.anchor")][0, 0] = float("nan")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 tensors: model_ema\.gs_embedgaussian_lifteranchor"):
        load_weights(network, weights, "last.ckpt")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["last.ckpt", "last.safetensors"])
def test_networks_travel_through_files_under_the_published_names(name: str, tmp_path: Path) -> None:
    live, average, discriminator = network_of(0), network_of(1), PatchDiscriminator(4)
    weights = published_weights(live.state_dict(), TINY, average.state_dict(), discriminator.state_dict())
    assert weights["model_ema.num_updates"].dtype == torch.int32 and weights["quantize._codebook.initted"].shape == (1,)
    assert f"{RANGE}.ema" not in weights
    write_checkpoint(weights, tmp_path / "runs" / name)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [name]
    read = read_checkpoint(tmp_path / "runs" / name)
    assert read.keys() == weights.keys()
    network = network_of(2)
    load_weights(network, read, name)
    assert torch.equal(network.last_layer, average.last_layer)
    PatchDiscriminator(4).load_state_dict(discriminator_weights(read))
    assert discriminator_weights(live.state_dict()) == {}


def test_weights_of_another_architecture_are_not_exported() -> None:
    with pytest.raises(WeightsError, match="this network does not fit this model: "):
        published_weights(network_of(0).state_dict(), replace(TINY, embedder=None))


class Hostile:
    """Would leave a file behind when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return Path.touch, (self.path,)


def test_checkpoints_are_read_without_running_their_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": Hostile(tmp_path / "harm")}, tmp_path / "hostile.ckpt")
    with pytest.raises(WeightsError, match=r"hostile\.ckpt needs \S+ to be opened, which is not opened, since it could run code"):
        read_checkpoint(tmp_path / "hostile.ckpt")
    assert not (tmp_path / "harm").exists()


def test_files_that_are_no_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights at .*gone\.ckpt"):
        read_checkpoint(tmp_path / "gone.ckpt")
    torch.save({"state_dict": {"a": torch.ones(3000)}}, tmp_path / "cut.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "cut.ckpt").read_bytes()[:5000])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "text.ckpt").write_text("hello")
    for name in ("cut", "empty", "text"):
        with pytest.raises(WeightsError, match=rf"{name}\.ckpt is damaged or no checkpoint"):
            read_checkpoint(tmp_path / f"{name}.ckpt")
    torch.save({"model": {"a": torch.ones(3)}}, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=r"other\.ckpt is no published checkpoint: it has no state_dict of tensors"):
        read_checkpoint(tmp_path / "other.ckpt")
