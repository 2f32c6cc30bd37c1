"""Gaussians as files: `ns-export gaussian-splat` and `ns-tokens export`, and the frames that they lie in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gsply
import numpy as np
import pytest
import torch
import yaml
from nerfstudio.scripts.exporter import (
    ExportCameraPoses,
    ExportGaussianSplat,
    ExportMarchingCubesMesh,
    ExportPointCloud,
    ExportPoissonMesh,
    ExportTSDFMesh,
)
from plyfile import PlyData
from scipy.spatial.transform import Rotation
from torch import Tensor

from token_methods.commands.export import scene_gaussians
from token_methods.commands.runs import load_run
from token_methods.core.cameras import Similarity
from token_methods.core.metrics import psnr
from token_methods.multiscene.camera_views import views_from_cameras
from token_methods.multiscene.pipeline import FeedForwardPipeline
from token_methods.multiscene.run_options import RunOptions
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import render
from token_methods.rendering.splat_files import read_splats

Command = Callable[..., str]


def rendered_in_dataset_frame(pipeline: FeedForwardPipeline, gaussians: Gaussians3D, index: int) -> Tensor:
    """What a camera of the dataset sees of Gaussians that lie in the dataset's frame."""
    scene, model = pipeline.model.scene, pipeline.model.config
    assert scene is not None
    views = views_from_cameras(pipeline.datamanager.eval_dataset.cameras[index : index + 1])
    unit = float(scene.frame.scale)
    return render(gaussians, views, model.background_color, model.near_plane / unit, model.far_plane / unit).images[0, 0]  # type: ignore[attr-defined]


def rendered_by_model(pipeline: FeedForwardPipeline, index: int) -> Tensor:
    return pipeline.model.get_outputs_for_camera(pipeline.datamanager.eval_dataset.cameras[index : index + 1])["rgb"].permute(2, 0, 1)


# ns-export gaussian-splat.


def test_ns_export_writes_what_the_model_renders(run: Path, tmp_path: Path) -> None:
    ExportGaussianSplat(load_config=run / "config.yml", output_dir=tmp_path).main()
    gaussians = read_splats(tmp_path / "splat.ply")
    _, pipeline = load_run(run, RunOptions())
    assert gaussians.num_gaussians == pipeline.model.num_points
    for index in range(len(pipeline.datamanager.eval_dataset)):
        ours, theirs = rendered_by_model(pipeline, index), rendered_in_dataset_frame(pipeline, gaussians, index)
        assert float(psnr(ours[None], theirs[None])) >= 45
        assert float(ours.std()) > 0.005, "there is something to see"


def test_other_programs_open_the_ply(run: Path, tmp_path: Path) -> None:
    ExportGaussianSplat(load_config=run / "config.yml", output_dir=tmp_path).main()
    ours = read_splats(tmp_path / "splat.ply")
    vertices = PlyData.read(str(tmp_path / "splat.ply"))["vertex"]
    np.testing.assert_array_equal(vertices["x"], ours.means[0, :, 0].numpy())
    data = gsply.plyread(str(tmp_path / "splat.ply"))
    np.testing.assert_array_equal(data.means, ours.means[0].numpy())
    np.testing.assert_allclose(np.exp(data.scales), ours.scales[0].numpy(), rtol=1e-5)


def test_ns_export_obeys_its_own_flags(run: Path, tmp_path: Path) -> None:
    ExportGaussianSplat(load_config=run / "config.yml", output_dir=tmp_path, output_filename="rgb.ply", ply_color_mode="rgb").main()
    _, pipeline = load_run(run, RunOptions())
    gaussians = pipeline.model.dataset_gaussians()  # type: ignore[operator]
    vertices = PlyData.read(str(tmp_path / "rgb.ply"))["vertex"]
    np.testing.assert_allclose(vertices["red"], 255 * gaussians.colors[0, :, 0].clamp(0, 1).numpy(), atol=1)
    middle, spread = gaussians.means[0].mean(dim=0), gaussians.means[0].std(dim=0)
    sides = (2 * spread).tolist()
    box: dict[str, Any] = {"obb_center": tuple(middle.tolist()), "obb_rotation": (0.0, 0.0, 0.0), "obb_scale": tuple(sides)}
    ExportGaussianSplat(load_config=run / "config.yml", output_dir=tmp_path, output_filename="box.ply", **box).main()
    inside = read_splats(tmp_path / "box.ply").means[0]
    assert 0 < len(inside) < gaussians.num_gaussians and bool(((inside - middle).abs() <= 1.001 * spread).all())


def test_a_broken_gaussian_is_left_out_of_the_export(run: Path) -> None:
    """One NaN among the centres would make ns-export drop all of them."""
    _, pipeline = load_run(run, RunOptions())
    model, scene = pipeline.model, pipeline.model.scene
    assert scene is not None
    whole = len(model.means)  # type: ignore[attr-defined]
    scene.representation.means[0, 0, 0] = float("nan")
    for face in (model.means, model.shs_0, model.opacities, model.scales, model.quats, model.colors, model.shs_rest):  # type: ignore[attr-defined]
        assert len(face) == whole - 1 and bool(face.isfinite().all())


