"""Views: what may be absent, what must agree, and how groups are cut and joined."""

from __future__ import annotations

import pytest
import torch

from token_methods.core.views import Views, concatenate_views


def make_views(batch: int = 2, count: int = 3, masks: bool = False) -> Views:
    return Views(
        4,
        5,
        images=torch.rand(batch, count, 3, 4, 5),
        camera_to_world=torch.eye(4).repeat(batch, count, 1, 1),
        intrinsics=torch.ones(batch, count, 4),
        masks=torch.zeros(batch, count, 1, 4, 5) if masks else None,
        frame_indices=torch.arange(batch * count).reshape(batch, count),
    )


def test_a_path_needs_no_images_and_a_picture_no_camera() -> None:
    path = Views(4, 5, camera_to_world=torch.zeros(1, 7, 4, 4), intrinsics=torch.zeros(1, 7, 4))
    assert (path.batch_size, path.num_views) == (1, 7)
    assert Views(4, 5, images=torch.zeros(6, 1, 3, 4, 5)).batch_size == 6


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"Views.images must be \[batch, views, 3, 4, 5\], got \[1, 2, 3, 5, 4\]"):
        Views(4, 5, images=torch.zeros(1, 2, 3, 5, 4))
    with pytest.raises(ValueError, match=r"Views.masks has \[batch, views\] = \[1, 3\]"):
        Views(4, 5, images=torch.zeros(1, 2, 3, 4, 5), masks=torch.zeros(1, 3, 1, 4, 5))
    with pytest.raises(ValueError, match="come together"):
        Views(4, 5, camera_to_world=torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="at least one"):
        Views(4, 5)


def test_selecting_views_and_scenes_takes_every_field_along() -> None:
    views = make_views()
    assert views.images is not None
    chosen = views.select([2, 0])
    assert chosen.images is not None
    assert chosen.frame_indices is not None
    torch.testing.assert_close(chosen.images, views.images[:, [2, 0]])
    assert chosen.frame_indices.tolist() == [[2, 0], [5, 3]]
    assert views.select(slice(1, 2)).num_views == 1
    second = views.scenes(slice(1, 2))
    assert second.frame_indices is not None
    assert second.frame_indices.tolist() == [[3, 4, 5]]


def test_joining_fills_in_masks_that_count_every_pixel() -> None:
    joined = concatenate_views([make_views(masks=True), make_views()], dim=0)
    assert joined.masks is not None
    assert joined.masks[:2].max() == 0
    assert joined.masks[2:].min() == 1
    assert concatenate_views([make_views(), make_views()], dim=1).num_views == 6


def test_groups_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes"):
        concatenate_views([make_views(), Views(8, 8, images=torch.zeros(2, 3, 3, 8, 8))], dim=0)
    with pytest.raises(ValueError, match="camera_to_world is present in some"):
        concatenate_views([make_views(), Views(4, 5, images=torch.zeros(2, 3, 3, 4, 5))], dim=0)
