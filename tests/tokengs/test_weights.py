"""Published weights: any deviation is refused by name, and fine-tunes grow tokens by the published rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from token_methods.core.weights import WeightsError, read_safetensors, write_safetensors
from token_methods.tokengs.config import PRESETS, TokenGSArchitecture
from token_methods.tokengs.network import TokenGSNetwork
from token_methods.tokengs.weights import check_weights, fit_presets, grow_rows, load_weights, published_tensors, warm_start

SMALL = TokenGSArchitecture(enc_depth=1, dec_depth=1, enc_embed_dim=16, enc_num_heads=2, num_gs_tokens=6)
SMALL_LATENT = replace(SMALL, num_latents=5, latent_cross_attn_depth=1)


def drop(weights: dict[str, Tensor], key: str) -> str:
    del weights[key]
    return f"1 missing: {key}"


def rename(weights: dict[str, Tensor], key: str) -> str:
    weights[f"{key}_"] = weights.pop(key)
    return f"1 missing: {key}; 1 unexpected: {key}_"


def reshape(weights: dict[str, Tensor], key: str) -> str:
    shape = list(weights[key].shape)
    weights[key] = torch.empty(shape[0] + 1, *shape[1:], device="meta")
    return f"1 misshapen: {key} {[shape[0] + 1, *shape[1:]]} instead of {shape}"


@pytest.mark.parametrize("mutate", [drop, rename, reshape])
@pytest.mark.parametrize("manifest", ["manifest_0", "manifest_1", "manifest_2", "manifest_4"])
def test_every_published_key_is_guarded(manifest: str, mutate: Callable[[dict[str, Tensor], str], str], reference: Path) -> None:
    told = json.loads((reference / "parity" / "tokengs" / "state_dict_manifest.json").read_text())["manifests"][manifest]
    complete = {key: torch.empty(shape, device="meta") for key, (shape, _) in told["entries"].items()}
    architecture = PRESETS[told["presets"][0]].architecture
    assert complete.keys() == published_tensors(architecture).keys()
    for key in complete:
        weights = dict(complete)
        difference = mutate(weights, key)
        with pytest.raises(WeightsError) as refused:
            check_weights(weights, architecture, "weights.safetensors")
        assert f"weights.safetensors does not fit this model: {difference}. Nothing was loaded" in str(refused.value)


def test_the_preset_that_would_fit_is_named(reference: Path) -> None:
    manifests = json.loads((reference / "parity" / "tokengs" / "state_dict_manifest.json").read_text())
    for entry in manifests["manifests"].values():
        names = [name for name in entry["presets"] if name in PRESETS]
        if names:
            weights = {key: torch.empty(shape, device="meta") for key, (shape, _) in entry["entries"].items()}
            assert sorted(fit_presets(weights)) == sorted(names)
    base = dict(published_tensors(PRESETS["train_dl3dv_base"].architecture))
    fix = r"gs_tokens \[1024, 1024\] instead of \[4096, 1024\].*they fit the published preset train_dl3dv_base"
    with pytest.raises(WeightsError, match=fix):
        check_weights(base, PRESETS["finetune_dl3dv_4view"].architecture, "dl3dv_base.safetensors")
    with pytest.raises(WeightsError, match="no published preset fits either"):
        check_weights(TokenGSNetwork(SMALL_LATENT).state_dict(), SMALL, "other.safetensors")


def test_weights_travel_through_a_file_under_the_published_names(tmp_path: Path) -> None:
    network, other = TokenGSNetwork(SMALL), TokenGSNetwork(SMALL)
    write_safetensors(network.state_dict() | {"lpips_loss.net.lin0.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    load_weights(other, read_safetensors(tmp_path / "w.safetensors"), "w.safetensors")
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_nothing_is_loaded_when_something_is_wrong() -> None:
    network = TokenGSNetwork(SMALL)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    broken = {key: torch.zeros_like(value) for key, value in before.items()}
    broken["gs_tokens"] = torch.full_like(broken["gs_tokens"], float("nan"))
    with pytest.raises(WeightsError, match="NaN or infinity in 1 tensors: gs_tokens"):
        load_weights(network, broken, "w.safetensors")
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_fewer_tokens_are_evenly_spaced_rows(reference: Path) -> None:
    told = json.loads((reference / "parity" / "tokengs" / "schedules.json").read_text())["token_downsample_indices"]
    for sizes, indices in told.items():
        old, new = (int(size) for size in sizes.split("->"))
        rows = torch.arange(old, dtype=torch.float32)[:, None]
        assert grow_rows(rows, new)[:, 0].tolist() == indices


def test_more_tokens_are_the_old_ones_in_turn_with_noise() -> None:
    rows = torch.randn(5, 400)
    grown = grow_rows(rows, 13, torch.Generator().manual_seed(0))
    assert torch.equal(grown[:5], rows)
    noise = grown[5:] - rows[[0, 1, 2, 3, 4, 0, 1, 2]]
    assert noise.std().item() == pytest.approx(0.01, rel=0.05)
    assert noise.mean().abs() < 1e-3


def test_a_fine_tune_starts_from_weights_with_fewer_tokens() -> None:
    base, network = TokenGSNetwork(SMALL_LATENT), TokenGSNetwork(replace(SMALL_LATENT, num_gs_tokens=20, num_latents=2))
    notes = warm_start(network, base.state_dict(), "base.safetensors")
    assert notes == ["gs_tokens made from 6 to 20 rows", "enc_dec_backbone.latents made from 5 to 2 rows"]
    assert torch.equal(network.gs_tokens[:6], base.gs_tokens)
    assert torch.equal(network.enc_dec_backbone.latents, base.enc_dec_backbone.latents[[0, 4]])
    assert torch.equal(network.activation_head.deconv.weight, base.activation_head.deconv.weight)


def test_a_fine_tune_tells_what_it_did_not_take() -> None:
    base, network = TokenGSNetwork(SMALL), TokenGSNetwork(SMALL_LATENT)
    fresh = network.enc_dec_backbone.latents.clone()
    (note,) = warm_start(network, base.state_dict(), "base.safetensors")
    assert note.startswith("not taken from base.safetensors: ")
    assert "enc_dec_backbone.latents" in note
    assert "2 unexpected: enc_dec_backbone.kv_proj.weight, enc_dec_backbone.kv_proj.bias" in note
    assert torch.equal(network.enc_dec_backbone.latents, fresh)
    assert torch.equal(network.gs_tokens, base.gs_tokens)
    (note,) = warm_start(TokenGSNetwork(replace(SMALL, num_gs_tokens=9)), base.state_dict(), "base.safetensors", grow_tokens=False)
    assert "1 misshapen: gs_tokens [6, 16] instead of [9, 16]" in note


def test_weights_of_something_else_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"vit\.safetensors shares no tensor"):
        warm_start(TokenGSNetwork(SMALL), {"head.weight": torch.zeros(3)}, "vit.safetensors")
