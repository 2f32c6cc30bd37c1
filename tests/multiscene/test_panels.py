"""Panels: what is in which row, and pictures written whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from token_methods.core.views import SceneBatch, Views
from token_methods.multiscene.panels import depth_colours, error_colours, save_image, scene_panels
from token_methods.rendering.rasterize import RenderedViews

SIZE = 4


def group(count: int) -> tuple[SceneBatch, RenderedViews]:
    """View i of the target is grey of value i / count; the prediction is exact but for the last view."""
    grey = (torch.arange(count) / count)[None, :, None, None, None].expand(1, count, 3, SIZE, SIZE)
    predicted = grey.clone()
    predicted[:, -1] = 0.0
    depths = torch.linspace(1, 2, count)[None, :, None, None, None].expand(1, count, 1, SIZE, SIZE)
    batch = SceneBatch(Views(SIZE, SIZE, torch.ones(1, 3, 3, SIZE, SIZE)), Views(SIZE, SIZE, grey), ("scene",))
    return batch, RenderedViews(predicted, depths, torch.ones(1, count, 1, SIZE, SIZE))


def test_rows_are_target_prediction_depth_and_error() -> None:
    panels = scene_panels(*group(2))
    assert panels["context"].shape == (SIZE, 3 * SIZE, 3)
    comparison = panels["comparison"]
    assert comparison.shape == (4 * SIZE, 2 * SIZE, 3)
    target, prediction, depth, error = comparison.split(SIZE)
    assert torch.equal(target[0, :, 0], torch.tensor([0.0] * SIZE + [0.5] * SIZE))
    assert torch.equal(prediction[0, :, 0], torch.zeros(2 * SIZE))
    assert not torch.equal(depth[:, :SIZE], depth[:, SIZE:])
    assert error[:, :SIZE].max() < 0.05 < error[:, SIZE:].mean(), "black where it is right, bright where it is wrong"


def test_of_many_views_eight_are_shown_first_and_last_among_them() -> None:
    comparison = scene_panels(*group(50))["comparison"]
    assert comparison.shape == (4 * SIZE, 8 * SIZE, 3)
    assert comparison[0, 0, 0] == 0.0
    assert comparison[0, -1, 0] == torch.tensor(49 / 50)


def test_depth_is_black_where_nothing_was_hit() -> None:
    depths, alphas = torch.rand(2, 1, SIZE, SIZE) + 1, torch.ones(2, 1, SIZE, SIZE)
    alphas[:, :, 0] = 0.0
    colours = depth_colours(depths, alphas)
    assert colours[:, :, 0].abs().max() == 0.0
    assert (colours[:, :, 1:].amax(dim=1) > 0).all()
    assert depth_colours(torch.zeros(2, 1, SIZE, SIZE), torch.zeros(2, 1, SIZE, SIZE)).abs().max() == 0.0


def test_near_and_far_have_the_ends_of_the_colour_scale() -> None:
    depths = torch.linspace(1, 100, SIZE * SIZE).reshape(1, 1, SIZE, SIZE)
    red, _, blue = depth_colours(depths, torch.ones_like(depths))[0].unbind()
    assert red[0, 0] > blue[0, 0], "near is red"
    assert blue[-1, -1] > red[-1, -1], "far is blue"


def test_an_error_of_half_the_range_has_the_brightest_colour() -> None:
    black, half, full = torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.5), torch.ones(1, 3, 1, 1)
    assert torch.equal(error_colours(half, black), error_colours(full, black))
    assert error_colours(black, black).max() < 0.05


def test_a_picture_on_disk_has_the_rounded_values(tmp_path: Path) -> None:
    image = torch.rand(5, 7, 3) * 1.4 - 0.2
    save_image(image, tmp_path / "deep" / "picture.png")
    expected = (image.clamp(0, 1) * 255).round().byte().numpy()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep" / "picture.png")), expected)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["picture.png"]
