"""Published GaussianToken weights: they become a run, which is evaluated, trained on, and written back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nerfstudio.scripts.exporter import ExportGaussianSplat
from safetensors.torch import load_file
from torch import Tensor

from tests import tiny_runs
from tests.commands.picture_evaluation import differences, evaluated, measured
from tests.tiny_pictures import tiny_picture_config
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.discriminator import PatchDiscriminator
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.gaussiantoken.weights import published_weights, shadow_name
from token_methods.multiscene.checkpoints import checkpoint_path, newest_readable, read_checkpoint

Command = Callable[..., str]
TINY = PRESETS["tiny"].architecture


def lightning_checkpoint(path: Path) -> dict[str, Tensor]:
    """A file as the published trainer writes it: each trained tensor twice, networks of the loss, and what else Lightning keeps."""
    torch.manual_seed(3)
    live, average = (GaussianTokenNetwork(TINY) for _ in range(2))
    codes = torch.randn_like(live.quantize._codebook.embed)
    for network in (live, average):
        network.quantize._codebook.embed.copy_(codes)
        network.quantize._codebook.embed_avg.copy_(2 * codes)
        network.quantize._codebook.cluster_size.fill_(2.0)
        network.quantize._codebook.initted.fill_(1)
    weights = published_weights(live.state_dict(), TINY, average.state_dict(), PatchDiscriminator().state_dict())
    unread = {
        "gs_embed.op_module_map.ffn.identity_fc.weight": torch.zeros(3),
        shadow_name("gs_embed.op_module_map.ffn.identity_fc.weight"): torch.zeros(3),
        "gs_embed.layers.2.to_features.0.weight": torch.zeros(3),
        "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(64, 3, 3, 3),
    }
    counters = {"epoch": 29, "global_step": 97_530, "pytorch-lightning_version": "2.2.0", "loops": {"fit_loop": {"state_dict": {}}}}
    optimizers = [{"state": {0: {"step": torch.tensor(1.0)}}}]
    torch.save({**counters, "state_dict": {**weights, **unread}, "optimizer_states": optimizers}, path)
    return weights


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path / "published.ckpt"
    return path, lightning_checkpoint(path)


def test_published_weights_become_a_run(
    published: tuple[Path, dict[str, Tensor]], pictures: Path, others: Path, tmp_path: Path, ns_tokens: Command
) -> None:
    """Evaluation is that of the averaged weights and the live codebook, and every command works on the run."""
    path, weights = published
    imported = tmp_path / "imported"
    said = ns_tokens("import", "--preset", "gaussiantoken-tiny", "--weights", path, "--output-dir", imported, "--data", pictures)
    assert "19 tensors that nothing here reads are left out: model_ema (16), " in said and "loss.perceptual_loss (1)" in said
    network = GaussianTokenNetwork(TINY).eval()
    own = {key: weights.get(shadow_name(key), weights.get(key, value)) for key, value in network.state_dict().items()}
    network.load_state_dict(own)
    _, rows = evaluated(imported, tmp_path / "evaluation")
    assert len(rows) == 5
    for row in rows:
        assert row["psnr"] == pytest.approx(measured(network, pictures / row["name"]), abs=1e-3)
    tokens = tmp_path / "tokens.safetensors"
    ns_tokens("tokenize", others, "--load-config", imported, "--output", tokens)
    ns_tokens("export", "--load-config", imported, "--output", tmp_path / "tokens.svg")
    ExportGaussianSplat(load_config=imported / "config.yml", output_dir=tmp_path / "splats").main()
    assert tokens.is_file() and (tmp_path / "tokens.svg").is_file() and (tmp_path / "splats" / "splat.ply").is_file()


def test_published_weights_come_back_bit_for_bit(published: tuple[Path, dict[str, Tensor]], tmp_path: Path, ns_tokens: Command) -> None:
    path, weights = published
    ns_tokens("import", "--preset", "gaussiantoken-tiny", "--weights", path, "--output-dir", tmp_path / "imported")
    again = tmp_path / "again.safetensors"
    ns_tokens("export-weights", "--load-config", tmp_path / "imported", "--output", again)
    found = load_file(again)
    assert found.keys() == weights.keys()
    assert [key for key, value in weights.items() if not torch.equal(found[key].to(value.dtype), value)] == []
    ns_tokens("import", "--preset", "gaussiantoken-tiny", "--weights", again, "--output-dir", tmp_path / "second")
    first, second = (read_checkpoint(checkpoint_path(tmp_path / name / "nerfstudio_models", 0)) for name in ("imported", "second"))
    assert not differences(first["pipeline"], second["pipeline"])


def test_training_goes_on_from_published_weights(
    published: tuple[Path, dict[str, Tensor]], pictures: Path, tmp_path: Path, ns_tokens: Command
) -> None:
    """From what the publication evaluates, with a new discriminator (`--pipeline.initial-weights`); or from all that it trained."""
    path, weights = published
    imported = tmp_path / "imported"
    ns_tokens("import", "--preset", "gaussiantoken-tiny", "--weights", path, "--output-dir", imported)
    key, other = "img_decoder.conv_out.weight", "loss.discriminator.main.0.weight"
    anew, further = (tiny_picture_config(pictures, tmp_path / name, steps=2) for name in ("anew", "further"))
    anew.max_num_iterations, anew.pipeline.initial_weights = 1, imported
    further.load_dir = imported
    states = [newest_readable(tiny_runs.run(config) / "nerfstudio_models")[1]["pipeline"] for config in (anew, further)]
    taken = [weights[shadow_name(key)], weights[key]]
    for state, expected in zip(states, taken):  # one step at the rate of the first: 1e-6
        assert (state[f"_model.network.{key}"] - expected).abs().max() < 2e-6
    kept = [(state["_model.discriminator.main.0.weight"] - weights[other]).abs().max() < 2e-6 for state in states]
    assert kept == [False, True]
    one_step = torch.lerp(weights[shadow_name(key)], states[1][f"_model.network.{key}"], 1 - further.pipeline.model.average_decay)
    torch.testing.assert_close(states[1][f"_model.average.module.{key}"], one_step, atol=1e-6, rtol=0)
    assert (states[1][f"_model.average.module.{key}"] - weights[key]).abs().max() > 1e-2


def test_a_checkpoint_with_every_published_key_of_cifar_is_taken(reference: Path, tmp_path: Path, ns_tokens: Command) -> None:
    manifest = json.loads((reference / "parity" / "gaussiantoken" / "state_dict_manifest.json").read_text())["presets"]["cifar_gqgan"]
    state = {key: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape) for key, (shape, dtype, _) in manifest.items()}
    torch.save({"state_dict": state}, tmp_path / "cifar.ckpt")
    said = ns_tokens("import", "--preset", "gaussiantoken-cifar", "--weights", tmp_path / "cifar.ckpt", "--output-dir", tmp_path / "run")
    found = read_checkpoint(checkpoint_path(tmp_path / "run" / "nerfstudio_models", 0))["pipeline"]
    assert not any(value.any() for key, value in found.items() if key.startswith(("_model.network.img", "_model.average.module.img")))
    assert "of cifar.ckpt are now the run" in said
    shutil.rmtree(tmp_path / "run")
