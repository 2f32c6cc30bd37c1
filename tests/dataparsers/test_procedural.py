"""`procedural-data`: scenes on disk, the walk through them, and what nerfstudio is given."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.utils.data_utils import get_depth_image_from_path
from PIL import Image

from dataparsers.procedural.generator import SceneJob
from dataparsers.procedural.parser import ProceduralDataParserConfig, generate_scenes, procedural_data
from dataparsers.procedural.paths import find_path
from dataparsers.procedural.raycast import Raycaster
from dataparsers.procedural.scenes import make_world
from dataparsers.procedural.storage import appearing_folder, read_points
from dataparsers.procedural.workers import generate_in_workers


def load(outputs, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture in [0, 1] and depth of a frame, through nerfstudio's own reader of depth."""
    depth = get_depth_image_from_path(
        outputs.metadata["depth_filenames"][index], 40, 48, outputs.metadata["depth_unit_scale_factor"] * outputs.dataparser_scale
    )
    return np.asarray(Image.open(outputs.image_filenames[index]), np.float64) / 255, depth[..., 0].numpy().astype(np.float64)


def opencv(outputs, index: int) -> np.ndarray:
    pose = np.eye(4)
    pose[:3] = outputs.cameras.camera_to_worlds[index].numpy()
    return pose @ np.diag([1, -1, -1, 1])


def parse(config: ProceduralDataParserConfig, folder: Path, split: str = "train"):
    return dataclasses.replace(config, data=folder).setup().get_dataparser_outputs(split)


def test_a_scene_reaches_nerfstudio_as_it_was_made(procedural: ProceduralDataParserConfig, scene_folder: Path) -> None:
    outputs = parse(procedural, scene_folder)
    assert [path.name for path in outputs.image_filenames] == [f"frame_{i:05d}.png" for i in range(9)]
    assert outputs.cameras.shape == (9,)
    assert (outputs.cameras.camera_type == CameraType.PERSPECTIVE.value).all()
    assert set(outputs.cameras.width.flatten().tolist()) == {48} and set(outputs.cameras.height.flatten().tolist()) == {40}
    field_of_view = np.degrees(2 * np.arctan(24 / outputs.cameras.fx[0].item()))
    assert 50 <= field_of_view <= 75
    assert torch.equal(outputs.dataparser_transform, torch.eye(4)[:3]) and outputs.dataparser_scale == 1
    assert len(parse(procedural, scene_folder, "test").image_filenames) == 2
    points = outputs.metadata["points3D_xyz"]
    assert points.shape == outputs.metadata["points3D_rgb"].shape and 300 < len(points) <= 700


def test_depth_and_pose_carry_one_frame_onto_the_next(procedural: ProceduralDataParserConfig) -> None:
    """Pixels of one frame, lifted by their depth, are found in the next frame at its depth and in its colour."""
    for folder in procedural.scene_folders():
        outputs = parse(procedural, folder)
        fx, cx, cy = (getattr(outputs.cameras, name)[0].item() for name in ("fx", "cx", "cy"))
        for i, j in ((0, 1), (4, 3)):
            (colour, depth), (other_colour, other_depth) = load(outputs, i), load(outputs, j)
            v, u = np.mgrid[0:40, 0:48]
            camera = np.stack([(u + 0.5 - cx) / fx * depth, (v + 0.5 - cy) / fx * depth, depth, np.ones_like(depth)], -1)
            x, y, z, _ = (camera @ opencv(outputs, i).T @ np.linalg.inv(opencv(outputs, j)).T).transpose(2, 0, 1)
            column, row = np.floor(x / z * fx + cx).astype(int), np.floor(y / z * fx + cy).astype(int)
            seen = (z > 0) & (column >= 0) & (column < 48) & (row >= 0) & (row < 40)
            assert seen.mean() > 0.5  # neighbours overlap
            there = other_depth[row[seen], column[seen]]
            # the next frame sees the same surface (a slanted one within a pixel), unless something came in front of it
            assert np.median(np.abs(there - z[seen]) / z[seen]) < 0.01
            assert (there > 0.8 * z[seen]).mean() > 0.85
            assert np.median(np.abs(other_colour[row[seen], column[seen]] - colour[seen])) < 0.06


