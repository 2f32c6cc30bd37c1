"""Evaluation over scenes: metrics per view, per scene and on average, beside two baselines that need no network."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from token_methods.core.metrics import psnr, structural_similarity
from token_methods.core.views import SceneBatch, Views
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.model import FeedForwardModel
from token_methods.multiscene.panels import save_image, scene_panels
from token_methods.multiscene.processes import process_rank
from token_methods.multiscene.windows import EvaluationWindow

Lpips = Callable[[Tensor, Tensor], Tensor]
WindowReport = dict[str, Any]
"""Figures of one window: a list with one entry per target for each metric, and what else was noted."""
MEASURES = ("psnr", "ssim", "lpips")
HIGHEST_PSNR = 100.0
"""Given where two images are equal, so that means are finite and JSON can hold them."""


def view_metrics(
    predicted: Float[Tensor, "views 3 height width"], target: Float[Tensor, "views 3 height width"], lpips: Lpips | None = None
) -> dict[str, Float[Tensor, " views"]]:
    """PSNR, SSIM and (when its weights are there) LPIPS of each view; both images are clipped to [0, 1].

    All are finite: a pixel that is not a number counts as black, and PSNR ends at `HIGHEST_PSNR`.
    """
    predicted, target = predicted.nan_to_num(0.0).clamp(0, 1), target.clamp(0, 1)
    metrics = {"psnr": psnr(predicted, target).clamp(max=HIGHEST_PSNR), "ssim": structural_similarity(predicted, target)}
    if lpips is not None:
        metrics["lpips"] = lpips(predicted, target)
    return metrics


def nearest_context_baseline(batch: SceneBatch) -> Float[Tensor, "views 3 height width"]:
    """For each target of a single scene, the context image whose camera stands nearest: what copying achieves."""
    context, target = batch.context, batch.target
    if context.camera_to_world is None or target.camera_to_world is None or context.images is None:
        raise ValueError("the nearest-context-view baseline needs cameras and images")
    distance = torch.cdist(target.camera_to_world[0, :, :3, 3], context.camera_to_world[0, :, :3, 3])
    return context.images[0, distance.argmin(dim=1)]


def mean_colour_baseline(batch: SceneBatch) -> Float[Tensor, "views 3 height width"]:
    """The mean colour of the context images everywhere: what knowing nothing but the palette achieves."""
    assert batch.context.images is not None
    colour = batch.context.images[0].mean(dim=(0, 2, 3))
    return colour[None, :, None, None].expand(batch.target.num_views, 3, batch.target.height, batch.target.width)


def evaluate(
    model: FeedForwardModel,
    windows: Sequence[EvaluationWindow],
    load: Callable[[EvaluationWindow], SceneBatch],
    lpips: Lpips | None = None,
    output_path: Path | None = None,
    with_std: bool = False,
    tuning_steps: int | None = None,
) -> dict[str, float]:
    """Reconstruct each window's scene from its context and compare its targets.

    Views are averaged per scene (over all its windows), then scenes are averaged. With `output_path` a report
    (`per_scene.json`) and one pair of pictures per window are written there. With several processes each takes its share of
    the windows, and all return the mean over every scene.

    Returns:
        Scalars by name: psnr, ssim, lpips (when measured), the baselines' under `nearest_context_` and `mean_colour_`,
        seconds of reconstruction, frames per second of rendering, and the number of scenes; `NAME_std` is the deviation over scenes.

    Raises:
        SceneError: a window cannot be loaded; in every process, whichever met it.
    """
    rank, processes = process_rank()
    share = range(rank, len(windows), processes)
    reports: dict[int, WindowReport] = {}
    problem: SceneError | None = None
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE, transient=True, disable=rank != 0) as progress:
        task = progress.add_task("Evaluating", total=len(share))
        for number in share:
            try:
                batch = load(windows[number])
            except SceneError as error:
                problem = error
                break
            if not reports:
                _warm_up(model, batch)
            reports[number] = _evaluate_window(model, windows[number], batch, lpips, output_path, tuning_steps)
            progress.advance(task)
    if processes > 1:
        gathered: list[Any] = [None] * processes
        dist.all_gather_object(gathered, (reports, problem))
        reports = {number: report for part, _ in gathered for number, report in part.items()}
        problem = next((error for _, error in gathered if error is not None), None)
    if problem is not None:
        raise problem
    scenes = scene_reports([reports[number] for number in sorted(reports)])
    summary = summarise(scenes, with_std)
    if output_path is not None and rank == 0:
        write_json(output_path / "per_scene.json", {"mean": summary, "scenes": scenes})
    return summary


def _warm_up(model: FeedForwardModel, batch: SceneBatch) -> None:
    """The first use of a device compiles and tunes kernels: that is not what the times are to tell."""
    if batch.target.device.type == "cuda":
        model.render_scene(model.reconstruct(batch, tuning_steps=0), batch.target)


def _evaluate_window(
    model: FeedForwardModel,
    window: EvaluationWindow,
    batch: SceneBatch,
    lpips: Lpips | None,
    output_path: Path | None,
    tuning_steps: int | None,
) -> WindowReport:
    assert batch.target.images is not None
    _synchronise(batch.target)
    start = time.perf_counter()
    scene = model.reconstruct(batch, tuning_steps=tuning_steps)
    _synchronise(batch.target)
    reconstructed = time.perf_counter()
    rendered = model.render_scene(scene, batch.target)
    _synchronise(batch.target)
    finished = time.perf_counter()
    target = batch.target.images[0]
    predictions = {
        "": rendered.images[0],
        "nearest_context_": nearest_context_baseline(batch),
        "mean_colour_": mean_colour_baseline(batch),
    }
    report: WindowReport = {
        "window": window.name,
        "scene": window.scene,
        "context_frames": list(window.context),
        "target_frames": list(window.target),
        "seconds_to_reconstruct": reconstructed - start,
        "seconds_to_render": finished - reconstructed,
    }
    with torch.no_grad():
        for prefix, images in predictions.items():
            for name, values in view_metrics(images, target, lpips).items():
                report[prefix + name] = [float(value) for value in values]
    if output_path is not None:
        for name, image in scene_panels(batch, rendered).items():
            save_image(image, output_path / f"{_file_name(window.name)}_{name}.png")
    return report


def scene_reports(windows: Sequence[WindowReport]) -> list[dict[str, Any]]:
    """One report per scene: the mean of each metric over all the views that its windows render, and the windows themselves."""
    scenes: dict[str, list[WindowReport]] = {}
    for window in windows:
        scenes.setdefault(window["scene"], []).append(window)
    reports = []
    for name, group in scenes.items():
        views = sum(len(window["target_frames"]) for window in group)
        report: dict[str, Any] = {"scene": name, "num_windows": len(group), "num_targets": views}
        for metric in (key for key in group[0] if key.endswith(MEASURES)):
            report[metric] = _mean([value for window in group for value in window[metric]])
        report["seconds_to_reconstruct"] = _mean([window["seconds_to_reconstruct"] for window in group])
        report["fps"] = views / max(sum(window["seconds_to_render"] for window in group), 1e-9)
        reports.append({**report, "windows": group})
    return reports


def summarise(scenes: Sequence[dict[str, Any]], with_std: bool) -> dict[str, float]:
    """Mean over scenes of everything measured in all of them, and on demand the standard deviation over scenes (0 for one)."""
    summary: dict[str, float] = {}
    for name in [key for key, value in scenes[0].items() if isinstance(value, float)]:
        values = [scene[name] for scene in scenes]
        summary[name] = _mean(values)
        if with_std:
            summary[f"{name}_std"] = math.sqrt(_mean([(value - summary[name]) ** 2 for value in values]))
    summary["num_scenes"] = float(len(scenes))
    return summary


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _synchronise(views: Views) -> None:
    if views.device.type == "cuda":
        torch.cuda.synchronize(views.device)


def _file_name(scene: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in scene)


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")
    os.replace(temporary, path)
