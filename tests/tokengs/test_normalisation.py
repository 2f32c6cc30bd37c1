"""The frame that TokenGS works in, by what each way of scaling says about the context cameras."""

from __future__ import annotations

import pytest
import torch

from token_methods.core.cameras import Similarity, normalise_batch
from token_methods.core.views import SceneBatch, Views
from token_methods.rendering.gaussians3d import rotation_matrices
from token_methods.tokengs.normalisation import DEPTH_PER_BASELINE, CameraNormalisation, CameraScale, network_frame


def two_scenes(unit: float = 1.0, sparse_depth: float = float("nan")) -> SceneBatch:
    generator = torch.Generator().manual_seed(3)

    def views(count: int) -> Views:
        poses = torch.eye(4).repeat(2, count, 1, 1)
        poses[..., :3, :3] = rotation_matrices(torch.tensor([3.0, 0, 0, 0]) + torch.randn(2, count, 4, generator=generator))
        poses[..., :3, 3] = 5 + torch.randn(2, count, 3, generator=generator)
        return Views(4, 4, camera_to_world=poses, intrinsics=torch.tensor([4.0, 4, 2, 2]).repeat(2, count, 1))

    return SceneBatch(views(3), views(2), ("a", "b"), unit=torch.full((2,), unit), sparse_depth=torch.full((2,), sparse_depth))


@pytest.mark.parametrize("normalisation", ["first_cam", "mean_cam"])
def test_scales_of_the_publication(normalisation: CameraNormalisation) -> None:
    batch, size = two_scenes(), 0.7

    def positions(method: CameraScale) -> torch.Tensor:
        poses = normalise_batch(batch, network_frame(batch, normalisation, method, size)).context.camera_to_world
        assert poses is not None
        return poses[..., :3, 3]

    for scene in range(2):
        distance, bound, constant = (positions(method)[scene] for method in ("distance", "bound", "constant"))
        assert (distance - distance[0]).norm(dim=-1).max() == pytest.approx(size)
        assert bound.abs().max() == pytest.approx(size)
        original = batch.context.camera_to_world[scene, :, :3, 3]
        assert torch.allclose(torch.cdist(constant, constant), size * torch.cdist(original, original), atol=1e-5)


@pytest.mark.parametrize("method", ["constant", "distance", "bound", "sparse_depth"])
@pytest.mark.parametrize("normalisation", ["first_cam", "mean_cam"])
def test_the_network_sees_the_same_whatever_the_dataset_frame(normalisation: CameraNormalisation, method: CameraScale) -> None:
    """A turned, moved and scaled dataset frame, whose unit and depths say so."""
    batch = two_scenes(sparse_depth=4.0)
    turn = rotation_matrices(torch.tensor([[0.3, -0.4, 0.5, 0.7]])).expand(2, 3, 3)
    moved = normalise_batch(batch, Similarity(turn, torch.tensor([[1.0, -2.0, 3.0]]).expand(2, 3), torch.tensor([0.2, 30.0])))
    for group in ("context", "target"):
        expected, found = (
            getattr(normalise_batch(scenes, network_frame(scenes, normalisation, method, 1.5)), group).camera_to_world
            for scenes in (batch, moved)
        )
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_scenes_without_sparse_points_take_their_depth_from_the_baseline() -> None:
    batch = two_scenes()
    by_depth, by_distance = (network_frame(batch, "mean_cam", method, 1.0).scale for method in ("sparse_depth", "distance"))
    torch.testing.assert_close(by_depth, by_distance / DEPTH_PER_BASELINE)


def test_cameras_are_needed() -> None:
    images = Views(4, 4, images=torch.zeros(1, 2, 3, 4, 4))
    with pytest.raises(ValueError, match="needs context views with cameras"):
        network_frame(SceneBatch(images, images, ("a",)), "first_cam", "constant", 1.0)