def test_ns_export_cameras(run: Path, tmp_path: Path) -> None:
    ExportCameraPoses(load_config=run / "config.yml", output_dir=tmp_path).main()
    context, others = (json.loads((tmp_path / f"transforms_{name}.json").read_text()) for name in ("train", "eval"))
    _, pipeline = load_run(run, RunOptions())
    assert [Path(frame["file_path"]) for frame in context] == pipeline.datamanager.train_dataset.image_filenames
    assert len(others) == len(pipeline.datamanager.eval_dataset)


# What cannot be exported.


@pytest.mark.parametrize("exporter", [ExportPointCloud, ExportPoissonMesh, ExportTSDFMesh])
def test_rays_are_refused_with_a_sentence(run: Path, tmp_path: Path, exporter: Any) -> None:
    with pytest.raises(ValueError, match=r"point clouds, meshes and --render-nearest-camera cannot be made .* `ns-export gaussian-splat`"):
        exporter(load_config=run / "config.yml", output_dir=tmp_path).main()


@pytest.mark.parametrize("exporter", [ExportPointCloud, ExportPoissonMesh])
def test_rays_are_refused_with_other_normals_too(run: Path, tmp_path: Path, exporter: Any) -> None:
    with pytest.raises(ValueError, match=r"point clouds and meshes cannot be exported .* `ns-export gaussian-splat`"):
        exporter(load_config=run / "config.yml", output_dir=tmp_path, normal_method="open3d").main()


