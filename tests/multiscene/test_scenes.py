"""Scenes from dataparsers: found, parsed whole, undistorted exactly, refused with one clear sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.minimal_dataparser import MinimalDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from tests.tiny_scenes import write_tiny_scene, write_tiny_scenes
from token_methods.core.cameras import opencv_from_opengl
from token_methods.core.crops import CropAndResize, CropConvention
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.scene_discovery import SceneSource, find_scenes
from token_methods.multiscene.scenes import Scene, parse_scene
from token_methods.multiscene.view_loading import ViewCache, ViewLoader, read_frame

NERFSTUDIO = NerfstudioDataParserConfig()


def parse(folder: Path, config: NerfstudioDataParserConfig = NERFSTUDIO) -> Scene:
    return parse_scene(SceneSource(folder.name, folder, config))


def edit(folder: Path, change) -> Path:
    """Change the content of a scene's transforms.json."""
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    return folder


# Finding.


def test_data_is_one_scene_a_folder_or_a_list(tmp_path: Path) -> None:
    folders = write_tiny_scenes(tmp_path / "data", 3, num_frames=3)
    (tmp_path / "data" / "notes").mkdir()
    (tmp_path / "list.txt").write_text("# two of them\ndata/scene_2\n\ndata/scene_0\n")
    (tmp_path / "list.json").write_text(json.dumps(["data/scene_1", str(folders[1])]))
    found = {
        "one": find_scenes(folders[0], NERFSTUDIO),
        "file": find_scenes(folders[0] / "transforms.json", NERFSTUDIO),
        "folder": find_scenes(tmp_path / "data", NERFSTUDIO),
        "above": find_scenes(tmp_path, NERFSTUDIO),
        "text": find_scenes(tmp_path / "list.txt", NERFSTUDIO),
        "json": find_scenes(tmp_path / "list.json", NERFSTUDIO),
    }
    names = {key: [source.name for source in sources] for key, sources in found.items()}
    everything = ["scene_0", "scene_1", "scene_2"]
    assert names == {
        "one": ["scene_0"],
        "file": ["scene_0"],
        "folder": everything,
        "above": everything,
        "text": ["scene_0", "scene_2"],
        "json": ["scene_1"],
    }
    for sources in found.values():
        assert all(parse_scene(source).num_frames == 3 for source in sources)


def test_scenes_of_equal_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        write_tiny_scene(tmp_path / parent / "room", num_frames=2)
    assert [source.name for source in find_scenes(tmp_path, NERFSTUDIO)] == ["a/room", "b/room"]


@pytest.mark.parametrize("config", [BlenderDataParserConfig(), ColmapDataParserConfig(), MinimalDataParserConfig(), NERFSTUDIO])
def test_data_without_a_scene_are_refused(tmp_path: Path, config: NerfstudioDataParserConfig) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(SceneError, match=path.name):
            find_scenes(path, config)


def test_a_dataparser_may_name_its_scenes_itself(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class ManyScenes(NerfstudioDataParserConfig):
        def scene_folders(self) -> list[Path]:
            return [self.data / "scene_1", self.data / "not_made_yet"]

    write_tiny_scenes(tmp_path, 2, num_frames=2)
    assert [source.name for source in find_scenes(tmp_path, ManyScenes())] == ["not_made_yet", "scene_1"]


# Parsing.


def test_blender_instant_ngp_and_unknown_dataparsers_work_unchanged(tmp_path: Path) -> None:
    ngp = edit(write_tiny_scene(tmp_path / "ngp", num_frames=4), lambda meta: meta.update(aabb_scale=4))
    scene = parse_scene(find_scenes(tmp_path, InstantNGPDataParserConfig())[0])
    assert scene.num_frames == 4
    blender = tmp_path / "blender" / "lego"
    frames = json.loads((ngp / "transforms.json").read_text())["frames"]
    for number, split in enumerate(("train", "val", "test")):
        shutil.copytree(ngp / "images", blender / split)
        part = [{**frame, "file_path": f"./{split}/{Path(frame['file_path']).stem}"} for frame in frames[number : number + 2]]
        (blender / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.9, "frames": part}))
    scene = parse_scene(find_scenes(tmp_path / "blender", BlenderDataParserConfig())[0])
    assert [path.parent.name for path in scene.image_filenames] == ["test"] * 2 + ["train"] * 2 + ["val"] * 2
    # A dataparser without a known marker file: found by trying. Its outputs hold numpy arrays here and there.
    (tmp_path / "minimal/room").mkdir(parents=True)
    poses = np.array([frame["transform_matrix"] for frame in frames], dtype=np.float32)
    numbers = {"fx": 29.0, "fy": 29.0, "cx": 16.0, "cy": 12.0, "height": 24, "width": 32, "camera_type": 1}
    cameras = {"camera_to_worlds": poses, **{key: np.array([[value]] * 4) for key, value in numbers.items()}}
    files = np.array([str(ngp / frame["file_path"]) for frame in frames])
    box, transform = np.array([[-1.0, -1, -1], [1, 1, 1]]), np.eye(4)[:3]
    np.savez(tmp_path / "minimal/room/train.npz", image_filenames=files, cameras=cameras, scene_box=box, applied_transform=transform)  # type: ignore[arg-type]
    (source,) = find_scenes(tmp_path / "minimal", MinimalDataParserConfig())
    scene = parse_scene(source)
    torch.testing.assert_close(scene.camera_to_world, opencv_from_opengl(torch.from_numpy(poses)))
    assert read_frame(scene, 3)[0].shape == (24, 32, 3)


