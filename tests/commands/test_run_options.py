"""NERFSTUDIO_TOKENS: what every ns-* command can be told about the scene."""

from __future__ import annotations

from pathlib import Path

import pytest
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.utils.eval_utils import eval_setup

from dataparsers.procedural.parser import ProceduralDataParserConfig
from tests import tiny_runs
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.plain_errors import SettingsError
from token_methods.multiscene.run_options import RunOptions, given, run_options
from token_methods.multiscene.scene_discovery import dataparser_that_reads


def said(text: str, monkeypatch: pytest.MonkeyPatch) -> RunOptions:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", text)
    return run_options()


def refused(text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    with pytest.raises(SystemExit) as ended:
        said(text, monkeypatch)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def test_nothing_said() -> None:
    assert run_options() == RunOptions()


def test_everything_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "with space").mkdir()
    options = said(
        f"--scene family --data '{tmp_path}/with space' --dataparser colmap --evaluation-index {tmp_path} --evaluate held-out-frames "
        f"--context-views 3 --tuning-steps 50 --tuning-learning-rate 1e-3 --lpips-weights {tmp_path}",
        monkeypatch,
    )
    assert options == RunOptions("family", tmp_path / "with space", "colmap", tmp_path, "held-out-frames", 3, 50, 1e-3, tmp_path)


def test_help_reads_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        said("--help", monkeypatch)
    assert not ended.value.code
    text = capsys.readouterr().out
    assert 'NERFSTUDIO_TOKENS="--scene family --tuning-steps 50" ns-render interpolate --load-config RUN/config.yml' in text
    for option in ("scene", "data", "dataparser", "evaluation-index", "evaluate", "context-views", "tuning-steps", "lpips-weights"):
        assert f"--{option} " in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("--scen family", "unrecognized arguments: --scen family"),
        ("family", "unrecognized arguments: family"),
        ("--scene", "argument --scene: expected one argument"),
        ("--scene 'family", "No closing quotation"),
        ("--tuning-steps many", "argument --tuning-steps: invalid int value: 'many'"),
        ("--tuning-steps -1", "--tuning-steps must be 0 or more, not -1"),
        ("--context-views 0", "--context-views must be 1 or more, not 0"),
        ("--tuning-learning-rate 0", "--tuning-learning-rate must be above 0"),
        ("--tuning-learning-rate nan", "--tuning-learning-rate must be above 0"),
        ("--evaluate everything", "argument --evaluate: invalid choice: 'everything'"),
        ("--data nowhere", "--data nowhere does not exist"),
        ("--evaluation-index nowhere.json", "--evaluation-index nowhere.json does not exist"),
        ("--lpips-weights nowhere", "--lpips-weights nowhere does not exist"),
        ("--dataparser colmap", "--dataparser says what reads --data: name both"),
    ],
)
def test_wrong_values_end_in_one_sentence(text: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(text, monkeypatch)
    assert message.startswith(f'NERFSTUDIO_TOKENS="{text}": {sentence}') and "\n" not in message
    assert message.endswith("NERFSTUDIO_TOKENS=--help lists what can be said.")


def test_a_wrong_value_ends_the_command(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", "--tuning-steps many")
    with pytest.raises(SystemExit, match="invalid int value"):
        eval_setup(run / "config.yml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("--scene nobody", "there is no scene 'nobody' in the data, and no such folder; there are scene_"),
        ("--scene 99", "there is no scene number 99: the data hold 4 scenes, counted from 0"),
        ("--scene .", "no scene found in ."),
        ("--context-views 99", "has 9 images to look at, 99 context views are wanted; give more images or fewer context views"),
    ],
)
def test_scenes_that_are_not_there(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NERFSTUDIO_TOKENS", text)
    with pytest.raises(SceneError) as error:
        eval_setup(run / "config.yml")
    assert sentence in str(error.value)


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", "--scene family --tuning-steps 50")
    with given(RunOptions(tuning_steps=0, context_views=3)):
        assert run_options() == RunOptions(scene="family", tuning_steps=0, context_views=3)
    assert run_options() == RunOptions(scene="family", tuning_steps=50)


def test_other_data_leave_nothing_of_the_runs_own(scenes: Path, photos: Path, tmp_path: Path) -> None:
    config = tiny_runs.tiny_config(scenes, tmp_path)
    data = config.pipeline.datamanager
    data.scene, data.eval_scenes, data.evaluate, data.evaluation_index = "scene_0", ("scene_1",), "held-out-frames", tmp_path / "index.json"
    RunOptions(data=photos).apply(config.pipeline)
    manager = data.setup(device="cpu", test_mode="test")
    assert manager.scene_names == ["photos"] and len(manager.evaluation_windows()) == 1


# Which dataparser reads other data.


def test_a_dataparser_by_name(scenes: Path, photos: Path, tmp_path: Path) -> None:
    config = tiny_runs.tiny_config(scenes, tmp_path)
    config.pipeline.datamanager.dataparser.scale_factor = 3.0
    RunOptions(data=photos, dataparser="nerfstudio-data").apply(config.pipeline)
    assert config.pipeline.datamanager.dataparser.scale_factor == 3.0, "the run's own settings stay"
    RunOptions(data=photos, dataparser="colmap").apply(config.pipeline)
    assert isinstance(config.pipeline.datamanager.dataparser, ColmapDataParserConfig)
    with pytest.raises(SettingsError, match=r"--dataparser polaroid is not one of .*colmap.*nerfstudio-data"):
        RunOptions(data=photos, dataparser="polaroid").apply(config.pipeline)


def test_a_dataparser_that_makes_scenes_makes_none_among_photographs(photos: Path, tmp_path: Path) -> None:
    procedural = ProceduralDataParserConfig(num_scenes=1)
    assert type(dataparser_that_reads(photos, procedural)).__name__ == "NerfstudioDataParserConfig"
    (tmp_path / "photos").mkdir()
    with pytest.raises(SceneError, match=r"no scene found in .*: photographs with poses have transforms.json or") as error:
        dataparser_that_reads(tmp_path / "photos", procedural)
    assert "check --data" in str(error.value) and not list((tmp_path / "photos").iterdir())


def test_the_runs_own_dataparser_comes_first(tmp_path: Path) -> None:
    procedural = ProceduralDataParserConfig(
        data=tmp_path, num_scenes=1, image_height=8, image_width=8, frames_per_scene=2, samples_per_pixel=1
    )
    procedural.setup().get_dataparser_outputs("train")
    (scene,) = procedural.scene_folders()
    assert dataparser_that_reads(scene, procedural) is procedural
