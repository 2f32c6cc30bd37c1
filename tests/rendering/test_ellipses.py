"""Ellipses lie where the splat puts a Gaussian's feature, as a picture and as a drawing; footprints are the splat's weights."""

from __future__ import annotations

import base64
import io
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from token_methods.rendering.ellipses import Ellipses, draw_ellipses, picture_ellipses, svg_document
from token_methods.rendering.footprints import footprint_colors, footprints
from token_methods.rendering.gaussians2d import Gaussians2D, splat

MAP = (48, 64)
SVG = "{http://www.w3.org/2000/svg}"


def gaussians(means: Tensor, scales: Tensor, rotations: Tensor, channels: int = 1) -> Gaussians2D:
    return Gaussians2D(means, scales, rotations, torch.ones(*means.shape[:2], channels))


def single(x: float = 0.2, y: float = -0.3, scales: tuple[float, float] = (5.0, 2.0), angle: float = 0.7) -> Gaussians2D:
    return gaussians(torch.tensor([[[x, y]]]), torch.tensor([[scales]]), torch.tensor([[[angle]]]))


def several(count: int = 20, batch: int = 2) -> Gaussians2D:
    g = torch.Generator().manual_seed(3)
    means = 2 * torch.rand(batch, count, 2, generator=g) - 1
    return Gaussians2D(
        means,
        0.3 + 3 * torch.rand(batch, count, 2, generator=g),
        math.pi * torch.rand(batch, count, 1, generator=g),
        torch.randn(batch, count, 5, generator=g),
        torch.rand(batch, count, 1, generator=g),
    )


