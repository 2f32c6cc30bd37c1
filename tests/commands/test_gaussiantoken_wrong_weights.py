"""Weights and runs that are of another network, or more than data, are refused in one sentence that names keys and fix."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.scripts.eval import ComputePSNR
from torch import Tensor

from tests.commands.refusals import Evil, refused
from tests.tiny_pictures import tiny_picture_config
from token_methods.core.weights import WeightsError
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.discriminator import PatchDiscriminator
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.gaussiantoken.weights import published_weights, shadow_name
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig

Command = Callable[..., str]
TINY = PRESETS["tiny"].architecture


def changed(run: Path, change: Callable[[FeedForwardTrainerConfig], None]) -> FeedForwardTrainerConfig:
    """Change the settings of a run that was copied."""
    path = run / "config.yml"
    config: FeedForwardTrainerConfig = yaml.load(path.read_text(), Loader=yaml.Loader)
    config.run_folder = run
    change(config)
    path.write_text(yaml.dump(config))
    return config


def larger_codebook(config: FeedForwardTrainerConfig) -> None:
    model = config.pipeline.model
    model.architecture = dataclasses.replace(model.architecture, codebook_size=128)


def test_a_run_whose_codebook_has_another_size(
    picture_run: Path, pictures: Path, tmp_path: Path, refusal: Command, ns_tokens: Command
) -> None:
    tokens = tmp_path / "tokens.safetensors"
    ns_tokens("tokenize", pictures / "val", "--load-config", picture_run, "--output", tokens)
    moved = shutil.copytree(picture_run, tmp_path / "run")
    changed(moved, larger_codebook)
    difference = "quantize._codebook.embed [1, 64, 8] instead of [1, 128, 8]"
    with pytest.raises(WeightsError) as error:
        ComputePSNR(load_config=moved / "config.yml", output_path=tmp_path / "metrics.json").main()
    said = str(error.value)
    assert difference in said and "Nothing was loaded; take the method and the options that it was trained with" in said
    for words in (
        ("tokenize", pictures / "val", "--load-config", moved, "--output", tmp_path / "other.safetensors"),
        ("detokenize", tokens, "--load-config", moved, "--output-dir", tmp_path / "out"),
        ("export", "--load-config", moved, "--output", tmp_path / "tokens.svg"),
        ("export-weights", "--load-config", moved, "--output", tmp_path / "weights.safetensors"),
    ):
        said = refusal(*words)
        assert difference in said and "\n" not in said, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tokens.safetensors"]


def test_resuming_with_another_network_or_method(picture_run: Path, pictures: Path, tmp_path: Path, run: Path) -> None:
    config = tiny_picture_config(pictures, tmp_path / "first")
    larger_codebook(config)
    config.load_dir = picture_run
    assert "_codebook.embed [1, 64, 8] instead of [1, 128, 8]" in refused(config, WeightsError)
    config = tiny_picture_config(pictures, tmp_path / "second")
    config.load_dir = run  # of TokenGS
    said = refused(config, WeightsError)
    assert "does not fit this model" in said and "missing: network.img_encoder" in said
    config = tiny_picture_config(pictures, tmp_path / "third")
    config.pipeline.initial_weights = run
    assert str(run) in refused(config, WeightsError)


def published(folder: Path, change: Callable[[dict[str, Tensor]], Any] = lambda weights: None, averaged: bool = True) -> Path:
    """A Lightning checkpoint of the tiny network, changed."""
    torch.manual_seed(3)
    weights = published_weights(GaussianTokenNetwork(TINY).state_dict(), TINY, discriminator=PatchDiscriminator().state_dict())
    if not averaged:
        weights = {key: value for key, value in weights.items() if not key.startswith("model_ema.")}
    change(weights)
    path = folder / "published.ckpt"
    torch.save({"epoch": 3, "state_dict": weights}, path)
    return path


def put(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: weights.update({key: value})


KEY, CODES = "img_decoder.conv_out.weight", "quantize._codebook.embed"
SHADOW = shadow_name(KEY)


@pytest.mark.parametrize(
    ("change", "averaged", "sentence"),
    [
        (lambda weights: weights.pop(KEY), False, f"1 missing: {KEY}"),
        (lambda weights: weights.pop(SHADOW), True, f"1 missing: {SHADOW}"),
        (lambda weights: weights.pop(CODES), True, f"1 missing: {CODES}"),
        (put("img_decoder.surplus", torch.zeros(2)), True, "1 unexpected: img_decoder.surplus"),
        (put(SHADOW, torch.zeros(3, 4)), True, f"1 misshapen: {SHADOW} [3, 4] instead of [3, 32, 3, 3]"),
        (put(CODES, torch.zeros(1, 128, 8)), True, f"1 misshapen: {CODES} [1, 128, 8] instead of [1, 64, 8]"),
        (put(SHADOW, torch.full((3, 32, 3, 3), float("nan"))), True, f"NaN or infinity in 1 tensors: {SHADOW}"),
        (put(KEY, torch.full((3, 32, 3, 3), float("inf"))), True, f"NaN or infinity in 1 tensors: {KEY}"),
        (put("loss.discriminator.main.0.weight", torch.zeros(2)), True, "the discriminator in "),
    ],
)
def test_published_weights_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], Any], averaged: bool, sentence: str, tmp_path: Path, refusal: Command
) -> None:
    path = published(tmp_path, change, averaged)
    said = refusal("import", "--preset", "gaussiantoken-tiny", "--weights", path, "--output-dir", tmp_path / "imported")
    assert sentence in said and str(path) in said and "\n" not in said
    assert not (tmp_path / "imported").exists()


def test_weights_of_another_preset_name_the_one_that_fits(tmp_path: Path, refusal: Command) -> None:
    for preset in ("gaussiantoken-cifar", "vqgan-cifar"):
        said = refusal("import", "--preset", preset, "--weights", published(tmp_path), "--output-dir", tmp_path / "imported")
        assert "Nothing was loaded" in said and said.endswith("Import them with --preset gaussiantoken-tiny.") and "\n" not in said, said
    assert not (tmp_path / "imported").exists()


def test_checkpoints_that_hold_more_than_data_or_nothing_are_not_opened(
    tmp_path: Path, refusal: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    files: dict[str, Any] = {
        "evil.ckpt": {"state_dict": {}, "callbacks": Evil()},
        "list.ckpt": [1, 2],
        "no_state.ckpt": {"epoch": 3},
        "no_tensors.ckpt": {"state_dict": {"a": 1}},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "torn.ckpt").write_bytes(published(tmp_path).read_bytes()[:5000])
    sentences = {
        "evil.ckpt": "to be opened, which is not opened, since it could run code",
        "list.ckpt": "has no state_dict of tensors",
        "no_state.ckpt": "has no state_dict of tensors",
        "no_tensors.ckpt": "has no state_dict of tensors",
        "torn.ckpt": "is damaged or no checkpoint",
        "nowhere.ckpt": "no weights at",
    }
    for name, sentence in sentences.items():
        said = refusal("import", "--preset", "gaussiantoken-tiny", "--weights", tmp_path / name, "--output-dir", tmp_path / "imported")
        assert sentence in said and str(tmp_path / name) in said and "\n" not in said, said
    assert "this must never be printed" not in capfd.readouterr().out and not (tmp_path / "imported").exists()
