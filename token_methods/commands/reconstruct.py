"""`ns-tokens reconstruct`: a folder of posed photographs in, Gaussians and a fly-through out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.commands.export import scene_gaussians
from token_methods.commands.runs import load_weights, open_run
from token_methods.multiscene.run_options import RunOptions
from token_methods.rendering.splat_files import write_splats


@dataclass
class Reconstruct:
    """Turn a folder of posed photographs into a .ply of 3D Gaussians and a fly-through video."""

    load_config: Path
    """A trained or imported run: its config.yml, or its folder."""
    data: Path
    """The photographs with poses: one scene, as the run's dataparser, nerfstudio-data, colmap or blender-data know it."""
    output_dir: Path
    """Folder for scene.ply and fly_through.mp4."""
    dataparser: str | None = None
    """What reads the photographs, as ns-train names it; by default what fits the files that are there."""
    context_views: int | None = None
    """Photographs that the network looks at, spread over the scene; by default as trained."""
    tuning_steps: int | None = None
    """Test-time tuning steps on those photographs: slower and sharper. By default as the run says, which is 0: one forward pass."""
    frame: Literal["world", "dataset"] = "world"
    """Frame of the .ply: that of the original poses, or nerfstudio's."""
    seconds: float = 4.0
    """Length of the video."""
    frames_per_second: int = 24
    """Frame rate of the video."""
    video_size: int = 640
    """Longer side of the video in pixels; at most that of the photographs."""

    def main(self) -> None:
        from token_methods.commands.fly_through import fly_through
        from token_methods.commands.video import write_video

        for name, least in (("seconds", 0.1), ("frames_per_second", 1), ("video_size", 16)):
            if not getattr(self, name) >= least:
                raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, not {getattr(self, name)}")
        options = RunOptions(data=self.data, dataparser=self.dataparser, context_views=self.context_views, tuning_steps=self.tuning_steps)
        config, pipeline = open_run(self.load_config, options)
        names = pipeline.datamanager.scene_names
        if len(names) > 1:
            raise ValueError(
                f"--data {self.data} holds {len(names)} scenes ({', '.join(names[:8])}{', ...' * (len(names) > 8)}): name one of them"
            )
        splats, video = self.output_dir / "scene.ply", self.output_dir / "fly_through.mp4"
        check_folder(self.output_dir)
        load_weights(config, pipeline)
        count = write_splats(scene_gaussians(pipeline, self.frame), splats)
        frames = max(2, round(self.seconds * self.frames_per_second))
        write_video(fly_through(pipeline, frames, self.video_size), video, self.frames_per_second, total=frames)
        looked_at = ", ".join(path.name for path in pipeline.datamanager.train_dataset.image_filenames)
        CONSOLE.print(f"{count} Gaussians from {looked_at} in {pipeline.seconds_to_reconstruct:.2f} s: {splats}, {video}", soft_wrap=True)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, before the work is done.

    Raises:
        OSError: it is a file or lies below one, or may not be written.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "may not be written" if existing.is_dir() else "is no folder"
        raise OSError(f"--output-dir {folder} cannot be made: {existing} {reason}; name another folder")