def moments(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Centroid (x, y) and covariance of an image [height, width], in its pixels, whose centres lie at +0.5."""
    height, width = weights.shape
    places = torch.stack(torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy"), -1).view(-1, 2).double()
    share = weights.double().flatten() / weights.double().sum()
    centroid = share @ places
    offset = places - centroid
    return centroid, offset.mT @ (share[:, None] * offset)


def covariance(ellipses: Ellipses) -> Tensor:
    angle, lengths = ellipses.angles[0, 0].double(), ellipses.semi_axes[0, 0].double()
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    return turn @ torch.diag(lengths**2) @ turn.mT


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5])
@pytest.mark.parametrize("times", [(1, 1), (4, 4), (2, 3)])
def test_an_ellipse_has_centroid_and_spread_of_the_splatted_feature(angle: float, times: tuple[int, int]) -> None:
    """Also where cells of the map are not square on the picture."""
    one = single(angle=angle)
    drawn = splat(one, *MAP)[0, 0].repeat_interleave(times[0], 0).repeat_interleave(times[1], 1)
    ellipses = picture_ellipses(one, MAP, (MAP[0] * times[0], MAP[1] * times[1]))
    centroid, spread = moments(drawn)
    torch.testing.assert_close(ellipses.centres[0, 0].double(), centroid, atol=0.02, rtol=0)
    # What is below 1/255 is not drawn, and a cell is a square: a little less, a little more.
    torch.testing.assert_close(covariance(ellipses), spread, atol=0.06 * max(times) ** 2 + 0.04 * float(spread.max()), rtol=0)
    assert bool(ellipses.is_drawn.all()) and bool((ellipses.semi_axes[..., 0] >= ellipses.semi_axes[..., 1]).all())


def conic(one: Gaussians2D, index: int = 0) -> Tensor:
    """Inverse covariance [2, 2] of a Gaussian in cells of the map, from the published formulas."""
    c, s = one.rotations[0, index, 0].cos(), one.rotations[0, index, 0].sin()
    turn = torch.stack([torch.stack([c, s]), torch.stack([-s, c])])
    return torch.linalg.inv(turn @ torch.diag(one.scales[0, index] ** 2) @ turn.mT)


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5])
def test_the_outline_runs_where_the_gaussian_is_one_standard_deviation_away(angle: float) -> None:
    one, times = single(angle=angle), 12
    ellipses = picture_ellipses(one, MAP, (MAP[0] * times, MAP[1] * times))
    image = draw_ellipses(ellipses, torch.ones(1, 1, 3), torch.zeros(1, 3, MAP[0] * times, MAP[1] * times))[0, 0]
    rows, columns = (image > 0.9).nonzero().unbind(-1)
    offsets = (torch.stack([columns, rows], -1) + 0.5 - ellipses.centres[0, 0]) / times
    distances = (offsets @ conic(one) * offsets).sum(-1).sqrt()
    torch.testing.assert_close(distances, torch.ones_like(distances), atol=1.5 / (2 * times), rtol=0)
    rows, columns = (image > 0.5).nonzero().unbind(-1)
    x, y = columns + 0.5 - ellipses.centres[0, 0, 0], rows + 0.5 - ellipses.centres[0, 0, 1]
    sectors = torch.atan2(y, x).mul(18 / math.pi).floor().unique()
    assert len(sectors) == 36, "it goes all the way round"


def test_a_picture_has_outlines_in_their_colours_smooth_at_the_edge() -> None:
    ellipses = picture_ellipses(single(0.0, 0.0, (6.0, 6.0)), (32, 32), (128, 128))
    canvas = torch.full((1, 3, 128, 128), 0.5)
    image = draw_ellipses(ellipses, torch.tensor([[[1.0, 0.0, 0.5]]]), canvas)
    x, y = ellipses.centres[0, 0].tolist()
    on_outline = image[0, :, int(y), int(x + 24)]
    torch.testing.assert_close(on_outline, torch.tensor([1.0, 0.0, 0.5]), atol=0.3, rtol=0)
    torch.testing.assert_close(image[0, :, int(y), int(x)], torch.tensor([0.6, 0.4, 0.5]), atol=1e-3, rtol=0)
    assert bool((image[0, :, 0, 0] == 0.5).all()) and len(image.unique()) > 20
    assert bool((canvas == 0.5).all())


def test_drawing_in_blocks_is_drawing_at_once_and_small_ones_lie_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    ellipses, colors = picture_ellipses(several(), MAP, (96, 128)), torch.rand(2, 20, 3, generator=torch.Generator().manual_seed(1))
    canvas = torch.zeros(2, 3, 96, 128)
    blocks = draw_ellipses(ellipses, colors, canvas)
    monkeypatch.setattr("token_methods.rendering.ellipses.BLOCK", 1000)
    torch.testing.assert_close(draw_ellipses(ellipses, colors, canvas), blocks, atol=1e-5, rtol=0)
    two = gaussians(torch.zeros(1, 2, 2), torch.tensor([[[2.0, 2.0], [2.4, 2.4]]]), torch.zeros(1, 2, 1))
    lying = picture_ellipses(two, (16, 16), (16, 16))
    image = draw_ellipses(lying, torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]), torch.zeros(1, 3, 16, 16))
    assert image[0, 0, 8, 10] > 0.9 and image[0, 1, 8, 10] < 0.1


def test_what_the_splat_does_not_draw_is_not_drawn() -> None:
    means = torch.tensor([[[0.0, 0.0], [math.nan, 0.0], [0.5, 0.5]]])
    three = gaussians(means, torch.tensor([[[0.0, 2.0], [2.0, 2.0], [1.0, 2.0]]]), torch.zeros(1, 3, 1))
    ellipses = picture_ellipses(three, (16, 16), (32, 32))
    assert ellipses.is_drawn.tolist() == [[False, False, True]]
    image = draw_ellipses(ellipses, torch.ones(1, 3, 3), torch.zeros(1, 3, 32, 32))
    only = draw_ellipses(
        picture_ellipses(three.map(lambda v: v[:, 2:]), (16, 16), (32, 32)), torch.ones(1, 1, 3), torch.zeros(1, 3, 32, 32)
    )
    torch.testing.assert_close(image, only)
    assert svg_document(ellipses, torch.ones(1, 3, 3), ["a", "b", "c"], (32, 32)).count("<ellipse ") == 1


def test_svg_says_the_same_as_the_picture() -> None:
    one = several(8, 1)
    size = (MAP[0] * 4, MAP[1] * 4)
    ellipses = picture_ellipses(one, MAP, size)
    colors = torch.rand(1, 8, 3, generator=torch.Generator().manual_seed(1))
    titles = [f"token {i}, code <{i}>" for i in range(8)]
    root = ElementTree.fromstring(svg_document(ellipses, colors, titles, size))
    assert root.get("viewBox") == f"0 0 {size[1]} {size[0]}"
    found = root.findall(f"{SVG}ellipse")
    areas = [float(e.get("rx", 0)) * float(e.get("ry", 0)) for e in found]
    assert len(found) == 8 and areas == sorted(areas, reverse=True)
    for element in found:
        title = element.find(f"{SVG}title")
        assert title is not None and title.text in titles
        index = titles.index(title.text)
        x, y, degrees = (float(v) for v in re.findall(r"[-\d.]+", element.get("transform", "")))
        torch.testing.assert_close(torch.tensor([x, y]), ellipses.centres[0, index], atol=1e-3, rtol=0)
        # SVG turns x towards y. One standard deviation along the longer axis: exp(-1/2) of the peak, at the end of the ellipse's own axis.
        end = torch.tensor([x, y]) + float(element.get("rx", 0)) * torch.tensor(
            [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]
        )
        offset = (end - torch.tensor([x, y])) / 4
        assert float(offset @ conic(one, index) @ offset) == pytest.approx(1, abs=1e-2)
        assert element.get("fill") == "#" + bytes((colors[0, index] * 255).round().to(torch.uint8).tolist()).hex()


def test_svg_carries_the_picture_behind() -> None:
    picture = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
    root = ElementTree.fromstring(svg_document(picture_ellipses(single(), MAP, (6, 8)), torch.ones(1, 1, 3), ["t"], (6, 8), picture))
    behind = root.find(f"{SVG}image")
    assert behind is not None and list(root).index(behind) < list(root).index(root.find(f"{SVG}ellipse"))  # type: ignore[arg-type]
    start, _, code = behind.get("href", "").partition(",")
    assert start == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
    np.testing.assert_array_equal(pixels, (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def test_svg_refuses_a_batch_and_missing_titles() -> None:
    with pytest.raises(ValueError, match="one picture with a title for each ellipse, got 2 with 20 and 1 titles"):
        svg_document(picture_ellipses(several(), MAP, MAP), torch.ones(2, 20, 3), ["x"], MAP)


# Footprints.


def test_features_summed_by_footprints_are_the_splat() -> None:
    some = several()
    weights = footprints(some, *MAP)
    summed = torch.einsum("bnhw,bnc->bchw", weights, some.features)
    torch.testing.assert_close(summed, splat(some, *MAP), atol=1e-5, rtol=1e-5)


def test_a_token_has_the_mean_colour_under_its_footprint() -> None:
    """Red left, blue right: a Gaussian on the border is half of each; one on a side has its colour."""
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, 0, :, :32], picture[:, 2, :, 32:] = 1, 1
    border = 2 * (7.5 / 16) - 1  # between the eighth and the ninth of sixteen cells
    three = gaussians(torch.tensor([[[-0.5, 0.0], [border, 0.0], [0.5, 0.0]]]), torch.full((1, 3, 2), 0.7), torch.zeros(1, 3, 1))
    colors = footprint_colors(footprints(three, 16, 16), picture_ellipses(three, (16, 16), (64, 64)).centres, picture)
    torch.testing.assert_close(colors[0], torch.tensor([[1.0, 0, 0], [0.5, 0, 0.5], [0, 0, 1.0]]), atol=1e-5, rtol=0)


def test_a_gaussian_between_the_cells_has_the_colour_at_its_centre() -> None:
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    middle = 2 * (4.5 / 16) - 1
    two = gaussians(torch.tensor([[[middle, middle], [5.0, 5.0]]]), torch.full((1, 2, 2), 0.1), torch.zeros(1, 2, 1))
    weights = footprints(two, 16, 16)
    assert float(weights.sum()) == 0
    colors = footprint_colors(weights, picture_ellipses(two, (16, 16), (64, 64)).centres, picture)
    torch.testing.assert_close(colors[0, 0], picture[0, :, 19:21, 19:21].mean(dim=(1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(colors[0, 1], picture[0, :, 63, 63])
