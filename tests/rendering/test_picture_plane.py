"""A picture in the plane z = 0 as cameras see it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from token_methods.core.views import Views
from token_methods.rendering.picture_plane import view_of_picture

HEIGHT, WIDTH = 12, 16


def picture(batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def camera(
    position: tuple[float, float, float] = (0.0, 0.0, 1.0),
    turn: float = 0.0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    focal: float = HEIGHT,
) -> Views:
    """It looks down from `position`, turned about the vertical by `turn`; OpenCV axes: x right, y down, z forward."""
    down = torch.tensor([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]])
    c, s = math.cos(turn), math.sin(turn)
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[c, 0, s], [0, 1.0, 0], [-s, 0, c]]) @ down
    pose[:3, 3] = torch.tensor(position)
    intrinsics = torch.tensor([focal, focal, size[1] / 2, size[0] / 2])
    return Views(*size, camera_to_world=pose[None, None], intrinsics=intrinsics[None, None])


def test_the_nominal_camera_sees_every_pixel_where_it_is() -> None:
    seen = view_of_picture(picture(), camera())
    torch.testing.assert_close(seen.images[:, 0], picture(), atol=1e-6, rtol=0)
    assert bool((seen.alphas == 1).all())
    torch.testing.assert_close(seen.depths, torch.ones_like(seen.depths))


def test_a_camera_further_away_sees_it_smaller_before_the_background() -> None:
    seen = view_of_picture(picture(), camera((0.0, 0.0, 2.0)), background=(0.1, 0.2, 0.3))
    assert float(seen.alphas.sum()) == HEIGHT * WIDTH / 4
    torch.testing.assert_close(seen.images[0, 0, :, 0, 0], torch.tensor([0.1, 0.2, 0.3]))
    blocks = picture().unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(seen.images[:, 0, :, 3:9, 4:12], blocks, atol=1e-5, rtol=0)
    assert float(seen.depths[0, 0, 0, 0, 0]) == 0 and float(seen.depths[0, 0, 0, 6, 8]) == pytest.approx(2)


def test_a_camera_moved_up_and_right_sees_it_moved_down_and_left() -> None:
    seen = view_of_picture(picture(), camera((2 / HEIGHT, 3 / HEIGHT, 1.0)))
    torch.testing.assert_close(seen.images[0, 0, :, 3:, : WIDTH - 2], picture()[0, :, : HEIGHT - 3, 2:], atol=1e-5, rtol=0)
    assert float(seen.alphas[..., :3, :].sum()) == 0 and float(seen.alphas[..., WIDTH - 2 :].sum()) == 0


def test_from_behind_it_is_mirrored() -> None:
    seen = view_of_picture(picture(), camera((0.0, 0.0, -1.0), turn=math.pi))
    torch.testing.assert_close(seen.images[:, 0], picture().flip(-1), atol=1e-5, rtol=0)


def test_a_camera_that_looks_away_sees_the_background() -> None:
    seen = view_of_picture(picture(), camera((0.0, 0.0, 1.0), turn=math.pi))
    assert float(seen.alphas.sum()) == 0 and bool((seen.images == 0.5).all())


def test_a_slanted_view_is_the_intersection_of_rays_with_the_plane() -> None:
    """A picture whose red is x: every pixel shows where its ray meets the plane."""
    ramp = torch.zeros(1, 3, HEIGHT, WIDTH)
    ramp[:, 0] = (torch.arange(WIDTH) + 0.5) / WIDTH
    views = camera((0.3, 0.1, 0.9), turn=0.4, size=(9, 11), focal=20.0)
    seen = view_of_picture(ramp, views)
    assert views.camera_to_world is not None
    pose = views.camera_to_world[0, 0]
    for row, column in ((4, 5), (2, 8), (7, 1)):
        ray = pose[:3, :3] @ torch.tensor([(column + 0.5 - 5.5) / 20, (row + 0.5 - 4.5) / 20, 1.0])
        depth = -pose[2, 3] / ray[2]
        x = float(pose[0, 3] + depth * ray[0])
        assert float(seen.images[0, 0, 0, row, column]) == pytest.approx(x * HEIGHT / WIDTH + 0.5, abs=1e-4)
        assert float(seen.depths[0, 0, 0, row, column]) == pytest.approx(float(depth), rel=1e-4)


def test_every_picture_of_a_batch_has_its_own_cameras() -> None:
    one, far = camera(), camera((0.0, 0.0, 2.0))
    assert one.camera_to_world is not None and far.camera_to_world is not None and one.intrinsics is not None
    poses = torch.cat([torch.cat([one.camera_to_world, far.camera_to_world], 1), torch.cat([far.camera_to_world, one.camera_to_world], 1)])
    both = view_of_picture(picture(2), Views(HEIGHT, WIDTH, camera_to_world=poses, intrinsics=one.intrinsics.expand(2, 2, 4)))
    for scene in range(2):
        for view, alone in enumerate((one, far) if scene == 0 else (far, one)):
            torch.testing.assert_close(both.images[scene, view], view_of_picture(picture(2)[scene : scene + 1], alone).images[0, 0])


def test_views_without_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match="these views have none"):
        view_of_picture(picture(), Views(HEIGHT, WIDTH, images=picture()[:, None]))
