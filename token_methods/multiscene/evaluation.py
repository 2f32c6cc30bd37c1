"""Evaluation over scenes: metrics per view, per scene and on average, beside two baselines that need no network."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from token_methods.core.metrics import psnr, structural_similarity
from token_methods.core.views import SceneBatch, Views
from token_methods.multiscene.model import FeedForwardModel
from token_methods.multiscene.panels import save_image, scene_panels
from token_methods.multiscene.processes import process_rank

Lpips = Callable[[Tensor, Tensor], Tensor]


def view_metrics(
    predicted: Float[Tensor, "views 3 height width"], target: Float[Tensor, "views 3 height width"], lpips: Lpips | None = None
) -> dict[str, Float[Tensor, " views"]]:
    """PSNR, SSIM and (when its weights are there) LPIPS of each view; both images are clipped to [0, 1]."""
    predicted, target = predicted.clamp(0, 1), target.clamp(0, 1)
    metrics = {"psnr": psnr(predicted, target), "ssim": structural_similarity(predicted, target)}
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
    windows: Sequence[Any],
    load: Callable[[Any], SceneBatch],
    lpips: Lpips | None = None,
    output_path: Path | None = None,
    with_std: bool = False,
    tuning_steps: int | None = None,
) -> dict[str, float]:
    """Reconstruct each window's scene from its context and compare its targets.

    Views are averaged per scene, then scenes are averaged. With `output_path` a report (`per_scene.json`) and images are
    written there. With several processes each takes its share and all receive the mean over every scene.

    Returns:
        Scalars by name: psnr, ssim, lpips (when measured), the baselines' under `nearest_context_` and `mean_colour_`,
        seconds of reconstruction, frames per second of rendering, and the number of scenes.
    """
    rank, world = process_rank()
    reports: list[dict[str, Any]] = []
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=rank != 0) as progress:
        task = progress.add_task("Evaluating scenes", total=len(windows[rank::world]))
        for window in windows[rank::world]:
            reports.append(_evaluate_scene(model, load(window), lpips, output_path, tuning_steps))
            progress.advance(task)
    if world > 1:
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, reports)
        reports = [report for part in gathered for report in part]
    summary = _summarise(reports, with_std)
    if output_path is not None and rank == 0:
        write_json(output_path / "per_scene.json", {"mean": summary, "scenes": reports})
    return summary


def _evaluate_scene(
    model: FeedForwardModel, batch: SceneBatch, lpips: Lpips | None, output_path: Path | None, tuning_steps: int | None
) -> dict[str, Any]:
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
    report: dict[str, Any] = {"scene": batch.names[0], "num_context": batch.context.num_views, "num_targets": batch.target.num_views}
    with torch.no_grad():
        for prefix, images in predictions.items():
            for name, values in view_metrics(images, target, lpips).items():
                report[prefix + name] = float(values.double().mean())
                if not prefix:
                    report[f"{name}_per_view"] = [float(value) for value in values]
    report["seconds_to_reconstruct"] = reconstructed - start
    report["fps"] = batch.target.num_views / max(finished - reconstructed, 1e-9)
    if output_path is not None:
        for name, image in scene_panels(batch, rendered).items():
            save_image(image, output_path / f"{_file_name(batch.names[0])}_{name}.png")
    return report


def _summarise(reports: list[dict[str, Any]], with_std: bool) -> dict[str, float]:
    scalars = [name for name, value in reports[0].items() if isinstance(value, float)]
    summary: dict[str, float] = {}
    for name in scalars:
        values = torch.tensor([report[name] for report in reports], dtype=torch.float64)
        summary[name] = float(values.mean())
        if with_std:
            summary[f"{name}_std"] = float(values.std(unbiased=False))
    summary["num_scenes"] = float(len(reports))
    return summary


def _synchronise(views: Views) -> None:
    if views.device.type == "cuda":
        torch.cuda.synchronize(views.device)


def _file_name(scene: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in scene)


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    os.replace(temporary, path)
