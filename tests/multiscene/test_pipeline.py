"""The pipeline behind nerfstudio's commands: weights all or nothing, evaluation by `ns-eval`, fine-tuning from other runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.utils.eval_utils import eval_setup

from tests.tiny_runs import run, tiny_config
from tests.tiny_scenes import write_tiny_scenes
from token_methods.core import perceptual
from token_methods.core.weights import WeightsError, write_safetensors
from token_methods.multiscene.checkpoints import CheckpointError, checkpoint_path, read_checkpoint
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.network_files import read_network

STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tiny_scenes(folder, 4, num_frames=8, with_points=True)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(data, tmp_path_factory.mktemp("runs"), STEPS)
    config.steps_per_save = 2
    return run(config)


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """The run elsewhere, to be damaged: its config.yml names that place."""
    config = yaml.load((trained / "config.yml").read_text(), Loader=yaml.Loader)
    config.run_folder = tmp_path / "copied"
    (tmp_path / "copied/nerfstudio_models").mkdir(parents=True)
    for path in (trained / "nerfstudio_models").iterdir():
        (tmp_path / "copied/nerfstudio_models" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "copied/config.yml").write_text(yaml.dump(config))
    return tmp_path / "copied"


def load(folder: Path) -> tuple[Any, Path]:
    _, pipeline, path, _ = eval_setup(folder / "config.yml", test_mode="inference")
    return pipeline, path


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has no weights and no network; nothing is downloaded here."""

    def unavailable(*arguments: Any) -> None:
        raise perceptual.LpipsUnavailable("no weights of vgg16")

    monkeypatch.setattr(perceptual, "load_lpips", unavailable)


# nerfstudio's own loading.


def test_nerfstudio_loads_what_was_trained(trained: Path) -> None:
    pipeline, path = load(trained)
    assert path.name == f"step-{STEPS - 1:09d}.ckpt"
    saved = read_checkpoint(path)["pipeline"]
    for key, value in pipeline.state_dict().items():
        assert torch.equal(value, saved[key]), key
    assert pipeline.model.scene is not None, "the scene in hand is encoded with the weights that were loaded"
    assert not pipeline.model.training


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_nerfstudio_falls_back_to_the_checkpoint_before_a_torn_one(copied: Path, capsys: pytest.CaptureFixture[str], share: float) -> None:
    newest = checkpoint_path(copied / "nerfstudio_models", STEPS - 1)
    content = newest.read_bytes()
    newest.write_bytes(content[: int(share * len(content))])
    _, path = load(copied)
    assert path.name == "step-000000002.ckpt"
    said = " ".join(capsys.readouterr().out.split())
    assert "is truncated" in said and "Falling back to step-000000002.ckpt" in said


def test_strange_files_beside_checkpoints_do_not_matter(copied: Path) -> None:
    """nerfstudio reads a step out of every name in the folder and would stop at this one."""
    (copied / "nerfstudio_models" / "notes.txt").touch()
    assert load(copied)[1].name == f"step-{STEPS - 1:09d}.ckpt"


def test_when_no_checkpoint_can_be_read_nothing_is_loaded(copied: Path) -> None:
    for path in (copied / "nerfstudio_models").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        load(copied)


def test_a_run_resumed_by_step_is_evaluated_at_its_own_newest_step(trained: Path, data: Path, tmp_path: Path) -> None:
    """nerfstudio would look for the step that was resumed from in the folder of the new run."""
    config = tiny_config(data, tmp_path, STEPS)
    config.load_dir, config.load_step = trained / "nerfstudio_models", 2
    assert load(run(config))[1].name == f"step-{STEPS - 1:09d}.ckpt"


# Weights: all or nothing.


def drop(state: dict[str, torch.Tensor]) -> None:
    del state["_model.network.gs_tokens"]


def add(state: dict[str, torch.Tensor]) -> None:
    state["_model.network.teacher"] = torch.zeros(3)


def reshape(state: dict[str, torch.Tensor]) -> None:
    state["_model.network.gs_tokens"] = state["_model.network.gs_tokens"][:-1]


def poison(state: dict[str, torch.Tensor]) -> None:
    state["_model.network.gs_tokens"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop, r"1 missing: network\.gs_tokens"),
        (add, r"1 unexpected: network\.teacher"),
        (reshape, r"1 misshapen: network\.gs_tokens \[7, 24\] instead of \[8, 24\]"),
        (poison, r"NaN or infinity in 1 tensors: network\.gs_tokens"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_weights_that_do_not_fit_are_refused_by_name(
    trained: Path, copied: Path, data: Path, tmp_path: Path, spoil: Any, message: str, command: str
) -> None:
    path = checkpoint_path(copied / "nerfstudio_models", STEPS - 1)
    state = read_checkpoint(path)
    spoil(state["pipeline"])
    torch.save(state, path)
    config = tiny_config(data, tmp_path, STEPS + 2)
    config.load_dir = copied / "nerfstudio_models"
    with pytest.raises(WeightsError, match=message):
        load(copied) if command == "evaluate" else run(config)


def test_a_checkpoint_of_another_preset_is_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, STEPS + 2, num_latents=4, latent_cross_attn_depth=1)
    config.load_dir = trained
    with pytest.raises(WeightsError, match=r"missing: .*latents.*Nothing was loaded; take the method and the options"):
        run(config)


