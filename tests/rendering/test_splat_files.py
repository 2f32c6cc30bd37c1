"""Splat files: published layout, round trips, other people's readers, refusals."""

from __future__ import annotations

import dataclasses
import os

import gsply
import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from safetensors.torch import load_file

from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.splat_files import PLY_FIELDS, SH_C0, SplatFileError, read_splats, write_splats


@pytest.fixture
def gaussians(scene) -> Gaussians3D:
    drawn, _ = scene(count=50, height=2, width=2, opacity=(0.01, 1.0))
    return drawn.map(lambda value: value.float())


def assert_close(read: Gaussians3D, written: Gaussians3D, tolerance: float, relative_scales: float) -> None:
    torch.testing.assert_close(read.means, written.means, rtol=0, atol=tolerance)
    torch.testing.assert_close(read.opacities, written.opacities, rtol=0, atol=tolerance)
    torch.testing.assert_close(read.colors, written.colors, rtol=0, atol=tolerance)
    torch.testing.assert_close(read.scales / written.scales, torch.ones_like(read.scales), rtol=0, atol=relative_scales)
    assert ((read.quats * written.quats).sum(-1).abs() - 1).abs().max() < tolerance


def test_ply_equals_the_published_one(reference, tmp_path):
    case = reference / "parity/tokengs/cases/base_square"
    values = load_file(case / "tensors.safetensors")["stage/gaussians"]
    gaussians = Gaussians3D(values[..., 0:3], values[..., 7:11], values[..., 4:7], values[..., 3], values[..., 11:14])
    written = write_splats(gaussians, tmp_path / "scene.ply")
    ours, published = (PlyData.read(str(path))["vertex"] for path in (tmp_path / "scene.ply", case / "gaussians.ply"))
    assert written == len(ours.data) == len(published.data)
    assert ours.data.dtype == published.data.dtype
    for name in PLY_FIELDS:
        np.testing.assert_allclose(ours[name], published[name], rtol=2e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_ply_round_trip(gaussians, tmp_path, scale):
    gaussians = dataclasses.replace(gaussians, means=scale * gaussians.means, scales=scale * gaussians.scales)
    write_splats(gaussians, tmp_path / "deep" / "scene.ply")
    read = read_splats(tmp_path / "deep" / "scene.ply")
    assert torch.equal(read.means, gaussians.means)
    assert_close(read, gaussians, 1e-5, 1e-5)


@pytest.mark.parametrize("ending", [".spz", ".splat"])
def test_compact_files_keep_the_scene_within_their_precision(gaussians, tmp_path, ending):
    path = tmp_path / f"scene{ending}"
    write_splats(gaussians, path)
    assert path.stat().st_size <= 32 * gaussians.num_gaussians
    assert_close(read_splats(path), gaussians, 0.01, 0.04)


def test_gsply_reads_what_we_write(gaussians, tmp_path):
    write_splats(gaussians, tmp_path / "scene.ply")
    data = gsply.plyread(tmp_path / "scene.ply")
    np.testing.assert_allclose(data.means, gaussians.means[0])
    np.testing.assert_allclose(data.quats, gaussians.quats[0])
    np.testing.assert_allclose(np.exp(data.scales), gaussians.scales[0], rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-data.opacities)).ravel(), gaussians.opacities[0], atol=1e-6)
    np.testing.assert_allclose(0.5 + SH_C0 * data.sh0, gaussians.colors[0], atol=1e-6)


def test_faint_and_broken_gaussians_are_left_out(gaussians, tmp_path):
    gaussians.opacities[0, :10] = 0.004
    gaussians.means[0, 10, 0] = float("nan")
    assert write_splats(gaussians, tmp_path / "scene.ply") == 39
    assert torch.equal(read_splats(tmp_path / "scene.ply").means, gaussians.means[:, 11:])
    assert write_splats(gaussians, tmp_path / "scene.ply", min_opacity=0.0) == 49


def test_extreme_values_stay_finite(gaussians, tmp_path):
    gaussians.opacities[0, 0] = 1.0
    gaussians.scales[0, 1] = 0.0
    write_splats(gaussians, tmp_path / "scene.ply")
    vertex = PlyData.read(str(tmp_path / "scene.ply"))["vertex"]
    assert all(np.isfinite(vertex[name]).all() for name in PLY_FIELDS)


def test_further_harmonics_and_normals_of_other_files_are_passed_over(gaussians, tmp_path):
    write_splats(gaussians, tmp_path / "scene.ply")
    rows = PlyData.read(str(tmp_path / "scene.ply"))["vertex"].data
    wider = np.zeros(len(rows), [("nx", "<f4"), *rows.dtype.descr, ("f_rest_0", "<f4")])
    for name in rows.dtype.names:
        wider[name] = rows[name]
    PlyData([PlyElement.describe(wider, "vertex")]).write(str(tmp_path / "wider.ply"))
    assert_close(read_splats(tmp_path / "wider.ply"), gaussians, 1e-5, 1e-5)


def test_a_failed_write_leaves_the_old_file_and_no_scraps(gaussians, tmp_path, monkeypatch):
    write_splats(gaussians, tmp_path / "scene.ply")
    before = (tmp_path / "scene.ply").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PlyData, "write", full)
    with pytest.raises(SplatFileError, match="make room"):
        write_splats(gaussians.map(lambda value: 0.5 * value), tmp_path / "scene.ply")
    assert (tmp_path / "scene.ply").read_bytes() == before
    assert os.listdir(tmp_path) == ["scene.ply"]


def test_refusals_name_the_file_and_the_way_out(gaussians, tmp_path):
    with pytest.raises(SplatFileError, match=r"scene.obj.*\.ply or \.spz or \.splat"):
        write_splats(gaussians, tmp_path / "scene.obj")
    with pytest.raises(SplatFileError, match="no Gaussian has an opacity"):
        write_splats(dataclasses.replace(gaussians, opacities=0 * gaussians.opacities), tmp_path / "scene.ply")
    with pytest.raises(SplatFileError, match=r"write a \.ply"):
        write_splats(dataclasses.replace(gaussians, scales=1e-6 * gaussians.scales), tmp_path / "scene.spz")
    with pytest.raises(SplatFileError, match="does not exist"):
        read_splats(tmp_path / "absent.ply")
    write_splats(gaussians, tmp_path / "scene.ply")
    whole = (tmp_path / "scene.ply").read_bytes()
    for ending in (".ply", ".spz", ".splat"):
        (tmp_path / f"torn{ending}").write_bytes(whole[: len(whole) // 2 - 1])
        with pytest.raises(SplatFileError, match="torn"):
            read_splats(tmp_path / f"torn{ending}")
    points = np.zeros(3, [("x", "<f4"), ("y", "<f4"), ("z", "<f4")])
    PlyData([PlyElement.describe(points, "vertex")]).write(str(tmp_path / "points.ply"))
    with pytest.raises(SplatFileError, match=r"points.ply is no 3D Gaussian file: its vertices lack f_dc_0"):
        read_splats(tmp_path / "points.ply")
