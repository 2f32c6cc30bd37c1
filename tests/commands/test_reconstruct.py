"""`ns-tokens reconstruct`: photographs with poses in, Gaussians and a video out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from scipy.spatial.transform import Rotation

from tests.tiny_scenes import write_tiny_scene
from token_methods.commands.fly_through import path_views, smooth_path
from token_methods.commands.runs import load_run
from token_methods.commands.video import write_video
from token_methods.multiscene.camera_views import views_from_cameras
from token_methods.multiscene.run_options import RunOptions
from token_methods.rendering.splat_files import read_splats

Command = Callable[..., str]


def read_video(path: Path) -> tuple[UInt8[np.ndarray, "frames height width 3"], float]:
    """Frames and frame rate."""
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]), about["fps"]


def test_photographs_become_gaussians_and_a_video(ns_tokens: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    said = ns_tokens("reconstruct", "--load-config", run, "--data", photos, "--output-dir", tmp_path / "out", "--seconds", 0.5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fly_through.mp4", "scene.ply"]
    gaussians = read_splats(tmp_path / "out" / "scene.ply")
    assert f"{gaussians.num_gaussians} Gaussians from frame_" in said
    frames, rate = read_video(tmp_path / "out" / "fly_through.mp4")
    assert frames.shape == (12, 24, 32, 3) and rate == 24, "half a second in the shape of the photographs"


def test_the_video_begins_and_ends_at_photographs(ns_tokens: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    ns_tokens("reconstruct", "--load-config", run, "--data", photos, "--output-dir", tmp_path, "--seconds", 0.5)
    frames, _ = read_video(tmp_path / "fly_through.mp4")
    _, pipeline = load_run(run, RunOptions(data=photos))
    cameras = pipeline.datamanager.train_dataset.cameras
    for frame, index in ((0, 0), (-1, len(cameras) - 1)):
        rendered = 255 * pipeline.model.get_outputs_for_camera(cameras[index : index + 1])["rgb"].numpy()
        assert np.abs(rendered - frames[frame]).mean() < 6, "but for the video's compression"


def test_tuning_brings_the_context_views_closer(run: Path, photos: Path) -> None:
    errors = []
    for steps in (0, 40):
        _, pipeline = load_run(run, RunOptions(data=photos, tuning_steps=steps, tuning_learning_rate=0.05))
        scene = pipeline.model.scene
        assert scene is not None and scene.batch.context.images is not None
        rendered = pipeline.model.render_scene(scene, scene.batch.context).images
        errors.append(float((rendered - scene.batch.context.images).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_tuning_shows_how_far_it_is(ns_tokens: Command, run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from token_methods.multiscene import progress

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress.CONSOLE, "_force_terminal", True)
    monkeypatch.setattr(progress.CONSOLE, "is_interactive", True)
    arguments = ("reconstruct", "--load-config", run, "--data", photos, "--output-dir", tmp_path, "--seconds", 0.1)
    said = ns_tokens(*arguments, "--tuning-steps", 3)
    assert "Tuning on the context views" in said and "3/3" in said and "loss 0." in said and "Rendering video" in said
    assert "Tuning" not in ns_tokens(*arguments)


def test_options_of_the_command_reach_the_network(ns_tokens: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ("reconstruct", "--load-config", run, "--data", photos, "--seconds", 0.1)
    two = ns_tokens(*arguments, "--output-dir", tmp_path / "2")
    three = ns_tokens(*arguments, "--output-dir", tmp_path / "3", "--context-views", 3)
    assert (two.count("frame_"), three.count("frame_")) == (2, 3)
    ns_tokens(*arguments, "--output-dir", tmp_path / "dataset", "--frame", "dataset")
    world, dataset = read_splats(tmp_path / "2" / "scene.ply"), read_splats(tmp_path / "dataset" / "scene.ply")
    assert not torch.allclose(world.means, dataset.means, rtol=0.1)


def test_flags_come_before_the_environment(run: Path, photos: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", f"--data {scenes} --context-views 3")
    _, pipeline = load_run(run, RunOptions(data=photos))
    assert pipeline.datamanager.scene_names == ["photos"] and len(pipeline.datamanager.train_dataset) == 3


def test_a_run_needs_neither_its_own_data_nor_its_old_place(ns_tokens: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    config = moved / "config.yml"
    config.write_text(config.read_text().replace("- boxes\n", "- gone\n"))
    assert "gone" in config.read_text()
    ns_tokens("reconstruct", "--load-config", config, "--data", photos, "--output-dir", tmp_path / "out", "--seconds", 0.1)
    assert (tmp_path / "out" / "scene.ply").is_file()


@pytest.mark.parametrize("layout", ["colmap/sparse/0", "sparse/0"])
def test_photographs_in_the_form_of_colmap(ns_tokens: Command, run: Path, photos: Path, tmp_path: Path, layout: str) -> None:
    """The run was trained on transforms.json; nobody has to say that these are of another kind."""
    folder = tmp_path / "photos"
    write_colmap(photos, folder, layout)
    ns_tokens("reconstruct", "--load-config", run, "--data", folder, "--output-dir", tmp_path / "colmap", "--seconds", 0.1)
    ns_tokens("reconstruct", "--load-config", run, "--data", photos, "--output-dir", tmp_path / "plain", "--seconds", 0.1)
    assert read_splats(tmp_path / "colmap" / "scene.ply").num_gaussians == read_splats(tmp_path / "plain" / "scene.ply").num_gaussians


def test_large_photographs_of_colmap_raise_no_question(ns_tokens: Command, run: Path, tmp_path: Path) -> None:
    """nerfstudio would ask, unseen, whether to write smaller copies."""
    write_colmap(
        write_tiny_scene(tmp_path / "large", width=1700, height=20, num_frames=4, with_points=True), tmp_path / "photos", "sparse/0"
    )
    ns_tokens("reconstruct", "--load-config", run, "--data", tmp_path / "photos", "--output-dir", tmp_path / "out", "--seconds", 0.1)
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["images", "sparse"]


def write_colmap(photos: Path, folder: Path, layout: str) -> None:
    """The same scene as COLMAP's text files."""
    import json

    meta = json.loads((photos / "transforms.json").read_text())
    model = folder / layout
    model.mkdir(parents=True)
    shutil.copytree(photos / "images", folder / "images")
    (model / "cameras.txt").write_text(f"1 PINHOLE {meta['w']} {meta['h']} {meta['fl_x']} {meta['fl_y']} {meta['cx']} {meta['cy']}\n")
    lines = []
    for number, frame in enumerate(meta["frames"], start=1):
        pose = np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])
        inverse = np.linalg.inv(pose)
        x, y, z, w = Rotation.from_matrix(inverse[:3, :3]).as_quat()
        values = " ".join(map(str, (w, x, y, z, *inverse[:3, 3])))
        lines += [f"{number} {values} 1 {Path(frame['file_path']).name}", ""]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    points = [f"{number} {number % 3} {number % 5} {number % 7} 128 128 128 0.5" for number in range(1, 20)]
    (model / "points3D.txt").write_text("\n".join(points) + "\n")


