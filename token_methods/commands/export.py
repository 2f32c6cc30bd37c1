"""`ns-tokens export`: the Gaussians of a scene as a file, in the dataset's frame or in that of its original files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.commands.runs import load_run
from token_methods.multiscene.model import GaussianSceneModel
from token_methods.multiscene.pipeline import FeedForwardPipeline
from token_methods.multiscene.run_options import RunOptions
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.splat_files import check_splat_name, write_splats

Frame = Literal["world", "dataset"]


@dataclass
class Export:
    """Write the Gaussians of one scene to a splat file."""

    load_config: Path
    """A run's config.yml, or its folder."""
    output: Path
    """File to write: .ply, .spz or .splat."""
    scene: str | None = None
    """A scene of the run's data by its name or number, or the folder of any other scene; by default the first held-out one."""
    data: Path | None = None
    """A scene or a folder of scenes to look at in the place of the run's own data."""
    frame: Frame = "world"
    """world: the frame of the original poses. dataset: nerfstudio's, oriented, centred and scaled by the dataparser."""
    tuning_steps: int | None = None
    """Test-time tuning steps on the context views; by default as the run says, which is 0: what the forward pass gives."""

    def main(self) -> None:
        check_splat_name(self.output)
        _, pipeline = load_run(self.load_config, RunOptions(scene=self.scene, data=self.data, tuning_steps=self.tuning_steps))
        count = write_splats(scene_gaussians(pipeline, self.frame), self.output)
        scene = pipeline.datamanager.current.name
        CONSOLE.print(f"{count} Gaussians of {scene} in the {self.frame} frame: {self.output}", soft_wrap=True)


def scene_gaussians(pipeline: FeedForwardPipeline, frame: Frame) -> Gaussians3D:
    """The Gaussians of the scene in hand, a batch of one.

    Raises:
        ValueError: the method's representation is not Gaussians.
    """
    model = pipeline.model
    if not isinstance(model, GaussianSceneModel):
        raise ValueError(f"{type(model).__name__} has no Gaussians to export")
    gaussians = model.dataset_gaussians()
    if frame == "dataset":
        return gaussians
    to_world = pipeline.datamanager.scene_frame().inverse().to(gaussians.device)
    return gaussians.map(lambda value: value.double()).transformed(to_world).map(lambda value: value.float())