def test_sparse_points_lie_on_what_the_camera_sees(procedural: ProceduralDataParserConfig, scene_folder: Path) -> None:
    outputs = parse(procedural, scene_folder)
    raycaster = Raycaster(make_world(np.random.default_rng([procedural.seed, 0])).scene)
    gap = raycaster.clearance(outputs.metadata["points3D_xyz"].float()).abs()
    assert float(gap.quantile(0.9)) < 5e-3  # the distance field only estimates at cones and ellipsoids


@pytest.mark.parametrize("index", range(6))
def test_walks_stay_in_free_space_and_move_smoothly(index: int) -> None:
    rng = np.random.default_rng([3, index])
    world = make_world(rng)
    raycaster = Raycaster(world.scene)
    path = find_path(raycaster, world.stage, rng)
    poses = path(np.linspace(0, 1, 200))
    positions, forward = poses[:, :3, 3], poses[:, :3, 2]
    assert float(raycaster.clearance(torch.from_numpy(positions).float()).min()) > 0.12
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    assert 0.3 < steps.sum() < 5
    assert steps.max() < 4 * steps.mean()
    # nothing is crossed on the way: a ray along each stretch of the walk meets nothing before its end
    direction = torch.from_numpy(np.diff(positions, axis=0).T).float()
    distance, _ = raycaster.first_hit(torch.from_numpy(positions[:-1].T).float(), direction)
    assert float(distance.min()) > 1
    turns = np.arccos(np.clip((forward[1:] * forward[:-1]).sum(1), -1, 1))
    assert turns.max() < 0.03
    assert np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(poses[:, :3, :3]), 1)
    assert np.abs(poses[:, 2, 0]).max() < 1e-9  # the horizon is level


def test_scenes_differ_from_one_another() -> None:
    thumbnails = []
    for index in range(10):
        rng = np.random.default_rng([0, index])
        world = make_world(rng)
        raycaster = Raycaster(world.scene)
        pose = torch.from_numpy(find_path(raycaster, world.stage, rng)(np.array([0.5])))[0]
        thumbnails.append(raycaster.render(pose, (14.0, 14.0, 8.0, 8.0), 16, 16, 1)[0])
    differences = [float((a - b).abs().mean()) for a, b in itertools.combinations(thumbnails, 2)]
    assert min(differences) > 0.06
    assert all(float(picture.std()) > 0.08 for picture in thumbnails)  # none of them stares at a blank wall


def test_the_same_settings_make_the_same_bytes(procedural: ProceduralDataParserConfig, scene_folder: Path, tmp_path: Path) -> None:
    again = dataclasses.replace(procedural, data=tmp_path)
    (folder,) = generate_scenes(again, [0])
    assert folder.parent.name == scene_folder.parent.name
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 2 * 9 + 2
    assert all((folder / name).read_bytes() == (scene_folder / name).read_bytes() for name in files)


def test_another_seed_or_size_is_another_folder_and_the_walk_does_not_depend_on_the_frames(tmp_path: Path) -> None:
    config = ProceduralDataParserConfig(data=tmp_path, image_height=8, image_width=8, frames_per_scene=3, samples_per_pixel=1, device="cpu")
    names = {
        dataclasses.replace(config, **change).settings_folder() for change in ({}, {"seed": 1}, {"image_width": 16}, {"num_scenes": 9})
    }
    assert len(names) == 3  # num_scenes is no part of it: asking for more keeps what is there
    coarse, fine = (
        dataclasses.replace(config, frames_per_scene=frames).setup().get_dataparser_outputs().cameras.camera_to_worlds for frames in (2, 3)
    )
    assert torch.equal(coarse, fine[[0, 2]])


