"""Every camera conversion against nerfstudio's own cameras, and against poses that the published code normalised."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from safetensors.torch import load_file
from torch import Tensor

from token_methods.core.cameras import (
    Similarity,
    camera_rays,
    first_camera_frame,
    intrinsics_matrix,
    mean_camera_frame,
    mirror,
    normalise_batch,
    opencv_from_opengl,
    opengl_from_opencv,
    plucker_rays,
    rigid_inverse,
)
from token_methods.core.views import SceneBatch, Views

HEIGHT, WIDTH = 6, 9


def random_rotations(*shape: int) -> Tensor:
    rotation, triangle = torch.linalg.qr(torch.randn(*shape, 3, 3, dtype=torch.float64))
    rotation = rotation * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return rotation * torch.linalg.det(rotation)[..., None, None]


def random_opengl_poses(*shape: int) -> Tensor:
    return torch.cat([random_rotations(*shape), torch.randn(*shape, 3, 1, dtype=torch.float64)], dim=-1)


def random_intrinsics(*shape: int) -> Tensor:
    return torch.rand(*shape, 4, dtype=torch.float64) * 3 + torch.tensor([7.0, 9.0, 3.0, 1.5], dtype=torch.float64)


def random_views(batch: int = 2, count: int = 3) -> Views:
    poses = opencv_from_opengl(random_opengl_poses(batch, count))
    return Views(HEIGHT, WIDTH, camera_to_world=poses, intrinsics=random_intrinsics(batch, count))


def random_similarity(batch: int, scale: float) -> Similarity:
    return Similarity(random_rotations(batch), torch.randn(batch, 3, dtype=torch.float64), torch.full((batch,), scale, dtype=torch.float64))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def test_rays_equal_nerfstudios() -> None:
    opengl = random_opengl_poses(4).float()
    intrinsics = random_intrinsics(4).float()
    fx, fy, cx, cy = intrinsics.unbind(-1)
    theirs = Cameras(opengl, fx, fy, cx, cy, width=WIDTH, height=HEIGHT)
    views = Views(HEIGHT, WIDTH, camera_to_world=opencv_from_opengl(opengl)[None], intrinsics=intrinsics[None])
    origins, directions = camera_rays(views)
    for index in range(4):
        bundle = theirs.generate_rays(camera_indices=index)
        torch.testing.assert_close(origins[0, index].permute(1, 2, 0), bundle.origins)
        torch.testing.assert_close(directions[0, index].permute(1, 2, 0), bundle.directions, atol=2e-6, rtol=0)


def test_opengl_and_opencv_are_each_others_inverse() -> None:
    opengl = random_opengl_poses(5)
    opencv = opencv_from_opengl(opengl)
    torch.testing.assert_close(opengl_from_opencv(opencv), opengl)
    torch.testing.assert_close(opencv_from_opengl(torch.cat([opengl, opencv[:, 3:]], dim=1)), opencv)
    # The camera looks along +z here and along -z there: the same way in the world.
    torch.testing.assert_close(opencv[:, :3, 2], -opengl[:, :, 2])


def test_rigid_inverse_undoes_a_pose() -> None:
    pose = opencv_from_opengl(random_opengl_poses(5))
    torch.testing.assert_close(rigid_inverse(pose) @ pose, torch.eye(4, dtype=torch.float64).expand(5, 4, 4))


def test_points_along_a_ray_project_to_its_pixel_centre() -> None:
    views = random_views()
    origins, directions = camera_rays(views)
    points = (origins + 2.5 * directions).flatten(3)
    camera = rigid_inverse(views.camera_to_world)
    local = camera[..., :3, :3] @ points + camera[..., :3, 3:]
    pixels = intrinsics_matrix(views.intrinsics) @ local
    pixels = (pixels[..., :2, :] / pixels[..., 2:, :]).unflatten(-1, (HEIGHT, WIDTH))
    torch.testing.assert_close(pixels[..., 0, 2, 5], torch.full((2, 3), 5.5, dtype=torch.float64))
    torch.testing.assert_close(pixels[..., 1, 2, 5], torch.full((2, 3), 2.5, dtype=torch.float64))


def test_plucker_moment_is_the_same_for_every_point_of_a_ray() -> None:
    views = random_views()
    origins, directions = camera_rays(views)
    rays = plucker_rays(views)
    torch.testing.assert_close(rays[:, :, :3], torch.cross(origins - 7 * directions, directions, dim=2))
    torch.testing.assert_close(rays[:, :, 3:].norm(dim=2), torch.ones(2, 3, HEIGHT, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_similarity_moves_points_and_cameras_together(scale: float) -> None:
    similarity, views = random_similarity(2, scale), random_views()
    origins, directions = camera_rays(views)
    moved_origins, moved_directions = camera_rays(similarity.views(views))
    points = (origins + 3 * directions).flatten(3).transpose(2, 3).flatten(1, 2)
    moved = (moved_origins + 3 * scale * moved_directions).flatten(3).transpose(2, 3).flatten(1, 2)
    torch.testing.assert_close(similarity.points(points), moved)
    torch.testing.assert_close(similarity.inverse().points(moved), points)
    after = random_similarity(2, 0.5)
    torch.testing.assert_close(similarity.then(after).points(points), after.points(moved))
    nothing = Similarity.identity(2).to(torch.float64)
    torch.testing.assert_close(nothing.views(views).camera_to_world, views.camera_to_world)


def test_dataparser_frame_is_the_one_that_nerfstudio_undoes() -> None:
    transform, scale = random_opengl_poses(1)[0].float(), 0.37
    original = opencv_from_opengl(random_opengl_poses(1, 4))
    dataset = Similarity.from_dataparser(transform, scale).poses(original)
    outputs = DataparserOutputs([], Cameras(opengl_from_opencv(dataset)[0].float(), 1.0, 1.0, 1.0, 1.0))
    outputs.dataparser_transform, outputs.dataparser_scale = transform, scale
    undone = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")
    torch.testing.assert_close(undone, opengl_from_opencv(original)[0].float(), atol=1e-5, rtol=0)


def test_first_camera_frame_puts_the_first_camera_at_the_origin() -> None:
    views = random_views()
    poses = first_camera_frame(views.camera_to_world).views(views).camera_to_world
    torch.testing.assert_close(poses[:, 0], torch.eye(4, dtype=torch.float64).expand(2, 4, 4))


def test_mean_camera_frame_does_not_depend_on_the_world_it_starts_in() -> None:
    views = random_views()
    moved = random_similarity(2, 1.0).views(views)
    expected = mean_camera_frame(views.camera_to_world).views(views).camera_to_world
    torch.testing.assert_close(mean_camera_frame(moved.camera_to_world).views(moved).camera_to_world, expected)
    torch.testing.assert_close(expected[..., :3, 3].mean(dim=1), torch.zeros(2, 3, dtype=torch.float64))
    # Mean forward is z; mean down has no x.
    torch.testing.assert_close(expected[..., :2, 2].mean(dim=1), torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(expected[..., 0, 1].mean(dim=1), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("case", ["base_square", "latent_ssim"])
def test_nerfstudio_poses_become_what_the_published_code_computed(case: str, reference: Path) -> None:
    folder = reference / "parity" / "tokengs"
    told = json.loads((folder / "nerfstudio_camera_mapping.json").read_text())[case]
    tensors = load_file(folder / "cases" / case / "tensors.safetensors")
    poses = opencv_from_opengl(torch.tensor(told["camera_to_worlds_opengl_3x4"], dtype=torch.float64))[None]
    count = told["num_input_views"]
    frame = {"first_cam": first_camera_frame, "mean_cam": mean_camera_frame}[told["method"]](poses[:, :count])
    scale = torch.tensor([told["scene_scale"] / told["dataparser_scale"]], dtype=torch.float64)
    poses = Similarity(frame.rotation, scale[:, None] * frame.translation, scale).poses(poses).float()
    torch.testing.assert_close(poses[:, :count], tensors["batch/cam_to_world_input"], atol=5e-6, rtol=0)
    torch.testing.assert_close(rigid_inverse(poses[:, count:]).transpose(-1, -2), tensors["batch/cam_view"], atol=5e-6, rtol=0)


def test_normalising_a_batch_scales_its_lengths() -> None:
    views = random_views()
    batch = SceneBatch(views, views, ("a", "b"), unit=torch.tensor([1.0, 2.0]), sparse_depth=torch.tensor([3.0, math.nan]))
    similarity = random_similarity(2, 4.0)
    normalised = normalise_batch(batch, similarity)
    torch.testing.assert_close(normalised.target.camera_to_world, similarity.poses(views.camera_to_world))
    torch.testing.assert_close(normalised.unit, torch.tensor([4.0, 8.0], dtype=torch.float64))
    torch.testing.assert_close(normalised.sparse_depth, torch.tensor([12.0, math.nan], dtype=torch.float64), equal_nan=True)


def test_mirror_image_is_seen_by_the_mirrored_camera() -> None:
    views = random_views()
    mirrored = mirror(views)
    for before, after in zip(camera_rays(views), camera_rays(mirrored), strict=True):
        reflected = before * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)[:, None, None]
        torch.testing.assert_close(after, reflected.flip(-1))
    torch.testing.assert_close(mirror(mirrored).intrinsics, views.intrinsics)


def test_published_mirror_keeps_the_principal_point_and_flips_the_picture() -> None:
    images = torch.rand(2, 3, 3, HEIGHT, WIDTH)
    views = random_views()
    views = Views(HEIGHT, WIDTH, images, views.camera_to_world, views.intrinsics, masks=images[:, :, :1])
    mirrored = mirror(views, mirror_principal_point=False)
    torch.testing.assert_close(mirrored.intrinsics, views.intrinsics)
    torch.testing.assert_close(mirrored.images, images.flip(-1))
    torch.testing.assert_close(mirrored.masks, images[:, :, :1].flip(-1))
