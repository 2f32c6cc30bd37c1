"""`ns-render` and the viewer's set-up: every trajectory, every output, and which scene they show."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.camera_paths import get_spiral_path
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.scripts.render import BaseRender, DatasetRender, RenderCameraPath, RenderInterpolated, SpiralRender
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerElement
from PIL import Image

from token_methods.commands.runs import load_run
from token_methods.multiscene.pipeline import FeedForwardPipeline
from token_methods.multiscene.plain_errors import SettingsError
from token_methods.multiscene.run_options import RunOptions

SCENE = "scene_2"
"""Not the one that is shown by default."""


@pytest.fixture(scope="module")
def wanted(run: Path) -> FeedForwardPipeline:
    """The scene that the tests ask for; what the commands show must be this."""
    default = load_run(run, RunOptions())[1].datamanager.current.name
    pipeline = load_run(run, RunOptions(scene=SCENE))[1]
    assert pipeline.datamanager.current.name == SCENE != default
    return pipeline


@pytest.fixture
def scene_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", f"--scene {SCENE}")


def picture(pipeline: FeedForwardPipeline, cameras: Cameras, index: int) -> Float[np.ndarray, "height width 3"]:
    return 255 * pipeline.model.get_outputs_for_camera(cameras[index : index + 1])["rgb"].numpy()


def frames_of(path: Path) -> UInt8[np.ndarray, "frames height width 3"]:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def rendered_images(command: BaseRender) -> list[UInt8[np.ndarray, "height width channels"]]:
    command.image_format, command.output_format = "png", "images"  # type: ignore[attr-defined]
    command.main()  # type: ignore[attr-defined]
    return [np.asarray(Image.open(path)) for path in sorted((command.output_path.parent / command.output_path.stem).iterdir())]


# Trajectories of the named scene.


@pytest.mark.usefixtures("scene_by_environment")
def test_interpolate(run: Path, wanted: FeedForwardPipeline, tmp_path: Path) -> None:
    images = rendered_images(RenderInterpolated(load_config=run / "config.yml", output_path=tmp_path / "out.mp4", interpolation_steps=3))
    cameras = wanted.datamanager.eval_dataset.cameras
    assert len(images) == 3 * (len(cameras) - 1) and images[0].shape == (24, 32, 3)
    assert np.abs(images[0] - picture(wanted, cameras, 0)).max() <= 1
    assert np.abs(images[-1] - picture(wanted, cameras, len(cameras) - 1)).max() <= 1


@pytest.mark.usefixtures("scene_by_environment")
def test_interpolate_between_context_views(run: Path, wanted: FeedForwardPipeline, tmp_path: Path) -> None:
    command = RenderInterpolated(
        load_config=run / "config.yml", output_path=tmp_path / "out.mp4", interpolation_steps=4, pose_source="train"
    )
    images = rendered_images(command)
    assert len(images) == 4
    assert np.abs(images[0] - picture(wanted, wanted.datamanager.train_dataset.cameras, 0)).max() <= 1


@pytest.mark.usefixtures("scene_by_environment")
def test_spiral(run: Path, wanted: FeedForwardPipeline, tmp_path: Path) -> None:
    command = SpiralRender(load_config=run / "config.yml", output_path=tmp_path / "spiral.mp4", seconds=0.5, frame_rate=8, radius=0.5)
    images = rendered_images(command)
    assert len(images) == 4 and images[0].shape == (24, 32, 3)
    path = get_spiral_path(wanted.datamanager.eval_dataset.cameras[:1], steps=4, radius=0.5)
    for index, image in enumerate(images):
        assert np.abs(image - picture(wanted, path, index)).max() <= 1
    assert not np.array_equal(images[0], images[1]), "the camera moves"


@pytest.mark.usefixtures("scene_by_environment")
def test_camera_path(run: Path, wanted: FeedForwardPipeline, tmp_path: Path) -> None:
    """A file as the viewer writes it: other sizes and fields of view than the photographs have."""
    cameras = wanted.datamanager.eval_dataset.cameras[:3]
    path = camera_path_file(tmp_path, cameras)
    images = rendered_images(RenderCameraPath(load_config=run / "config.yml", output_path=tmp_path / "path.mp4", camera_path_filename=path))
    assert len(images) == 3 and images[0].shape == (30, 40, 3)
    ours = Cameras(cameras.camera_to_worlds, *focal(30, 50.0), 20.0, 15.0, width=40, height=30)
    for index, image in enumerate(images):
        assert np.abs(image - picture(wanted, ours, index)).max() <= 1


def test_a_crop_of_the_camera_path_cuts_and_has_its_own_background(run: Path, tmp_path: Path) -> None:
    _, pipeline = load_run(run, RunOptions())
    cameras = pipeline.datamanager.eval_dataset.cameras[:1]
    nothing = {"crop_center": [1e3, 0, 0], "crop_scale": [1, 1, 1], "crop_bg_color": {"r": 255, "g": 0, "b": 51}}
    path = camera_path_file(tmp_path, cameras, crop=nothing)
    (image,) = rendered_images(
        RenderCameraPath(load_config=run / "config.yml", output_path=tmp_path / "crop.mp4", camera_path_filename=path)
    )
    assert (image == np.array([255, 0, 51])).all()


def focal(height: int, field_of_view: float) -> tuple[float, float]:
    length = 0.5 * height / np.tan(0.5 * np.radians(field_of_view))
    return length, length


def camera_path_file(folder: Path, cameras: Cameras, **others: Any) -> Path:
    poses = torch.eye(4).repeat(len(cameras), 1, 1)
    poses[:, :3] = cameras.camera_to_worlds
    places = [{"camera_to_world": pose.flatten().tolist(), "fov": 50.0, "aspect": 4 / 3} for pose in poses]
    content = {"camera_type": "perspective", "render_height": 30, "render_width": 40, "fps": 4, "seconds": 1.0, "camera_path": places}
    path = folder / "camera_path.json"
    path.write_text(json.dumps({**content, "is_cycle": False, "keyframes": [], **others}))
    return path


@pytest.mark.usefixtures("scene_by_environment")
def test_dataset(run: Path, wanted: FeedForwardPipeline, tmp_path: Path) -> None:
    """Context views are the split "train", the scene's other views "test"; both at the size of the photographs, under their names."""
    names = ["rgb", "gt-rgb", "depth", "accumulation", "rgba", "raw-rgb", "raw-depth"]
    DatasetRender(
        load_config=run / "config.yml", output_path=tmp_path, split="train+test", rendered_output_names=names, image_format="png"
    ).main()
    data = wanted.datamanager
    for split, dataset in (("train", data.train_dataset), ("test", data.eval_dataset)):
        for index, photo in enumerate(dataset.image_filenames):
            outputs = wanted.model.get_outputs_for_camera(dataset.cameras[index : index + 1])
            files = {name: tmp_path / split / name / f"{photo.stem}.png" for name in names}
            for name, channels in (("rgb", 3), ("depth", 3), ("accumulation", 3), ("rgba", 4)):
                assert np.asarray(Image.open(files[name])).shape == (24, 32, channels)
            np.testing.assert_array_equal(np.asarray(Image.open(files["gt-rgb"])), np.asarray(Image.open(photo)))
            np.testing.assert_allclose(read_raw(files["raw-rgb"]), outputs["rgb"].numpy(), atol=1e-5)
            depth = outputs["depth"].numpy() / data.train_dataparser_outputs.dataparser_scale
            np.testing.assert_allclose(read_raw(files["raw-depth"]), depth, rtol=1e-4), "in the unit of the original poses"
            alpha = np.asarray(Image.open(files["rgba"]))[..., 3] / 255
            np.testing.assert_allclose(alpha, outputs["accumulation"][..., 0].numpy(), atol=0.01)