def test_plain_nerfstudio_data_reads_a_scene(procedural: ProceduralDataParserConfig, scene_folder: Path) -> None:
    config = NerfstudioDataParserConfig(
        data=scene_folder, orientation_method="none", center_method="none", auto_scale_poses=False, eval_mode="all", load_3D_points=True
    )
    theirs, ours = config.setup().get_dataparser_outputs(), parse(procedural, scene_folder)
    assert theirs.image_filenames == ours.image_filenames
    assert torch.equal(theirs.cameras.camera_to_worlds, ours.cameras.camera_to_worlds)
    for name in ("fx", "fy", "cx", "cy", "width", "height"):
        assert torch.equal(getattr(theirs.cameras, name), getattr(ours.cameras, name))
    assert theirs.metadata["depth_filenames"] == ours.metadata["depth_filenames"]
    assert theirs.metadata["depth_unit_scale_factor"] == ours.metadata["depth_unit_scale_factor"]
    assert torch.allclose(theirs.metadata["points3D_xyz"], ours.metadata["points3D_xyz"])
    assert torch.equal(theirs.metadata["points3D_rgb"], ours.metadata["points3D_rgb"])


def test_two_processes_that_make_the_same_scene_leave_one_whole_scene(tmp_path: Path) -> None:
    job = SceneJob(str(tmp_path / "scene_00000"), seed=0, index=0, height=8, width=8, frames=2, samples=1)
    ticks: list[int] = []
    generate_in_workers([job, job, job], workers=2, advance=lambda: ticks.append(1))
    assert len(ticks) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["scene_00000"]
    assert len(list((tmp_path / "scene_00000" / "images").iterdir())) == 2


def test_an_unfinished_scene_never_shows(tmp_path: Path) -> None:
    def interrupted() -> None:
        with appearing_folder(tmp_path / "scene") as unfinished:
            (unfinished / "transforms.json").write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_scene_folder_is_made_when_it_is_parsed(procedural: ProceduralDataParserConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(procedural, data=tmp_path, image_height=8, image_width=8, frames_per_scene=2)
    folder = config.scene_folders()[1]
    assert not folder.exists()
    single = dataclasses.replace(config, data=folder)
    assert single.scene_folders() == [folder]
    assert len(single.setup().get_dataparser_outputs().image_filenames) == 2
    assert folder.is_dir() and not config.scene_folders()[0].exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_scenes": 0}, "num_scenes must be at least 1"),
        ({"image_width": 0}, "image_width must be at least 8"),
        ({"frames_per_scene": 1}, "frames_per_scene must be at least 2"),
        ({"samples_per_pixel": 0}, "samples_per_pixel must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProceduralDataParserConfig(data=tmp_path, **change).setup().get_dataparser_outputs()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torch sees no GPU"):
        generate_scenes(ProceduralDataParserConfig(data=tmp_path, device="cuda"), [0])


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot make the scene folder .*file.*--data"):
        generate_scenes(ProceduralDataParserConfig(data=tmp_path / "file", image_height=8, image_width=8, device="cpu"), [0])


def test_a_scene_of_other_settings_is_not_made_in_a_strange_place(procedural: ProceduralDataParserConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scene_00003 has no transforms\.json"):
        parse(procedural, tmp_path / "scene_00003")


def test_damaged_points_are_named(procedural: ProceduralDataParserConfig, scene_folder: Path, tmp_path: Path) -> None:
    content = (scene_folder / "sparse_pc.ply").read_bytes()
    for damaged in (content[:-4], b"", content.replace(b"float", b"double")):
        (tmp_path / "sparse_pc.ply").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"sparse_pc\.ply"):
            read_points(tmp_path / "sparse_pc.ply")


def test_the_command_line_sets_every_field(tmp_path: Path) -> None:
    arguments = ["--data", str(tmp_path), "--num-scenes", "3", "--seed", "5", "--image-height", "32", "--device", "cpu"]
    config = tyro.cli(ProceduralDataParserConfig, args=arguments)
    assert (config.data, config.num_scenes, config.seed, config.image_height, config.device) == (tmp_path, 3, 5, 32, "cpu")
    assert isinstance(procedural_data.config.setup().config, ProceduralDataParserConfig)
