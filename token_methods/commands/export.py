"""`ns-tokens export`: the Gaussians of a scene as a file, in the dataset's frame or in that of its original files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.commands.runs import load_run
from token_methods.core.cameras import Similarity
from token_methods.multiscene.model import GaussianSceneModel
from token_methods.multiscene.pipeline import FeedForwardPipeline
from token_methods.multiscene.run_options import RunOptions
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.splat_files import write_splats


@dataclass
class Export:
    """Write the Gaussians of one scene to a splat file."""

    load_config: Path
    """A run's config.yml, or its folder."""
    output: Path
    """File to write: .ply or .spz."""
    scene: Optional[str] = None
    """Name or number of a scene of the run, or a folder that its dataparser reads; by default the run's first scene."""
    frame: Literal["world", "dataset"] = "world"
    """world: the frame of the original poses. dataset: nerfstudio's, oriented, centred and scaled by the dataparser."""
    tuning_steps: int = 0
    """Test-time tuning steps on the context views; 0 writes what the forward pass gives."""

    def main(self) -> None:
        _, pipeline = load_run(self.load_config, RunOptions(scene=self.scene, tuning_steps=self.tuning_steps))
        gaussians = scene_gaussians(pipeline, self.frame)
        count = write_splats(gaussians, self.output)
        CONSOLE.print(f"{count} Gaussians in the {self.frame} frame: {self.output}")


def scene_gaussians(pipeline: FeedForwardPipeline, frame: Literal["world", "dataset"]) -> Gaussians3D:
    """The Gaussians of the scene in hand.

    Raises:
        ValueError: the method's representation is not Gaussians.
    """
    model = pipeline.model
    if not isinstance(model, GaussianSceneModel):
        raise ValueError(f"{type(model).__name__} has no Gaussians to export")
    gaussians = model.dataset_gaussians()
    if frame == "dataset":
        return gaussians
    to_world: Similarity = pipeline.datamanager.scene_frame().inverse()
    return gaussians.map(lambda value: value.double()).transformed(to_world.to(gaussians.device)).map(lambda value: value.float())
