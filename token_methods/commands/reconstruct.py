"""`ns-tokens reconstruct`: a folder of posed photographs in, Gaussians and a fly-through out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

import torch
from nerfstudio.cameras.camera_paths import get_interpolated_camera_path
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.commands.export import scene_gaussians
from token_methods.commands.runs import load_run
from token_methods.commands.video import write_video
from token_methods.multiscene.camera_views import views_from_cameras
from token_methods.multiscene.pipeline import FeedForwardPipeline
from token_methods.multiscene.run_options import RunOptions
from token_methods.rendering.splat_files import write_splats


@dataclass
class Reconstruct:
    """Turn a folder of posed photographs into a .ply of 3D Gaussians and a fly-through video."""

    load_config: Path
    """A trained or imported run: its config.yml, or its folder."""
    data: Path
    """The photographs with poses: one scene, in any form that the run's dataparser reads."""
    output_dir: Path
    """Folder for scene.ply and fly_through.mp4."""
    context_views: Optional[int] = None
    """Photographs that the network looks at, spread over the scene; by default as trained."""
    tuning_steps: int = 0
    """Test-time tuning steps on those photographs: slower and sharper. 0 is one forward pass."""
    frame: Literal["world", "dataset"] = "world"
    """Frame of the .ply: that of the original poses, or nerfstudio's."""
    seconds: float = 4.0
    """Length of the video."""
    frames_per_second: int = 24
    """Frame rate of the video."""

    def main(self) -> None:
        options = RunOptions(scene=str(self.data.resolve()), context_views=self.context_views, tuning_steps=self.tuning_steps)
        _, pipeline = load_run(self.load_config, options)
        started = time.perf_counter()
        pipeline.refresh_scene()
        elapsed = time.perf_counter() - started
        gaussians = scene_gaussians(pipeline, self.frame)
        count = write_splats(gaussians, self.output_dir / "scene.ply")
        frames = max(2, round(self.seconds * self.frames_per_second))
        write_video(fly_through(pipeline, frames), self.output_dir / "fly_through.mp4", self.frames_per_second, total=frames)
        CONSOLE.print(f"{count} Gaussians in {elapsed:.2f} s: {self.output_dir / 'scene.ply'}, {self.output_dir / 'fly_through.mp4'}")


def fly_through(pipeline: FeedForwardPipeline, frames: int):  # noqa: ANN201 - a generator of [height, width, 3] images
    """Pictures along a smooth path through the context cameras of the scene in hand."""
    cameras: Cameras = pipeline.datamanager.train_dataset.cameras
    steps = max(2, frames // max(1, len(cameras) - 1) + 1)
    path = get_interpolated_camera_path(cameras, steps=steps, order_poses=False)
    chosen = torch.linspace(0, len(path) - 1, frames).round().long()
    scene = pipeline.model.scene
    assert scene is not None
    for index in chosen.tolist():
        views = views_from_cameras(path[index : index + 1]).to(pipeline.device)
        yield pipeline.model.render_scene(scene, views).images[0, 0].permute(1, 2, 0).clamp(0, 1)
