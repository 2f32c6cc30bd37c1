"""`ns-tokens export`: the Gaussians of a scene as a file of splats, or the tokens of a picture as a drawing."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.commands.runs import load_run
from token_methods.multiscene.model import GaussianSceneModel
from token_methods.multiscene.pipeline import FeedForwardPipeline
from token_methods.multiscene.run_options import RunOptions
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.splat_files import check_splat_name, write_splats

if TYPE_CHECKING:
    from token_methods.gaussiantoken.picture_model import PictureModel

Frame = Literal["world", "dataset"]
Format = Literal["ply", "spz", "splat", "svg"]


@dataclass
class Export:
    """Write the Gaussians of one scene to a splat file, or draw the tokens of one picture as ellipses (.svg)."""

    load_config: Path
    """A run's config.yml, or its folder."""
    output: Path
    """File to write: .ply, .spz, .splat or .svg."""
    format: Format | None = None
    """What the file holds, where its name does not say it; the name gets that ending."""
    scene: str | None = None
    """A scene of the run's data by its name or number, or the folder of any other scene; by default the first held-out one."""
    data: Path | None = None
    """A scene or a folder of scenes to look at in the place of the run's own data."""
    frame: Frame = "world"
    """world: the frame of the original poses. dataset: nerfstudio's, oriented, centred and scaled by the dataparser. A picture has one
    frame alone: one unit high in the plane z = 0."""
    tuning_steps: int | None = None
    """Test-time tuning steps on the context views; by default as the run says, which is 0: what the forward pass gives."""

    def main(self) -> None:
        output = named_as(self.output, self.format)
        if output.suffix != ".svg":
            check_splat_name(output)
        _, pipeline = load_run(self.load_config, RunOptions(scene=self.scene, data=self.data, tuning_steps=self.tuning_steps))
        scene = pipeline.datamanager.current.name
        if output.suffix == ".svg":
            layers = picture_model(pipeline).layers()
            write_text(layers.svg(), output)
            CONSOLE.print(f"{layers.count} tokens of {scene} as ellipses: {output}", soft_wrap=True)
            return
        count = write_splats(scene_gaussians(pipeline, self.frame), output)
        CONSOLE.print(f"{count} Gaussians of {scene} in the {self.frame} frame: {output}", soft_wrap=True)


def named_as(output: Path, format: Format | None) -> Path:
    """The file's name with the ending of its format.

    Raises:
        ValueError: it has another ending.
    """
    if format is None or output.suffix == f".{format}":
        return output
    if output.suffix:
        raise ValueError(f"--output {output} does not end in .{format}: name it so, or leave --format out")
    return output.with_name(f"{output.name}.{format}")


def scene_gaussians(pipeline: FeedForwardPipeline, frame: Frame) -> Gaussians3D:
    """The Gaussians of the scene in hand, a batch of one. Those of a picture lie in its plane, in either frame.

    Raises:
        ValueError: the method's representation is not Gaussians.
    """
    from token_methods.gaussiantoken.picture_model import PictureModel

    model = pipeline.model
    if isinstance(model, PictureModel):
        return picture_model(pipeline).dataset_gaussians()
    if not isinstance(model, GaussianSceneModel):
        raise ValueError(f"{type(model).__name__} has no Gaussians to export")
    gaussians = model.dataset_gaussians()
    if frame == "dataset":
        return gaussians
    to_world = pipeline.datamanager.scene_frame().inverse().to(gaussians.device)
    return gaussians.map(lambda value: value.double()).transformed(to_world).map(lambda value: value.float())


def picture_model(pipeline: FeedForwardPipeline) -> PictureModel:
    """The model of a run whose tokens are 2D Gaussians of a picture.

    Raises:
        ValueError: they are not.
    """
    from token_methods.gaussiantoken.picture_model import PictureModel

    model = pipeline.model
    if not isinstance(model, PictureModel):
        raise ValueError(f"{type(model).__name__} has no tokens of a picture to draw: .svg files are for gaussiantoken runs")
    model.require_gaussians()
    return model


def write_text(text: str, path: Path) -> None:
    """Write a file that appears under its name when it is complete; missing folders are made."""
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}): name another folder or make room") from error
    finally:
        with contextlib.suppress(OSError):  # where there is no folder there is nothing to take away
            unfinished.unlink()