def test_all_splits_are_joined_in_file_order(tmp_path: Path) -> None:
    folder = write_tiny_scene(tmp_path / "s", num_frames=11)
    for mode in ("fraction", "interval", "all"):
        scene = parse(
            folder, NerfstudioDataParserConfig(eval_mode=mode, orientation_method="none", center_method="none", auto_scale_poses=False)
        )
        assert [path.name for path in scene.image_filenames] == [f"frame_{i:03d}.png" for i in range(11)]
        frames = json.loads((folder / "transforms.json").read_text())["frames"]
        expected = opencv_from_opengl(torch.tensor([frame["transform_matrix"] for frame in frames]))
        torch.testing.assert_close(scene.camera_to_world, expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_frame_undoes_what_the_dataparser_did(tmp_path: Path, scale: float) -> None:
    """Reorientation, centring and scaling are undone to 1e-4 of the scene's size, whatever unit the files have."""
    folder = write_tiny_scene(tmp_path / "s", num_frames=8, scale=scale)
    scene = parse(folder)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    original = opencv_from_opengl(torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64))
    back = scene.frame.inverse().poses(scene.camera_to_world.double()[None])[0]
    assert (back[:, :3, 3] - original[:, :3, 3]).abs().max() < 1e-4 * scale
    torch.testing.assert_close(back[:, :3, :3], original[:, :3, :3], atol=1e-4, rtol=0)
    step, original_step = (poses[1:, :3, 3] - poses[:-1, :3, 3] for poses in (scene.camera_to_world, original))
    torch.testing.assert_close(step.norm(dim=1), (scene.unit * original_step.norm(dim=1)).float(), rtol=1e-3, atol=0)


def test_sparse_depth_is_that_of_the_points_in_view_in_the_dataset_frame(tmp_path: Path) -> None:
    folder = write_tiny_scene(tmp_path / "s", num_frames=6, scale=10.0, with_points=True)
    plain = NerfstudioDataParserConfig(orientation_method="none", center_method="none", auto_scale_poses=False)
    for config in (NERFSTUDIO, plain):
        scene = parse(folder, config)
        depth = scene.sparse_depth / scene.unit
        assert ((depth > 10) & (depth < 60)).all(), "walls are 30 to 50 away"
    assert parse(write_tiny_scene(tmp_path / "t", num_frames=2)).sparse_depth.isnan().all()


def test_real_scenes_load_through_nerfstudio_data(reference: Path) -> None:
    listed = json.loads((reference / "data/scenes/scenes.json").read_text())
    sources = find_scenes(reference / "data/scenes", NERFSTUDIO)
    assert len(sources) == 14
    for source in sources:
        scene = parse_scene(source)
        frames = json.loads((source.path / "transforms.json").read_text())["frames"]
        assert scene.num_frames == len(frames) > 0
        assert scene.sparse_depth.isfinite().all()
        image, _ = read_frame(scene, 0)
        assert image.shape == (scene.pinholes[0].height, scene.pinholes[0].width, 3)
        assert source.name in str(listed)


