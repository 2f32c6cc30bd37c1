"""`ns-tokens import` and `export-weights`: published weights in and out, all of them or none."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.exporter import ExportGaussianSplat
from nerfstudio.scripts.render import RenderInterpolated
from nerfstudio.utils.eval_utils import eval_setup
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import tiny_runs
from token_methods.tokengs.weights import published_tensors

Command = Callable[..., str]
METHOD = "tokengs-smallest"


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A method with the smallest network, registered under its own name as a plugin would be."""
    config = tiny_runs.tiny_config(None, tmp_path / "outputs", num_gs_tokens=32)
    config.method_name = METHOD
    monkeypatch.setitem(all_methods, METHOD, config)
    return METHOD


@pytest.fixture
def weights(run: Path, tmp_path: Path, ns_tokens: Command) -> Path:
    """The trained network of the shared run, as a file."""
    path = tmp_path / "weights.safetensors"
    said = ns_tokens("export-weights", "--load-config", run, "--output", path)
    assert f"{len(load_file(path))} tensors" in said
    return path


def test_published_names_are_written(run: Path, weights: Path) -> None:
    config = tiny_runs.tiny_config(None, run, num_gs_tokens=32)
    expected = published_tensors(config.pipeline.model.architecture)
    assert {key: value.shape for key, value in load_file(weights).items()} == {key: value.shape for key, value in expected.items()}


def test_weights_come_back_bit_for_bit(method: str, weights: Path, tmp_path: Path, ns_tokens: Command) -> None:
    ns_tokens("import", "--preset", method, "--weights", weights, "--output-dir", tmp_path / "imported")
    ns_tokens("export-weights", "--load-config", tmp_path / "imported", "--output", tmp_path / "again.safetensors")
    before, after = load_file(weights), load_file(tmp_path / "again.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_every_command_works_on_an_imported_run(
    method: str, run: Path, weights: Path, scenes: Path, photos: Path, tmp_path: Path, ns_tokens: Command
) -> None:
    said = ns_tokens("import", "--preset", method, "--weights", weights, "--output-dir", tmp_path / "imported", "--data", scenes)
    config = tmp_path / "imported" / "config.yml"
    assert str(config) in said
    ComputePSNR(load_config=config, output_path=tmp_path / "imported.json").main()
    ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "trained.json").main()
    imported, trained = (json.loads((tmp_path / f"{name}.json").read_text())["results"]["psnr"] for name in ("imported", "trained"))
    assert imported == trained
    RenderInterpolated(load_config=config, output_path=tmp_path / "video.mp4", interpolation_steps=2).main()
    ExportGaussianSplat(load_config=config, output_dir=tmp_path / "export").main()
    assert (tmp_path / "video.mp4").is_file() and (tmp_path / "export" / "splat.ply").is_file()
    assert eval_setup(config, test_mode="test")[1].model.scene is not None  # as ns-viewer does
    ns_tokens("export", "--load-config", config, "--output", tmp_path / "scene.spz")
    ns_tokens("reconstruct", "--load-config", config, "--data", photos, "--output-dir", tmp_path / "out", "--seconds", 0.1)


