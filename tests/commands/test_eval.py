"""`ns-eval` on a run: what is measured, and on which scenes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from nerfstudio.scripts.eval import ComputePSNR

from token_methods.commands.runs import load_run
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.run_options import RunOptions


def evaluated(run: Path, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """What `ns-eval` writes: the summary of its JSON file, and the report per scene beside the images."""
    ComputePSNR(load_config=run / "config.yml", output_path=folder / "metrics.json", render_output_path=folder / "images").main()
    return json.loads((folder / "metrics.json").read_text())["results"], json.loads((folder / "images" / "per_scene.json").read_text())


def test_metrics_beside_baselines_and_images(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results, report = evaluated(run, tmp_path)
    for metric in ("psnr", "ssim"):
        for prefix in ("", "nearest_context_", "mean_colour_"):
            assert math.isfinite(results[prefix + metric]) and math.isfinite(results[f"{prefix}{metric}_std"])
    assert results["num_scenes"] == 1 and results["fps"] > 0 and results["seconds_to_reconstruct"] > 0
    (scene,) = report["scenes"]
    _, pipeline = load_run(run, RunOptions())
    assert scene["scene"] == pipeline.datamanager.split.evaluation[0] and scene["psnr"] == pytest.approx(results["psnr"])
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    assert "lpips" not in results and "LPIPS is not measured" in capfd.readouterr().out, "no weights here: said, not invented"


def test_a_named_scene_is_measured_alone(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = load_run(run, RunOptions())[1].datamanager.split.evaluation[0]
    for name in ("scene_0", "scene_1", str(photos)):
        monkeypatch.setenv("NERFSTUDIO_TOKENS", f"--scene {name}")
        _, report = evaluated(run, tmp_path / Path(name).name)
        assert [scene["scene"] for scene in report["scenes"]] == [Path(name).name], f"only {held_out} is held out"


def test_other_data(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", f"--data {photos}")
    results, report = evaluated(run, tmp_path)
    assert results["num_scenes"] == 1 and report["scenes"][0]["scene"] == "photos"


def test_an_index_chooses_the_frames(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = load_run(run, RunOptions())[1].datamanager.split.evaluation[0]
    index = tmp_path / "index.json"
    index.write_text(json.dumps({held_out: {"context": [0, 8], "target": [2, 5, 7]}}))
    monkeypatch.setenv("NERFSTUDIO_TOKENS", f"--evaluation-index {index}")
    _, report = evaluated(run, tmp_path)
    (window,) = report["scenes"][0]["windows"]
    assert window["context_frames"] == [0, 8] and window["target_frames"] == [2, 5, 7]


def test_tuning_is_part_of_what_is_measured(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {}
    for steps in (0, 20):
        monkeypatch.setenv("NERFSTUDIO_TOKENS", f"--data {photos} --tuning-steps {steps} --tuning-learning-rate 0.05")
        results, _ = evaluated(run, tmp_path / str(steps))
        seconds[steps] = results["seconds_to_reconstruct"], results["psnr"]
    assert seconds[20][0] > 3 * seconds[0][0] and seconds[20][1] != seconds[0][1]


def test_nothing_to_measure_is_one_sentence(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", "--evaluate held-out-frames")
    with pytest.raises(SceneError, match=r"there are no held-out-frames to evaluate: set .*--held-out-frame-interval"):
        evaluated(run, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
