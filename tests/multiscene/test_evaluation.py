"""Evaluation: per scene first, beside baselines, in numbers that strict JSON can hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_runs import tiny_config
from tests.tiny_scenes import write_tiny_scenes
from token_methods.core.views import SceneBatch, Views
from token_methods.multiscene.evaluation import (
    HIGHEST_PSNR,
    evaluate,
    mean_colour_baseline,
    nearest_context_baseline,
    scene_reports,
    summarise,
    view_metrics,
    write_json,
)
from token_methods.multiscene.pipeline import FeedForwardPipeline


def report(scene: str, psnr: list[float], seconds: float = 1.0) -> dict[str, Any]:
    return {
        "window": f"{scene}_{len(psnr)}",
        "scene": scene,
        "target_frames": list(range(len(psnr))),
        "seconds_to_reconstruct": seconds,
        "seconds_to_render": 0.5,
        "psnr": psnr,
        "nearest_context_psnr": psnr,
    }


def test_a_scene_of_many_windows_counts_once() -> None:
    """Scene a: views of 10, 20 and 30 dB in two windows; scene b: one view of 40 dB. Mean 30, not that of views or windows."""
    scenes = scene_reports([report("a", [10.0, 20.0], 1.0), report("b", [40.0], 5.0), report("a", [30.0], 3.0)])
    found = [(scene["scene"], scene["psnr"], scene["num_windows"], scene["num_targets"]) for scene in scenes]
    assert found == [("a", 20, 2, 3), ("b", 40, 1, 1)]
    summary = summarise(scenes, with_std=True)
    assert summary["psnr"] == summary["nearest_context_psnr"] == 30.0
    assert summary["psnr_std"] == 10.0
    assert summary["seconds_to_reconstruct"] == 3.5
    assert scenes[0]["fps"] == 3.0, "three views in twice half a second"
    assert summary["num_scenes"] == 2


def test_one_scene_has_no_deviation() -> None:
    assert summarise(scene_reports([report("a", [10.0])]), with_std=True)["psnr_std"] == 0.0
    assert "psnr_std" not in summarise(scene_reports([report("a", [10.0])]), with_std=False)


def views_at(positions: list[float], images: torch.Tensor | None = None) -> Views:
    poses = torch.eye(4).repeat(1, len(positions), 1, 1)
    poses[0, :, 0, 3] = torch.tensor(positions)
    return Views(16, 16, images, poses, torch.tensor([16.0, 16, 8, 8]).expand(1, len(positions), 4))


def test_baselines_copy_the_nearest_view_and_the_mean_colour() -> None:
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    batch = SceneBatch(views_at([0.0, 1.0, 5.0], colours[None, :, :, None, None].expand(1, 3, 3, 16, 16)), views_at([4.0, 0.9]), ("scene",))
    nearest = nearest_context_baseline(batch)
    assert torch.equal(nearest[:, :, 0, 0], colours[[2, 1]])
    mean = mean_colour_baseline(batch)
    torch.testing.assert_close(mean, torch.full((2, 3, 16, 16), 1 / 3))


def test_metrics_are_finite_whatever_was_rendered(tmp_path: Path) -> None:
    target = torch.rand(3, 3, 16, 16)
    predicted = target.clone()
    predicted[1] = float("nan")
    predicted[2] = float("inf")
    metrics = view_metrics(predicted, target)
    assert metrics["psnr"][0] == HIGHEST_PSNR
    assert all(values.isfinite().all() for values in metrics.values())
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "report.json", {"psnr": float("nan")})
    assert not (tmp_path / "report.json").exists()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FeedForwardPipeline:
    """Two training scenes with held-out frames to look at."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tiny_scenes(folder, 2, num_frames=9, with_points=True)
    config = tiny_config(folder, folder.parent)
    manager = config.pipeline.datamanager
    manager.data, manager.eval_scene_fraction, manager.held_out_frame_interval = folder, 0.0, 3
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    pipeline.eval()
    return pipeline


def test_a_report_lists_scenes_windows_and_pictures(pipeline: FeedForwardPipeline, tmp_path: Path) -> None:
    data = pipeline.datamanager
    windows = data.evaluation_windows()
    assert len(windows) == 6
    summary = evaluate(pipeline.model, windows, data.load_window, output_path=tmp_path, with_std=True)
    assert summary["num_scenes"] == 2
    written = json.loads((tmp_path / "per_scene.json").read_text(), parse_constant=pytest.fail)
    assert written["mean"] == summary
    assert sorted((scene["scene"], scene["num_windows"], scene["num_targets"]) for scene in written["scenes"]) == [
        ("scene_0", 3, 3),
        ("scene_1", 3, 3),
    ]
    for scene in written["scenes"]:
        views = [value for window in scene["windows"] for value in window["psnr"]]
        assert scene["psnr"] == pytest.approx(sum(views) / 3)
    assert summary["psnr"] == pytest.approx(sum(scene["psnr"] for scene in written["scenes"]) / 2)
    frames = {(window["scene"], *window["target_frames"]) for scene in written["scenes"] for window in scene["windows"]}
    assert frames == {(window.scene, *window.target) for window in windows}
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {f"{window.name}_{name}.png" for window in windows for name in ("context", "comparison")}


def test_evaluation_measures_what_the_model_renders(pipeline: FeedForwardPipeline) -> None:
    """The figure equals that of a rendering made by hand from the same window."""
    data = pipeline.datamanager
    window = data.evaluation_windows()[0]
    batch = data.load_window(window)
    rendered = pipeline.model.render_scene(pipeline.model.reconstruct(batch), batch.target).images[0].clamp(0, 1)
    expected = -10 * (rendered - batch.target.images[0]).square().mean().log10()
    assert evaluate(pipeline.model, [window], data.load_window)["psnr"] == pytest.approx(expected.item(), abs=1e-4)


def test_lpips_is_a_metric_like_the_others(pipeline: FeedForwardPipeline) -> None:
    data = pipeline.datamanager
    summary = evaluate(
        pipeline.model, data.evaluation_windows()[:1], data.load_window, lpips=lambda one, other: (one - other).abs().mean((1, 2, 3))
    )
    assert 0 < summary["lpips"] < 1
    assert {"nearest_context_lpips", "mean_colour_lpips"} <= summary.keys()


def test_tuning_on_the_context_is_what_was_asked_for(pipeline: FeedForwardPipeline) -> None:
    """Steps given here come before the configured ones, which during training must not be taken."""
    data, windows = pipeline.datamanager, pipeline.datamanager.evaluation_windows()[:1]
    config = pipeline.model.config
    pipeline.model.config = dataclasses.replace(config, tuning_steps=3)
    try:
        plain = evaluate(pipeline.model, windows, data.load_window, tuning_steps=0)["psnr"]
        tuned = evaluate(pipeline.model, windows, data.load_window)["psnr"]
    finally:
        pipeline.model.config = config
    assert plain == evaluate(pipeline.model, windows, data.load_window)["psnr"]
    assert plain != tuned