def read_raw(path: Path) -> np.ndarray:
    with gzip.open(path.with_suffix(".npy.gz")) as file:
        return np.load(file)


def test_dataset_of_another_folder(run: Path, photos: Path, tmp_path: Path) -> None:
    """`--data` is ns-render's own flag."""
    DatasetRender(
        load_config=run / "config.yml", output_path=tmp_path, data=photos, rendered_output_names=["rgb"], image_format="png"
    ).main()
    _, pipeline = load_run(run, RunOptions(data=photos))
    for index, photo in enumerate(pipeline.datamanager.eval_dataset.image_filenames):
        image = np.asarray(Image.open(tmp_path / "test" / "rgb" / f"{photo.stem}.png"))
        assert np.abs(image - picture(pipeline, pipeline.datamanager.eval_dataset.cameras, index)).max() <= 1


def test_all_outputs_side_by_side_in_a_video(run: Path, tmp_path: Path) -> None:
    names = ["rgb", "depth", "accumulation"]
    command = RenderInterpolated(load_config=run / "config.yml", output_path=tmp_path / "out.mp4", interpolation_steps=2)
    command.rendered_output_names = names
    command.main()
    assert frames_of(tmp_path / "out.mp4").shape[1:] == (24, 96, 3)


def test_nearest_camera_is_refused(run: Path, tmp_path: Path) -> None:
    command = RenderInterpolated(load_config=run / "config.yml", output_path=tmp_path / "out.mp4", render_nearest_camera=True)
    with pytest.raises(SettingsError, match="--render-nearest-camera cannot be made"):
        command.main()