# The path of the camera.


def random_poses(count: int, seed: int) -> torch.Tensor:
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.from_numpy(Rotation.random(count, random_state=seed).as_matrix())
    poses[:, :3, 3] = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return poses


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_path_goes_from_the_first_to_the_last_camera(count: int) -> None:
    poses = random_poses(count, seed=count)
    path = smooth_path(poses, 97)
    torch.testing.assert_close(path[[0, -1]], poses[[0, -1]], atol=1e-5, rtol=0)
    torch.testing.assert_close(path[:, :3, :3] @ path[:, :3, :3].transpose(1, 2), torch.eye(3).expand(97, 3, 3), atol=1e-5, rtol=0)
    for pose in poses:
        assert float((path[:, :3, 3] - pose[:3, 3]).norm(dim=1).min()) < 0.1, "it comes by every camera"


def test_the_path_has_no_kinks() -> None:
    """Steps between frames change little from one to the next; on straight pieces they would jump at every camera."""
    poses = random_poses(5, seed=3)
    path = smooth_path(poses, 400)
    steps = path[1:, :3, 3] - path[:-1, :3, 3]
    turns = Rotation.from_matrix(path[1:, :3, :3].numpy()) * Rotation.from_matrix(path[:-1, :3, :3].numpy()).inv()
    for speeds in (steps, torch.from_numpy(turns.as_rotvec())):
        assert float((speeds[1:] - speeds[:-1]).norm(dim=1).max()) < 0.15 * float(speeds.norm(dim=1).max())


def test_cameras_that_stand_still_are_no_trouble() -> None:
    assert bool(smooth_path(torch.eye(4).repeat(3, 1, 1), 10).isfinite().all())


def test_the_video_has_the_shape_and_the_lens_of_the_photographs(run: Path, tmp_path: Path) -> None:
    wide = write_tiny_scene(tmp_path / "wide", width=150, height=61, num_frames=4)
    _, pipeline = load_run(run, RunOptions(data=wide))
    cameras = pipeline.datamanager.train_dataset.cameras
    views, given = path_views(cameras, 5, longer_side=100), views_from_cameras(cameras[:1])
    assert (views.width, views.height) == (100, 40) and views.num_views == 5
    assert views.intrinsics is not None and given.intrinsics is not None
    sides = torch.tensor([100 / 150, 40 / 61, 100 / 150, 40 / 61])
    torch.testing.assert_close(views.intrinsics[0, 0], given.intrinsics[0, 0] * sides)
    full = path_views(cameras, 5, longer_side=640)
    assert (full.width, full.height) == (150, 60), "no larger than the photographs, and even for the video"


# Nothing half written.


def test_an_interrupted_video_leaves_nothing(tmp_path: Path) -> None:
    def frames() -> object:
        yield torch.rand(16, 16, 3)
        raise ValueError("a fault in the middle")

    with pytest.raises(ValueError, match="a fault in the middle"):
        write_video(frames(), tmp_path / "video.mp4", 24)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_output_that_cannot_be_written(refusal: Command, run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refusal("reconstruct", "--load-config", run, "--data", photos, "--output-dir", tmp_path / "file" / "out")
    assert f"--output-dir {tmp_path / 'file' / 'out'} cannot be made" in said and "name another folder" in said


@pytest.mark.parametrize(
    ("option", "value"), [("--seconds", "0"), ("--frames-per-second", "0"), ("--video-size", "1"), ("--context-views", "0")]
)
def test_numbers_that_make_no_sense(refusal: Command, run: Path, photos: Path, tmp_path: Path, option: str, value: str) -> None:
    said = refusal("reconstruct", "--load-config", run, "--data", photos, "--output-dir", tmp_path / "out", option, value)
    assert f"{option} must be " in said
    assert not (tmp_path / "out").exists()
