"""Layers about a picture's tokens, as the model's outputs, with the viewer's controls, and as nerfstudio's scans find them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox, SceneBox
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerElement
from torch import Tensor

from token_methods.core.metrics import psnr
from token_methods.core.views import SceneBatch, Views
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.layers import PictureLayers, only
from token_methods.gaussiantoken.model import GaussianTokenModel, GaussianTokenModelConfig
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.multiscene.image_sets import picture_outputs
from token_methods.multiscene.plain_errors import SettingsError

TINY = PRESETS["tiny"].architecture
GRID = replace(TINY, embedder=None)


def made_model(architecture: Any = TINY) -> GaussianTokenModel:
    """Untrained, with a codebook that tells codes apart, and a picture in hand."""
    torch.manual_seed(0)
    box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    config = GaussianTokenModelConfig(architecture=architecture, average_decay=None)
    model: GaussianTokenModel = config.setup(scene_box=box, num_train_data=1, metadata={}, device="cpu").eval()
    network = model.network
    assert isinstance(network, GaussianTokenNetwork)
    with torch.no_grad():
        network.quantize.codebook.normal_()
    model.scene = model.reconstruct(batch(picture(1)))
    return model


def picture(seed: int) -> Tensor:
    """uint8 [3, 32, 32]."""
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def batch(pixels: Tensor) -> SceneBatch:
    views = Views(32, 32, images=pixels[None, None].float() / 255)
    return SceneBatch(views, views, ("picture",))


def camera(distance: float = 1.0, size: int = 32) -> Cameras:
    cameras = picture_outputs([Path("picture")], size, size).cameras[0:1]
    cameras.camera_to_worlds[..., 2, 3] = distance
    return cameras


def rows(image: Tensor) -> Tensor:
    return image[0].permute(1, 2, 0)


@pytest.fixture(scope="module")
def layers() -> PictureLayers:
    return made_model().layers()


@pytest.fixture
def model() -> GaussianTokenModel:
    return made_model()


# Layers.


def test_error_is_the_mean_absolute_difference_of_reconstruction_and_input(layers: PictureLayers) -> None:
    shown = layers.pictures(layers.count, 0)
    assert list(shown) == ["rgb", "input", "error", "ellipses", "token"]
    torch.testing.assert_close(shown["rgb"], layers.reconstruction)
    torch.testing.assert_close(shown["input"], picture(1)[None] / 255)
    torch.testing.assert_close(shown["error"][:, :1], (shown["rgb"] - shown["input"]).abs().mean(dim=1, keepdim=True))


def test_the_most_important_tokens_are_those_that_add_most_to_the_map() -> None:
    model = made_model()
    layers, network = model.layers(), model.network
    assert isinstance(network, GaussianTokenNetwork)
    every = torch.arange(layers.count)
    added = torch.stack([network.feature_map(only(layers.tokens, every == number)).norm(dim=1).sum() for number in every])
    torch.testing.assert_close(layers.importance, added, atol=1e-4, rtol=1e-4)
    best = added.argsort(descending=True)[:5]
    expected = model.decode(only(layers.tokens, torch.isin(every, best))).images
    torch.testing.assert_close(layers.pictures(5, 0)["rgb"], expected)


def test_the_token_layer_is_what_the_picture_loses_without_it() -> None:
    model = made_model()
    layers = model.layers()
    chosen = int(layers.importance.argmax())
    with torch.no_grad():
        without = model.decode(only(layers.tokens, torch.arange(layers.count) != chosen)).images
    expected = (layers.reconstruction - without).abs().mean(dim=1, keepdim=True)
    assert float(expected.max()) > 1e-3
    torch.testing.assert_close(layers.pictures(layers.count, chosen)["token"][:, :1], expected)


def test_a_token_that_is_not_kept_changes_nothing(layers: PictureLayers) -> None:
    least = int(layers.importance.argmin())
    assert float(layers.pictures(4, least)["token"].abs().max()) == 0


def test_counts_beyond_the_tokens_mean_the_nearest(layers: PictureLayers) -> None:
    for asked, meant in (((99, 99), (16, 15)), ((0, -3), (1, 0))):
        for one, other in zip(layers.pictures(*asked).values(), layers.pictures(*meant).values()):
            torch.testing.assert_close(one, other)


def test_a_single_token_and_its_absence_are_pictures(layers: PictureLayers) -> None:
    """Without the only token the map is empty."""
    shown = layers.pictures(1, int(layers.importance.argmax()))
    assert all(bool(image.isfinite().all()) for image in shown.values())
    assert float(shown["token"].max()) > 0


def test_layers_asked_for_again_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = made_model().layers()
    first = layers.pictures(7, 3)
    monkeypatch.setattr(layers, "_decode", None)
    assert all(one is other for one, other in zip(first.values(), layers.pictures(7, 3).values()))


def test_ellipses_of_kept_tokens_alone_are_drawn(layers: PictureLayers) -> None:
    def lit(kept: int) -> int:
        shown = layers.pictures(kept, 0)
        enlarged = torch.nn.functional.interpolate(shown["rgb"], scale_factor=16, mode="nearest")
        return int(((shown["ellipses"] - 0.3 * enlarged).abs() > 0.02).any(dim=1).sum())

    assert layers.pictures(3, 0)["ellipses"].shape == (1, 3, 512, 512)
    assert 0 < lit(1) < lit(4) < lit(16)


def test_svg_numbers_the_tokens_and_names_their_codes(layers: PictureLayers) -> None:
    root = ElementTree.fromstring(layers.svg())
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(map(str, titles)) == sorted(f"token {n}, code {code}" for n, code in enumerate(layers.tokens.indices[0].tolist()))
    assert root.get("viewBox") == "0 0 32 32"


def test_cells_of_a_grid_are_tokens_without_ellipses() -> None:
    model = made_model(GRID)
    layers, network = model.layers(), model.network
    assert isinstance(network, GaussianTokenNetwork)
    shown = layers.pictures(layers.count, 9)
    assert list(shown) == ["rgb", "input", "error", "token"] and layers.count == 64
    assert float(shown["token"].max()) > 0
    one = network.feature_map(only(layers.tokens, torch.arange(64) == 9))
    assert one.abs().sum(dim=1)[0].nonzero().tolist() == [[1, 1]]
    assert layers.splats().num_gaussians == 0
    with pytest.raises(ValueError, match="no ellipses"):
        layers.svg()


# What cameras see.


def test_the_nominal_camera_sees_the_layers_pixel_by_pixel(model: GaussianTokenModel) -> None:
    outputs, shown = model.get_outputs_for_camera(camera()), model.layers().pictures(16, 0)
    assert list(outputs) == ["rgb", "input", "error", "ellipses", "token", "depth", "accumulation"]
    for name in ("rgb", "input"):
        torch.testing.assert_close(outputs[name], rows(shown[name]), atol=1e-6, rtol=0)
    for name in ("error", "token"):
        torch.testing.assert_close(outputs[name], rows(shown[name])[..., :1], atol=1e-6, rtol=0)
    assert bool((outputs["accumulation"] == 1).all()) and bool((outputs["depth"] == 1).all())
    small = torch.nn.functional.interpolate(shown["ellipses"], (32, 32), mode="area")
    assert float(psnr(outputs["ellipses"].permute(2, 0, 1)[None], small)) > 25, "fine lines are averaged, not picked"


def test_beside_the_picture_is_the_background(model: GaussianTokenModel) -> None:
    model.set_background(torch.tensor([0.2, 0.4, 0.6]))
    outputs = model.get_outputs_for_camera(camera(distance=2.0))
    for name in ("rgb", "input", "ellipses"):
        torch.testing.assert_close(outputs[name][0, 0], torch.tensor([0.2, 0.4, 0.6]))
    assert float(outputs["error"][0, 0]) == 0 and float(outputs["accumulation"].mean()) == 0.25
    assert float(outputs["depth"].max()) == 2


def test_a_crop_box_cuts_the_picture(model: GaussianTokenModel) -> None:
    model.set_background(torch.tensor([0.2, 0.4, 0.6]))
    right = OrientedBox.from_params((0.5, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 2.0, 1.0))
    outputs, whole = model.get_outputs_for_camera(camera(), obb_box=right), model.get_outputs_for_camera(camera())
    torch.testing.assert_close(outputs["rgb"][:, 16:], whole["rgb"][:, 16:])
    torch.testing.assert_close(outputs["rgb"][:, :16], torch.tensor([0.2, 0.4, 0.6]).expand(32, 16, 3))
    assert float(outputs["accumulation"].mean()) == 0.5


def test_layers_follow_the_scene_in_hand_and_the_controls(model: GaussianTokenModel) -> None:
    before = model.layers()
    assert model.layers() is before
    model.keep_tokens.value = 3
    assert model.layers() is before
    torch.testing.assert_close(model.get_outputs_for_camera(camera())["rgb"], rows(before.pictures(3, 0)["rgb"]), atol=1e-6, rtol=0)
    model.scene = model.reconstruct(batch(picture(2)))
    assert model.layers() is not before
    torch.testing.assert_close(model.get_outputs_for_camera(camera())["input"], rows(picture(2)[None] / 255), atol=1e-6, rtol=0)


def test_without_a_scene_nothing_is_shown(model: GaussianTokenModel) -> None:
    model.scene = None
    with pytest.raises(RuntimeError, match="no scene is in hand"):
        model.get_outputs_for_camera(camera())
    assert model.num_points == 0 and model.means.shape == (0, 3) and model.opacities.shape == (0, 1)


def test_a_camera_that_carries_a_picture_sees_that_one(model: GaussianTokenModel) -> None:
    """And leaves the scene in hand."""
    in_hand = model.scene
    cameras = picture_outputs([Path("a"), Path("b"), Path("c")], 32, 32).cameras
    cameras.metadata = {"picture": torch.arange(3)[:, None], "pictures": lambda number: picture(10 + number)}
    for number in (2, 0):
        seen = model.get_outputs_for_camera(cameras[number : number + 1])
        torch.testing.assert_close(seen["input"], rows(picture(10 + number)[None] / 255), atol=1e-6, rtol=0)
        expected = model.reconstruct(batch(picture(10 + number))).representation.images
        torch.testing.assert_close(seen["rgb"], rows(expected), atol=1e-6, rtol=0)
    assert model.scene is in_hand
    torch.testing.assert_close(model.get_outputs_for_camera(camera())["input"], rows(picture(1)[None] / 255), atol=1e-6, rtol=0)


# What nerfstudio reads.


def test_the_exporters_faces_are_the_tokens_in_the_plane(model: GaussianTokenModel) -> None:
    splats = model.layers().splats()
    assert model.num_points == len(model.means) == 16
    torch.testing.assert_close(model.means, splats.means[0])
    torch.testing.assert_close(model.scales.exp(), splats.scales[0])
    torch.testing.assert_close(model.opacities.sigmoid()[:, 0], splats.opacities[0])
    torch.testing.assert_close(model.colors, model.layers().colors[0])


def test_a_grid_has_nothing_to_export_and_says_so() -> None:
    model = made_model(GRID)
    assert model.num_points == 0 and model.means.shape == (0, 3) and model.shs_0.shape == (0, 3)
    for refused in (lambda: model.opacities, model.require_gaussians):
        with pytest.raises(SettingsError, match="cells of a grid, not Gaussians"):
            refused()


@pytest.mark.parametrize("architecture", [TINY, GRID], ids=["gaussians", "grid"])
def test_the_viewer_finds_the_controls_among_all_attributes(architecture: Any) -> None:
    """It reads every public property, of a run without Gaussians too."""
    found = parse_object(made_model(architecture), ViewerElement, "model")
    assert [(path, element.name) for path, element in found] == [("model/keep_tokens", "Tokens kept"), ("model/show_token", "Token")]
    assert found[0][1].default_value == architecture.num_tokens


def test_controls_are_no_weights(model: GaussianTokenModel) -> None:
    assert not [key for key in model.state_dict() if "token" in key.split(".")[0]]