def test_real_scenes_load_through_colmap_and_agree_with_nerfstudio_data(reference: Path) -> None:
    config = ColmapDataParserConfig(images_path=Path("images"), colmap_path=Path("sparse/0"), downscale_factor=1)
    sources = find_scenes(reference / "data/scenes", config)
    assert [source.name for source in sources] == ["family", "sceaux"]
    for source in sources:
        scene, other = parse_scene(source), parse(source.path)
        assert [path.name for path in scene.image_filenames] == [path.name for path in other.image_filenames]
        spread = [
            s.camera_to_world[:, :3, 3].sub(s.camera_to_world[:1, :3, 3]).norm(dim=1) / s.sparse_depth.median() for s in (scene, other)
        ]
        torch.testing.assert_close(*spread, rtol=0.08, atol=0.02)
        assert abs(scene.pinholes[0].fx / other.pinholes[0].fx - 1) < 0.02


# Undistortion, crop and resize keep every point where its intrinsics say.


def _dots(folder: Path, distortion: dict[str, float], width: int, height: int, model: str = "OPENCV") -> tuple[Path, np.ndarray]:
    """A scene of one camera at the origin that sees white dots at known places; returns the dots in OpenCV coordinates."""
    write_tiny_scene(folder, num_frames=3, width=width, height=height)
    focal, centre = 0.8 * width, (0.52 * width, 0.47 * height)
    points = np.array([[x, y, 2.0] for x in (-0.6, 0.05, 0.5) for y in (-0.35, 0.1, 0.4)])
    matrix = np.array([[focal, 0, centre[0] - 0.5], [0, focal, centre[1] - 0.5], [0, 0, 1]])
    if model == "OPENCV_FISHEYE":
        values = np.array([distortion.get(key, 0.0) for key in ("k1", "k2", "k3", "k4")])
        pixels = cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), matrix, values)[0][:, 0]
    else:
        values = np.array([distortion.get(key, 0.0) for key in ("k1", "k2", "p1", "p2", "k3")])
        pixels = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, values)[0][:, 0]
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    picture = sum(np.exp(-((column - u) ** 2 + (row - v) ** 2) / (2 * 3.0**2)) for u, v in pixels)
    for name in ("000", "001", "002"):
        Image.fromarray((255 * np.clip(picture, 0, 1)).astype(np.uint8)).save(folder / f"images/frame_{name}.png")

    def change(meta) -> None:
        meta.update(fl_x=focal, fl_y=focal, cx=centre[0], cy=centre[1], camera_model=model, **distortion)
        meta["frames"][0]["transform_matrix"] = np.eye(4).tolist()

    return edit(folder, change), points