def test_a_run_without_data_asks_for_them(
    method: str, weights: Path, photos: Path, tmp_path: Path, ns_tokens: Command, refusal: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "imported"
    ns_tokens("import", "--preset", method, "--weights", weights, "--output-dir", run)
    said = refusal("export", "--load-config", run, "--output", tmp_path / "scene.ply")
    assert "no scene found" in said and 'NERFSTUDIO_TOKENS="--data FOLDER"' in said
    ns_tokens("export", "--load-config", run, "--output", tmp_path / "scene.ply", "--data", photos)
    ns_tokens("reconstruct", "--load-config", run, "--data", photos, "--output-dir", tmp_path / "out", "--seconds", 0.1)


def test_training_goes_on_from_an_imported_run(method: str, weights: Path, scenes: Path, tmp_path: Path, ns_tokens: Command) -> None:
    ns_tokens("import", "--preset", method, "--weights", weights, "--output-dir", tmp_path / "imported")
    config = tiny_runs.tiny_config(scenes, tmp_path / "outputs", steps=1, num_gs_tokens=32)
    config.pipeline.initial_weights = tmp_path / "imported"
    tiny_runs.run(config)


# What is refused; nothing is written then.


def save(weights: dict[str, Tensor], path: Path) -> Path:
    save_file(weights, path)
    return path


def test_weights_that_do_not_fit(method: str, weights: Path, tmp_path: Path, refusal: Command) -> None:
    whole = load_file(weights)
    key = "gs_tokens"
    wrong: dict[str, tuple[dict[str, Tensor], str]] = {
        "less": ({name: value for name, value in whole.items() if name != key}, f"1 missing: {key}"),
        "more": ({**whole, "surplus": torch.zeros(2)}, "1 unexpected: surplus"),
        "misshapen": ({**whole, key: torch.zeros(3, 4)}, f"1 misshapen: {key} [3, 4] instead of [32, 24]"),
        "nan": ({**whole, key: torch.full_like(whole[key], float("nan"))}, f"NaN or infinity in 1 tensors: {key}"),
    }
    for name, (tensors, sentence) in wrong.items():
        path = save(tensors, tmp_path / f"{name}.safetensors")
        said = refusal("import", "--preset", method, "--weights", path, "--output-dir", tmp_path / "imported")
        assert sentence in said and str(path) in said
        assert not (tmp_path / "imported").exists()


def test_weights_of_another_preset_name_the_one_that_fits(
    method: str, weights: Path, tmp_path: Path, refusal: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy.deepcopy(all_methods[method])
    other.method_name = "tokengs-shallower"
    model = other.pipeline.model
    model.architecture = dataclasses.replace(model.architecture, dec_depth=2)  # type: ignore[attr-defined]
    monkeypatch.setitem(all_methods, other.method_name, other)
    for preset in (other.method_name, "tokengs-6view"):
        said = refusal("import", "--preset", preset, "--weights", weights, "--output-dir", tmp_path / "imported")
        assert said.endswith(f"Import them with --preset {method}.") and "Nothing was loaded" in said
    said = refusal(
        "import", "--preset", method, "--weights", save({"a": torch.zeros(1)}, tmp_path / "a.safetensors"), "--output-dir", tmp_path
    )
    assert "--preset" not in said, "none fits"


def test_published_weights_are_told_apart() -> None:
    """Numbers of views and image sizes are not in the weights, everything else is."""
    configs = {name: all_methods[name].pipeline.model for name in all_methods if name.startswith("tokengs")}
    accepting = {
        name: {other for other, model in configs.items() if model.accepts(published_tensors(configs[name].architecture))}  # type: ignore[attr-defined]
        for name in ("tokengs", "tokengs-6view", "tokengs-latent-4view-lpips", "tokengs-tiny", "tokengs-small")
    }
    assert accepting["tokengs"] == {"tokengs"}
    assert accepting["tokengs-6view"] == {"tokengs-2view", "tokengs-4view", "tokengs-6view"}
    assert accepting["tokengs-latent-4view-lpips"] == {name for name in configs if "latent" in name}
    assert accepting["tokengs-tiny"] == {"tokengs-tiny"} and accepting["tokengs-small"] == {"tokengs-small"}


def test_files_that_are_no_weights(method: str, weights: Path, run: Path, tmp_path: Path, refusal: Command) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(weights.read_bytes()[:-100])
    pickled = tmp_path / "pickled.safetensors"
    pickled.write_bytes(pickle.dumps({"weights": [1, 2]}))
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    checkpoint = run / "nerfstudio_models" / "step-000000003.ckpt"
    sentences = {
        torn: "is damaged or no safetensors file",
        pickled: "is a pickled checkpoint, not safetensors. It is not opened, since it could run code",
        checkpoint: "is a pickled checkpoint, not safetensors",
        empty: "is damaged or no safetensors file",
        tmp_path / "none.safetensors": "no weights at",
        tmp_path: "no weights at",
    }
    for path, sentence in sentences.items():
        said = refusal("import", "--preset", method, "--weights", path, "--output-dir", tmp_path / "imported")
        assert sentence in said and str(path) in said
        assert not (tmp_path / "imported").exists()


def test_an_unknown_preset(weights: Path, tmp_path: Path, refusal: Command) -> None:
    for preset in ("tokengs-5view", "splatfacto"):
        said = refusal("import", "--preset", preset, "--weights", weights, "--output-dir", tmp_path / "imported")
        assert f"--preset {preset} is not a method of nerfstudio-tokens; choose from " in said
        assert "tokengs, tokengs-2view" in said


def test_a_run_is_not_overwritten(method: str, run: Path, weights: Path, refusal: Command) -> None:
    before = (run / "config.yml").read_text()
    assert "holds a run already" in refusal("import", "--preset", method, "--weights", weights, "--output-dir", run)
    assert (run / "config.yml").read_text() == before


def test_a_folder_that_cannot_be_written(method: str, weights: Path, tmp_path: Path, refusal: Command) -> None:
    (tmp_path / "file").write_text("")
    said = refusal("import", "--preset", method, "--weights", weights, "--output-dir", tmp_path / "file" / "run")
    assert "cannot write checkpoint" in said and "--output-dir" in said


@pytest.mark.parametrize(
    "address", ["hf://owner", "hf://owner/repository", "hf://owner//file.safetensors", "hf://owner/repository/model.pth"]
)
def test_a_malformed_address(method: str, tmp_path: Path, refusal: Command, address: str) -> None:
    said = refusal("import", "--preset", method, "--weights", address, "--output-dir", tmp_path / "imported")
    assert f"--weights {address} is no address of weights: write hf://OWNER/REPOSITORY[@REVISION]/PATH/IN/IT.safetensors" in said


def test_an_impossible_repository(method: str, tmp_path: Path, refusal: Command) -> None:
    said = refusal("import", "--preset", method, "--weights", "hf://an owner/re po/file.safetensors", "--output-dir", tmp_path / "imported")
    assert "cannot be downloaded (Repo id must use alphanumeric chars" in said


def test_a_hub_out_of_reach(method: str, tmp_path: Path, refusal: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    address = "hf://owner/repository@v1/folder/file.safetensors"
    said = refusal("import", "--preset", method, "--weights", address, "--output-dir", tmp_path / "imported")
    assert f"{address} cannot be downloaded (" in said and "download the file and give its path" in said
    assert "\n" not in said and not (tmp_path / "imported").exists()


def test_a_file_of_the_hub_is_taken_from_its_cache(
    method: str, weights: Path, tmp_path: Path, ns_tokens: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own cache layout: what was downloaded once needs no connection."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository, commit = tmp_path / "cache" / "models--owner--name", "0123456789" * 4
    snapshot = repository / "snapshots" / commit / "folder"
    snapshot.mkdir(parents=True)
    (snapshot / "file.safetensors").write_bytes(weights.read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    ns_tokens(
        "import", "--preset", method, "--weights", "hf://owner/name@v1/folder/file.safetensors", "--output-dir", tmp_path / "imported"
    )
    assert (tmp_path / "imported" / "config.yml").is_file()


def test_weights_are_exported_under_a_safetensors_name(run: Path, tmp_path: Path, refusal: Command) -> None:
    assert "must end in .safetensors" in refusal("export-weights", "--load-config", run, "--output", tmp_path / "weights.ckpt")
    assert not list(tmp_path.iterdir())