def test_a_checkpoint_from_data_parallel_training_of_nerfstudio_fits(trained: Path) -> None:
    pipeline, path = load(trained)
    wrapped = {key.replace("_model.", "_model.module."): value for key, value in read_checkpoint(path)["pipeline"].items()}
    pipeline.load_pipeline(wrapped, 0)


# Starting from other weights.


@pytest.mark.parametrize("name", ["", "config.yml", "nerfstudio_models", "nerfstudio_models/step-000000003.ckpt", "network.safetensors"])
def test_training_starts_from_another_run(trained: Path, data: Path, tmp_path: Path, name: str) -> None:
    if name.endswith(".safetensors"):
        write_safetensors(read_network(trained), trained / name)
    config = tiny_config(data, tmp_path)
    config.pipeline.initial_weights = trained / name
    config.pipeline.datamanager.data = data
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")
    for key, value in read_network(trained).items():
        assert torch.equal(pipeline.model.network.state_dict()[key], value), key


def test_more_tokens_grow_out_of_those_of_another_run(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(data, tmp_path, num_gs_tokens=20)
    config.pipeline.initial_weights, config.pipeline.datamanager.data = trained, data
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")
    assert torch.equal(pipeline.model.network.gs_tokens[:8], read_network(trained)["gs_tokens"])
    assert "gs_tokens made from 8 to 20 rows" in capsys.readouterr().out


def test_initial_weights_that_are_not_there(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path)
    config.pipeline.initial_weights = tmp_path / "nowhere"
    with pytest.raises(WeightsError, match=r"there are no weights at .*nowhere: name a run's folder"):
        run(config)


# Evaluation.


def test_ns_eval_reports_metrics_baselines_and_speed(trained: Path, tmp_path: Path) -> None:
    ComputePSNR(load_config=trained / "config.yml", output_path=tmp_path / "metrics.json", render_output_path=tmp_path / "pictures").main()
    results = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)["results"]
    assert {"psnr", "psnr_std", "ssim", "nearest_context_psnr", "mean_colour_psnr", "fps", "seconds_to_reconstruct"} <= results.keys()
    assert results["num_scenes"] == 1
    assert results["psnr_std"] == 0.0
    assert results["fps"] > 0
    report = json.loads((tmp_path / "pictures/per_scene.json").read_text(), parse_constant=pytest.fail)
    assert [scene["psnr"] for scene in report["scenes"]] == [results["psnr"]]
    scene = report["scenes"][0]["scene"]
    assert {path.name for path in (tmp_path / "pictures").glob("*.png")} == {f"{scene}_context.png", f"{scene}_comparison.png"}


def test_lpips_that_is_not_there_is_left_out_and_said_once(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, _ = load(trained)
    results = pipeline.get_average_eval_image_metrics(get_std=True)
    assert not [name for name in results if "lpips" in name]
    assert capsys.readouterr().out.count("LPIPS is not measured: no weights of vgg16") == 1


def test_evaluation_during_training_meets_different_scenes(data: Path, tmp_path: Path) -> None:
    """At the usual steps, which are multiples of a round number."""
    config = tiny_config(data, tmp_path)
    config.pipeline.datamanager.data, config.pipeline.datamanager.eval_scene_fraction = data, 1.0
    config.pipeline.datamanager.train_scenes = ("scene_0",)
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")
    seen = {pipeline._drawn_window(step).names for step in range(0, 10_000, 500)}
    assert len(seen) == len(pipeline.datamanager.evaluation_windows()) == 3


def test_evaluation_leaves_training_as_it_was(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path)
    config.pipeline.datamanager.data = data
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")
    pipeline.train()
    before = torch.get_rng_state()
    for evaluate in (pipeline.get_eval_loss_dict, pipeline.get_eval_image_metrics_and_images, pipeline.get_average_eval_image_metrics):
        evaluate(step=0)
        assert pipeline.model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in pipeline.model.parameters())


def test_a_scene_that_is_gone_stops_an_evaluation(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "scenes")
    config = tiny_config(data, tmp_path)
    config.pipeline.datamanager.data = tmp_path / "scenes"
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    scene = pipeline.datamanager.evaluation_windows()[0].scene
    shutil.rmtree(tmp_path / "scenes" / scene / "images")
    with pytest.raises(SceneError, match=rf"{scene}/images/frame_\d+\.png"):
        pipeline.get_average_eval_image_metrics()
