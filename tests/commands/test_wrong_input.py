"""What is wrong with the input is said in one sentence that names file, key and fix, and nothing is half written."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts.eval import ComputePSNR

from tests import tiny_runs
from tests.commands.faults import FAULTS
from tests.tiny_scenes import write_tiny_scene, write_tiny_scenes
from token_methods.multiscene.datamanager import MultiSceneDataManager
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.plain_errors import plain_sentence

Command = Callable[..., str]


# A folder of photographs that cannot be used, named to either command.


@pytest.mark.parametrize("name", FAULTS)
def test_reconstruct_says_what_is_wrong_with_the_photographs(refusal: Command, run: Path, tmp_path: Path, name: str) -> None:
    fault, photos = FAULTS[name], write_tiny_scene(tmp_path / "photos", num_frames=8)
    fault.spoil(photos)
    said = refusal("reconstruct", "--load-config", run, "--data", photos, "--output-dir", tmp_path / "out")
    assert all(part in said for part in (str(photos), *fault.named, fault.fix)), said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FAULTS)
def test_ns_train_says_what_is_wrong_with_the_photographs(tmp_path: Path, name: str) -> None:
    fault, photos = FAULTS[name], write_tiny_scene(tmp_path / "photos", num_frames=8)
    fault.spoil(photos)
    with pytest.raises(SceneError) as error:
        tiny_runs.run(tiny_runs.tiny_config(photos, tmp_path / "outputs"))
    said = plain_sentence(error.value)
    named = ("photos",) if fault.whole_folder else (*fault.named, fault.fix)
    assert said is not None and all(part in said for part in (str(photos), *named)), said
    assert "\n" not in said
    assert not list((tmp_path / "outputs").rglob("*.ckpt"))


def test_a_folder_that_is_not_there(refusal: Command, run: Path, tmp_path: Path) -> None:
    said = refusal("reconstruct", "--load-config", run, "--data", tmp_path / "nowhere", "--output-dir", tmp_path / "out")
    assert f"--data {tmp_path / 'nowhere'} does not exist" in said
    with pytest.raises(SceneError, match=f"--data {tmp_path / 'nowhere'} does not exist"):
        tiny_runs.run(tiny_runs.tiny_config(tmp_path / "nowhere", tmp_path / "outputs"))


def test_photographs_without_poses(refusal: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    said = refusal("reconstruct", "--load-config", run, "--data", photos / "images", "--output-dir", tmp_path / "out")
    assert "no scene found" in said and "photographs with poses have transforms.json or colmap/sparse/0" in said


def test_several_scenes_where_one_is_wanted(refusal: Command, run: Path, scenes: Path, tmp_path: Path) -> None:
    said = refusal("reconstruct", "--load-config", run, "--data", scenes, "--output-dir", tmp_path / "out")
    assert f"--data {scenes} holds 4 scenes (" in said and "scene_0" in said and "name one of them" in said
    assert not (tmp_path / "out").exists()


def test_more_context_views_than_photographs(refusal: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    said = refusal("reconstruct", "--load-config", run, "--data", photos, "--output-dir", tmp_path / "out", "--context-views", 8)
    assert f"scene {photos} has 7 images to look at, 8 context views are wanted; give more images or fewer context views" in said


def test_ns_train_wants_more_views_than_there_are_photographs(tmp_path: Path) -> None:
    photos = write_tiny_scene(tmp_path / "photos", num_frames=3)
    config = tiny_runs.tiny_config(photos, tmp_path / "outputs")
    config.pipeline.datamanager.num_context_views = 5
    with pytest.raises(SceneError, match=f"scene {photos} has 3 images to look at, 5 context views are wanted; give more images"):
        tiny_runs.run(config)


# A scene that is removed while training.


def test_a_scene_removed_while_training_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_tiny_scenes(data, 3)
    config = tiny_runs.tiny_config(data, tmp_path / "outputs", steps=8)
    config.pipeline.datamanager.eval_scene_fraction, config.pipeline.datamanager.cache_gigabytes = 0.0, 0.0
    draw = MultiSceneDataManager.next_train_batch

    def remove_and_draw(self: MultiSceneDataManager, step: int) -> Any:
        if step == 2:
            shutil.rmtree(data / "scene_1")
        return draw(self, step)

    monkeypatch.setattr(MultiSceneDataManager, "next_train_batch", remove_and_draw)
    folder = tiny_runs.run(config)
    said = capfd.readouterr().out
    assert said.count("Training passes over a scene") == 1
    assert f"image {data / 'scene_1' / 'images'}/frame_0" in said and "restore the file or remove it from the data" in said
    assert torch.load(folder / "nerfstudio_models" / "step-000000007.ckpt", weights_only=True)["step"] == 7, "it went on to the end"


def test_a_scene_removed_before_evaluation_stops_it(run: Path, scenes: Path, tmp_path: Path) -> None:
    data = shutil.copytree(scenes, tmp_path / "data")
    moved = shutil.copytree(run, tmp_path / "run")
    config = yaml.load((moved / "config.yml").read_text(), Loader=yaml.Loader)
    config.run_folder, config.pipeline.datamanager.data, config.pipeline.datamanager.evaluate = moved, data, "held-out-scenes"
    config.pipeline.datamanager.train_scenes = ("scene_0",)
    config.pipeline.datamanager.scene = None
    (moved / "config.yml").write_text(yaml.dump(config))
    shutil.rmtree(data / "scene_3" / "images")
    with pytest.raises(SceneError, match=r"scene_3/images/frame_0.* does not exist; restore the file or remove it from the data"):
        ComputePSNR(load_config=moved / "config.yml", output_path=tmp_path / "metrics.json").main()
    assert not (tmp_path / "metrics.json").exists()


# A run that cannot be used.


def test_no_run(refusal: Command, photos: Path, tmp_path: Path) -> None:
    commands = (
        ("reconstruct", "--data", photos, "--output-dir", tmp_path / "out"),
        ("export", "--output", tmp_path / "scene.ply"),
        ("export-weights", "--output", tmp_path / "weights.safetensors"),
    )
    for command in commands:
        for place in (tmp_path, tmp_path / "config.yml"):
            assert f"no run at {place}: --load-config takes a run's config.yml or its folder" in refusal(*command, "--load-config", place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("!!python/object:token_methods.gone.Config {}\n", "cannot be read as the configuration of a run (ConstructorError"),
        ("a: [1, 2\n", "cannot be read as the configuration of a run (ParserError"),
        ("a: 1\n", "is no configuration of a run"),
        ("", "is no configuration of a run"),
    ],
)
def test_a_config_that_is_none(refusal: Command, tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.yml").write_text(text)
    said = refusal("export", "--load-config", tmp_path, "--output", tmp_path / "scene.ply")
    assert f"{tmp_path / 'config.yml'} {sentence}" in said and "\n" not in said


def test_a_run_of_another_method(refusal: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(yaml.dump(all_methods["splatfacto"]))
    said = refusal("export", "--load-config", tmp_path, "--output", tmp_path / "scene.ply")
    assert "is a run of splatfacto: --load-config takes a run of a method of nerfstudio-tokens" in said


def test_checkpoints_that_cannot_be_read(refusal: Command, ns_tokens: Command, run: Path, tmp_path: Path) -> None:
    checkpoint = "step-000000003.ckpt"
    whole = (run / "nerfstudio_models" / checkpoint).read_bytes()
    contents = {"torn": whole[: len(whole) // 2], "pickled": pickle.dumps({"step": 3, "pipeline": {}}), "none": None}
    for name, content in contents.items():
        spoiled = shutil.copytree(run, tmp_path / name)
        path = spoiled / "nerfstudio_models" / checkpoint
        path.unlink() if content is None else path.write_bytes(content)
        for command in (("export", "--output", tmp_path / "scene.ply"), ("export-weights", "--output", tmp_path / "w.safetensors")):
            said = refusal(*command, "--load-config", spoiled)
            assert str(spoiled / "nerfstudio_models") in said and "checkpoint" in said and "\n" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(contents)
    torn = tmp_path / "torn" / "nerfstudio_models" / "step-000000009.ckpt"
    shutil.copy(run / "nerfstudio_models" / checkpoint, tmp_path / "torn" / "nerfstudio_models" / checkpoint)
    torn.write_bytes(whole[:100])
    assert torn.name in ns_tokens("export", "--load-config", tmp_path / "torn", "--output", tmp_path / "scene.ply"), "the one before serves"


def test_weights_of_another_architecture_in_a_run(refusal: Command, run: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(run, tmp_path / "run")
    path = spoiled / "nerfstudio_models" / "step-000000003.ckpt"
    state = torch.load(path, weights_only=True)
    state["pipeline"]["_model.network.gs_tokens"] = torch.zeros(8, 24)
    torch.save(state, path)
    said = refusal("export", "--load-config", spoiled, "--output", tmp_path / "scene.ply")
    assert "network.gs_tokens [8, 24] instead of [32, 24]" in said and "Nothing was loaded" in said