CASES = {
    "pinhole": ({}, 161, 121, "OPENCV"),
    "barrel": ({"k1": -0.2, "k2": 0.03, "p1": 0.002, "p2": -0.003}, 160, 120, "OPENCV"),
    "pincushion, portrait": ({"k1": 0.1}, 121, 160, "OPENCV"),
    "fisheye": ({"k1": 0.02, "k2": 0.01}, 160, 120, "OPENCV_FISHEYE"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("size", "convention"), [((96, 96), "exact"), ((64, 112), "exact"), ((150, 130), "exact"), ((96, 96), "published")]
)
def test_a_point_stays_at_the_pixel_that_its_camera_says(
    tmp_path: Path, case: str, size: tuple[int, int], convention: CropConvention
) -> None:
    distortion, width, height, model = CASES[case]
    folder, points = _dots(tmp_path / "s", distortion, width, height, model)
    scene = parse(folder, NerfstudioDataParserConfig(orientation_method="none", center_method="none", auto_scale_poses=False))
    views = ViewLoader(*size, convention, ViewCache(0)).views(scene, [0])
    assert views.images is not None and views.intrinsics is not None
    fx, fy, cx, cy = views.intrinsics[0, 0].tolist()
    tolerance = 0.08 if convention == "exact" else 0.08 + 0.5 * size[0] / min(width, height)
    checked = 0
    for x, y, z in points:
        u, v = fx * x / z + cx, fy * y / z + cy
        left, top = int(u) - 6, int(v) - 6
        if left < 0 or top < 0 or left + 13 > size[1] or top + 13 > size[0]:
            continue
        window = views.images[0, 0, 0, top : top + 13, left : left + 13].numpy().astype(np.float64) ** 2
        column, row = np.meshgrid(np.arange(left, left + 13) + 0.5, np.arange(top, top + 13) + 0.5)
        for _ in range(5):  # the centre of the bright dot, by a window that follows it
            near = window * np.exp(-((column - u) ** 2 + (row - v) ** 2) / 18)
            found = (near * column).sum() / near.sum(), (near * row).sum() / near.sum()
        assert found == pytest.approx((u, v), abs=tolerance)
        checked += 1
    assert checked >= 4


def test_published_convention_has_the_published_numbers() -> None:
    """TokenGS at 256 x 448 from 960 x 540: pixels are cut at 8, the principal point moves by 7.5."""
    crop = CropAndResize.centred(540, 960, 256, 448)
    assert (crop.top, crop.left, crop.crop_height, crop.crop_width) == (0, 8, 540, 945)
    intrinsics = torch.tensor([800.0, 800.0, 480.0, 270.0], dtype=torch.float64)
    scale = 448 / 945
    assert crop.intrinsics(intrinsics, "published").tolist() == pytest.approx([800 * scale, 800 * scale, 472.5 * scale, 128.0])
    assert crop.intrinsics(intrinsics, "exact").tolist() == pytest.approx([800 * scale, 800 * scale, 472 * scale, 128.0])
    square = CropAndResize.centred(540, 960, 256, 256)
    assert (square.left, square.crop_width) == (210, 540)


def test_masks_take_the_way_of_their_images(tmp_path: Path) -> None:
    folder = edit(write_tiny_scene(tmp_path / "s", num_frames=3, with_masks=True), lambda meta: meta.update(k1=-0.05))
    scene = parse(folder)
    views = ViewLoader(16, 16, "exact", ViewCache(0)).views(scene, [0, 2])
    assert views.masks is not None and views.masks.shape == (1, 2, 1, 16, 16)
    assert (views.masks[..., :7, :] == 0).all() and (views.masks[..., 9:, :] > 0.999).all()


# Wrong input.


def _set(key: str, value: object):
    return lambda meta: meta["frames"][1].update({key: value})


FAULTS = {
    "no frames": (lambda meta: meta.update(frames=[]), "lists no images"),
    "no key frames": (lambda meta: meta.pop("frames"), "key 'frames'"),
    "no pose": (lambda meta: meta["frames"][1].pop("transform_matrix"), r"frames\[1\].*'transform_matrix'"),
    "NaN pose": (_set("transform_matrix", [[float("nan")] * 4] * 4), r"frames\[1\].*frame_001.png.*finite"),
    "short pose": (_set("transform_matrix", [[1, 0], [0, 1]]), r"frames\[1\].*4x4"),
    "squashed pose": (_set("transform_matrix", [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "rotation"),
    "no file path": (lambda meta: meta["frames"][1].pop("file_path"), r"frames\[1\].*'file_path'"),
    "no focal length": (lambda meta: meta.pop("fl_x"), "lacks the key 'fl_x'"),
    "unknown camera": (lambda meta: meta.update(camera_model="PERISCOPE"), "PERISCOPE"),
    "spherical camera": (lambda meta: meta.update(camera_model="EQUIRECTANGULAR"), "equirectangular.*undistort"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_transforms_file_is_named_with_its_fault(tmp_path: Path, fault: str) -> None:
    change, said = FAULTS[fault]
    folder = edit(write_tiny_scene(tmp_path / "some_scene", num_frames=3), change)
    with pytest.raises(SceneError, match=said) as raised:
        parse(folder)
    assert "some_scene" in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_not_json_is_named_with_the_place(tmp_path: Path) -> None:
    folder = write_tiny_scene(tmp_path / "s", num_frames=2)
    (folder / "transforms.json").write_text('{"frames": [\n  oops')
    with pytest.raises(SceneError, match=r"transforms\.json is not JSON.*line 2"):
        parse(folder)


def test_an_image_of_another_size_than_its_camera_is_named(tmp_path: Path) -> None:
    folder = edit(write_tiny_scene(tmp_path / "s", num_frames=2), lambda meta: meta.update(w=64, h=48))
    with pytest.raises(SceneError, match=r"frame_000.png.*32 x 24 .* 64 x 48"):
        read_frame(parse(folder), 0)


def test_parsing_asks_nothing_and_changes_no_file(tmp_path: Path) -> None:
    folder = write_tiny_scene(tmp_path / "s", num_frames=2, with_points=True)
    (folder / "colmap/sparse/0").mkdir(parents=True)
    edit(folder, lambda meta: meta.pop("ply_file_path"))
    before = {path: os.stat(path).st_mtime_ns for path in sorted(folder.rglob("*"))}
    parse(folder, NerfstudioDataParserConfig(load_3D_points=True))
    assert before == {path: os.stat(path).st_mtime_ns for path in sorted(folder.rglob("*"))}