def test_marching_cubes_is_refused_by_nerfstudio(run: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Model must have an SDF field"):
        ExportMarchingCubesMesh(load_config=run / "config.yml", output_dir=tmp_path).main()


# ns-tokens export.


@pytest.mark.parametrize("suffix", [".ply", ".spz", ".splat"])
def test_every_format(ns_tokens: Command, run: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scene{suffix}"
    said = ns_tokens("export", "--load-config", run, "--output", path, "--scene", "scene_1")
    gaussians = read_splats(path)
    assert f"{gaussians.num_gaussians} Gaussians of scene_1 in the world frame: {path}" in said
    _, pipeline = load_run(run, RunOptions(scene="scene_1"))
    whole = scene_gaussians(pipeline, "world")
    torch.testing.assert_close(gaussians.means.mean(dim=1), whole.means.mean(dim=1), rtol=0.05, atol=0.05)


def test_the_dataset_frame_is_that_of_ns_export(ns_tokens: Command, run: Path, tmp_path: Path) -> None:
    ExportGaussianSplat(load_config=run / "config.yml", output_dir=tmp_path).main()
    ns_tokens("export", "--load-config", run, "--output", tmp_path / "ours.ply", "--frame", "dataset")
    theirs, ours = read_splats(tmp_path / "splat.ply"), read_splats(tmp_path / "ours.ply")
    torch.testing.assert_close(ours.means, theirs.means)
    torch.testing.assert_close(ours.scales, theirs.scales)
    torch.testing.assert_close(ours.opacities, theirs.opacities, rtol=1e-4, atol=1e-5)


def test_another_ending_is_refused_before_the_work(refusal: Command, tmp_path: Path) -> None:
    assert "name it .ply or .spz or .splat" in refusal("export", "--load-config", tmp_path, "--output", tmp_path / "scene.obj")


# Frame in, frame out.


@dataclass(frozen=True)
class Move:
    """x -> scale * rotation @ x + translation."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    def scene(self, source: Path, folder: Path) -> Path:
        """A copy of a scene whose world was moved: the same photographs, other poses and points."""
        shutil.copytree(source, folder)
        meta = json.loads((folder / "transforms.json").read_text())
        for frame in meta["frames"]:
            pose = np.array(frame["transform_matrix"])
            pose[:3, 3] = self.points(pose[:3, 3])
            pose[:3, :3] = self.rotation @ pose[:3, :3]
            frame["transform_matrix"] = pose.tolist()
        (folder / "transforms.json").write_text(json.dumps(meta))
        header, _, body = (folder / "points.ply").read_text().partition("end_header\n")
        points = self.points(np.array([line.split() for line in body.splitlines()], dtype=np.float64))
        (folder / "points.ply").write_text(header + "end_header\n" + "\n".join(" ".join(map(repr, row)) for row in points.tolist()) + "\n")
        return folder

    def points(self, points: np.ndarray) -> np.ndarray:
        return self.scale * points @ self.rotation.T + self.translation

    @property
    def similarity(self) -> Similarity:
        return Similarity(
            torch.from_numpy(self.rotation)[None], torch.from_numpy(self.translation)[None], torch.tensor([self.scale]).double()
        )


def random_move(seed: int) -> Move:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-3, 3)
    return Move(scale, Rotation.random(random_state=seed).as_matrix(), scale * rng.uniform(-3, 3, 3))


def run_with(run: Path, folder: Path, scale_method: str, **dataparser: Any) -> Path:
    """A copy of a run with other settings of the model's scale and of its dataparser."""
    shutil.copytree(run, folder)
    config = yaml.load((folder / "config.yml").read_text(), Loader=yaml.Loader)
    config.pipeline.model.camera_scale_method = scale_method
    for name, value in dataparser.items():
        setattr(config.pipeline.datamanager.dataparser, name, value)
    (folder / "config.yml").write_text(yaml.dump(config))
    return folder


def assert_same_gaussians(ours: Gaussians3D, wanted: Gaussians3D) -> None:
    """Equal to 1e-4 of the scene's size, of each Gaussian's size, and in turn."""
    size = float((wanted.means[0] - wanted.means[0].mean(dim=0)).norm(dim=1).max())
    assert float((ours.means - wanted.means).norm(dim=-1).max()) < 1e-4 * size
    torch.testing.assert_close(ours.scales, wanted.scales, rtol=1e-4, atol=0)
    assert float(1 - (ours.quats * wanted.quats).sum(dim=-1).abs().min()) < 1e-4
    torch.testing.assert_close(ours.opacities, wanted.opacities, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.colors, wanted.colors, rtol=0, atol=1e-4)


def loaded(run: Path, data: Path) -> tuple[FeedForwardPipeline, Gaussians3D]:
    _, pipeline = load_run(run, RunOptions(data=data))
    return pipeline, scene_gaussians(pipeline, "world").map(lambda value: value.double())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale_method", ["sparse_depth", "distance", "bound"])
def test_what_goes_in_moved_comes_out_moved(run: Path, photos: Path, tmp_path: Path, scale_method: str, seed: int) -> None:
    """nerfstudio's own orientation, centring and scaling are on, as they are by default."""
    moved_by = random_move(seed)
    same_run = run_with(run, tmp_path / "run", scale_method)
    pipeline, plain = loaded(same_run, photos)
    moved_pipeline, moved = loaded(same_run, moved_by.scene(photos, tmp_path / "moved"))
    assert_same_gaussians(moved, plain.transformed(moved_by.similarity))
    for index in (0, 3):
        assert float((rendered_by_model(pipeline, index) - rendered_by_model(moved_pipeline, index)).abs().max()) < 2e-3


@pytest.mark.parametrize(("scale_method", "seed"), [("sparse_depth", 10), ("distance", 11), ("constant", None)])
def test_the_world_frame_does_not_depend_on_the_dataparser(
    run: Path, photos: Path, tmp_path: Path, scale_method: str, seed: int | None
) -> None:
    """A constant scale is a factor on the original unit, so there the world stays as it was."""
    data = photos if seed is None else random_move(seed).scene(photos, tmp_path / "moved")
    settings: list[dict[str, Any]] = [
        {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False},
        {"orientation_method": "up", "center_method": "poses", "auto_scale_poses": True},
        {"orientation_method": "vertical", "center_method": "none", "auto_scale_poses": True, "scale_factor": 7.0},
        {"orientation_method": "none", "center_method": "focus", "auto_scale_poses": False, "scale_factor": 0.03},
    ]
    exported = [loaded(run_with(run, tmp_path / f"run_{number}", scale_method, **each), data) for number, each in enumerate(settings)]
    for _, gaussians in exported[1:]:
        assert_same_gaussians(gaussians, exported[0][1])
    frames = [scene_gaussians(pipeline, "dataset").means for pipeline, _ in exported]
    assert not torch.allclose(frames[0], frames[1], rtol=1e-2), "the dataset's frame does depend on it"


def test_gaussians_lie_where_the_dataset_says(run: Path, photos: Path, tmp_path: Path) -> None:
    """Rendered in the original world, from the poses that stand in transforms.json."""
    data = random_move(20).scene(photos, tmp_path / "moved")
    pipeline, world = loaded(run, data)
    frame = json.loads((data / "transforms.json").read_text())["frames"][pipeline.datamanager.other_frames[0]]
    pose = torch.tensor(frame["transform_matrix"], dtype=torch.float64) @ torch.diag(torch.tensor([1.0, -1, -1, 1]).double())
    views = views_from_cameras(pipeline.datamanager.eval_dataset.cameras[:1])
    to_network = pipeline.datamanager.scene_frame().then(pipeline.model.scene.frame.to(torch.float64))  # type: ignore[union-attr]
    carried = to_network.inverse().inverse().poses(pose[None, None])
    model = pipeline.model
    image = model.render(  # carried by hand from the world to where the network works
        world.transformed(to_network).map(lambda value: value.float()),
        type(views)(views.height, views.width, None, carried.float(), views.intrinsics),
    ).images[0, 0]
    assert float((image - rendered_by_model(pipeline, 0)).abs().max()) < 2e-3