# The viewer's set-up, and all kinds of scene names.


@pytest.mark.parametrize("test_mode", ["test", "inference"])
def test_every_command_looks_at_the_named_scene(run: Path, monkeypatch: pytest.MonkeyPatch, test_mode: Any) -> None:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", f"--scene {SCENE} --tuning-steps 2 --context-views 3")
    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode=test_mode)
    assert isinstance(pipeline, FeedForwardPipeline)
    assert pipeline.datamanager.current.name == SCENE and len(pipeline.datamanager.train_dataset) == 3
    assert pipeline.model.config.tuning_steps == 2
    assert pipeline.model.scene is not None and pipeline.model.scene.batch.names == (SCENE,)


def test_training_is_not_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that still stands in the shell must not change what is trained."""
    monkeypatch.setenv("NERFSTUDIO_TOKENS", f"--scene {SCENE} --context-views 3")
    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode="val")
    assert pipeline.datamanager.current.name != SCENE and pipeline.datamanager.config.num_context_views == 2  # type: ignore[attr-defined]


def test_the_viewer_finds_its_controls(run: Path) -> None:
    """It reads every attribute of the pipeline, properties among them: none may raise."""
    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode="test")
    names = [element.name for _, element in parse_object(pipeline, ViewerElement, "Custom Elements")]
    assert "Scene" in names


@pytest.mark.parametrize("how", ["name", "number", "folder", "outside", "data"])
def test_ways_to_name_a_scene(run: Path, scenes: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    _, pipeline = load_run(run, RunOptions())
    number = pipeline.datamanager.scene_names.index(SCENE)
    said = {
        "name": (f"--scene {SCENE}", SCENE),
        "number": (f"--scene {number}", SCENE),
        "folder": (f"--scene '{scenes / SCENE}'", SCENE),
        "outside": (f"--scene {photos}", "photos"),
        "data": (f"--data {photos}", "photos"),
    }
    text, name = said[how]
    monkeypatch.setenv("NERFSTUDIO_TOKENS", text)
    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode="inference")
    assert pipeline.datamanager.current.name == name


def test_a_run_is_found_where_it_lies_now(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    config, pipeline = load_run(moved, RunOptions(scene=SCENE))
    assert config.get_checkpoint_dir() == moved / "nerfstudio_models" and pipeline.model.scene is not None
