"""PictureModel: what nerfstudio's viewer, renderer and exporter see of the tokens of a picture, which hangs in the plane z = 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components import renderers
from torch import Tensor

from token_methods.core.views import SceneBatch, Views
from token_methods.gaussiantoken.viewer_controls import kept_slider, token_number, unscanned
from token_methods.multiscene.camera_views import views_from_cameras
from token_methods.multiscene.model import GaussianSceneModel, GaussianSceneModelConfig, SceneInHand
from token_methods.multiscene.plain_errors import SettingsError
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.picture_plane import view_of_picture

if TYPE_CHECKING:
    from token_methods.gaussiantoken.layers import PictureLayers

NO_GAUSSIANS = (
    "the tokens of this run are the cells of a grid, not Gaussians: there are no splats or ellipses to export; take a run of a "
    "gaussiantoken method"
)
"""Said of the baseline (VQGAN)."""
BLACK = (0.0, 0.0, 0.0)


class PictureModel(GaussianSceneModel):
    """A method whose scenes are single pictures and whose tokens decode to one.

    Cameras see layers about the tokens of the scene in hand; a camera that carries a picture (see `carried_picture`) sees its own.
    """

    config: GaussianSceneModelConfig
    _in_view: tuple[SceneInHand, PictureLayers] | None = None
    """A scene that was in hand, and what is known of it. Replaced as a whole."""

    def populate_modules(self) -> None:
        super().populate_modules()
        num_tokens = self.config.architecture.num_tokens  # type: ignore[attr-defined]
        # Attributes of the model: here the viewer finds them.
        self.keep_tokens, self.show_token = kept_slider(num_tokens), token_number(num_tokens)

    # What cameras see.

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """One camera's view of the picture: the layers of `PictureLayers.pictures`, depth and accumulation, each [height, width, channels].

        Raises:
            RuntimeError: no scene is in hand.
        """
        views = views_from_cameras(camera.to(self.device))
        pictures = self._pictures(camera)
        rgb = pictures["rgb"]
        whole = torch.ones_like(rgb)
        plane = view_of_picture(whole, views, BLACK)
        coverage = plane.alphas if obb_box is None else view_of_picture(whole * _inside(obb_box, rgb), views, BLACK).images[:, :, :1]
        override = renderers.BACKGROUND_COLOR_OVERRIDE
        behind = (self.background_color if override is None else override).to(rgb)[:, None, None]
        outputs = {}
        for name, picture in pictures.items():
            seen = view_of_picture(_not_finer(picture, views), views, BLACK).images * coverage
            if name in ("error", "token"):
                outputs[name] = _to_rows(seen[:, :, :1])
            else:
                outputs[name] = _to_rows(seen + (1 - coverage) * behind).clamp(0, 1)
        # Where nothing is, nothing hides what a viewer draws: as far away as the farthest.
        outputs["depth"] = _to_rows(torch.where(coverage > 0, plane.depths, plane.depths.max()))
        outputs["accumulation"] = _to_rows(coverage)
        return outputs

    def cropped(self, scene: SceneInHand, obb_box: OrientedBox | None) -> SceneInHand:
        """All of it: a box cuts what cameras see of the picture, and no tokens."""
        return scene

    def layers(self) -> PictureLayers:
        """Those of the scene in hand; made when it is first looked at.

        Raises:
            RuntimeError: there is none.
        """
        scene, known = self.scene, self._in_view
        if scene is None:
            raise RuntimeError("no scene is in hand: the pipeline encodes one before anything is looked at")
        if known is None or known[0] is not scene:
            known = self._in_view = scene, self._layers_of(scene)
        return known[1]

    def _pictures(self, camera: Cameras) -> dict[str, Float[Tensor, "1 3 height width"]]:
        """The layers that a camera looks at, as `PictureLayers.pictures` gives them."""
        pixels = carried_picture(camera)
        if pixels is None:
            layers = self.layers()
        else:
            image = pixels.to(self.device).float().div(255)[None, None]
            views = Views(height=image.shape[-2], width=image.shape[-1], images=image)
            layers = self._layers_of(self.reconstruct(SceneBatch(context=views, target=views, names=("carried",)), tuning_steps=0))
        return layers.pictures(int(self.keep_tokens.value), int(self.show_token.value))

    def _layers_of(self, scene: SceneInHand) -> PictureLayers:
        from token_methods.gaussiantoken.layers import PictureLayers

        original = scene.batch.context.images
        assert original is not None
        return PictureLayers(scene.tokens, original[:, 0], scene.representation.images, lambda tokens: self.decode(tokens).images)

    # What is exported.

    def dataset_gaussians(self) -> Gaussians3D:
        """The tokens of the scene in hand as flat splats in the picture's plane (see `flat_splats`); none for tokens on a grid.

        Raises:
            RuntimeError: no scene is in hand.
        """
        gaussians = self.layers().splats()
        return gaussians.keep(gaussians.finite()[0])

    def require_gaussians(self) -> None:
        """
        Raises:
            SettingsError: tokens are the cells of a grid.
        """
        if self.config.architecture.embedder is None:  # type: ignore[attr-defined]
            raise SettingsError(NO_GAUSSIANS)

    @property
    def num_points(self) -> int:
        return 0 if self.scene is None else self.dataset_gaussians().num_gaussians

    @unscanned  # nerfstudio's exporter reads it and is told; its viewer reads every other face of a run without Gaussians
    def opacities(self) -> Float[Tensor, "n 1"]:
        self.require_gaussians()
        return torch.zeros(0, 1) if self.scene is None else self.dataset_gaussians().opacities[0, :, None].clamp(1e-8, 1 - 1e-7).logit()


def carried_picture(camera: Cameras) -> UInt8[Tensor, "3 height width"] | None:
    """The picture that belongs to a camera: `metadata["pictures"]`, a function, gives it by its number `metadata["picture"]`."""
    metadata: dict[str, Any] = camera.metadata or {}
    if "picture" not in metadata or "pictures" not in metadata:
        return None
    pixels: Tensor = metadata["pictures"](int(metadata["picture"]))
    return pixels


def _inside(box: OrientedBox, picture: Float[Tensor, "1 3 height width"]) -> Bool[Tensor, "height width"]:
    """Which pixels of a picture that hangs in the plane lie in a box."""
    height, width = picture.shape[-2:]
    x = (torch.arange(width, device=picture.device) + 0.5 - width / 2) / height
    y = (height / 2 - torch.arange(height, device=picture.device) - 0.5) / height
    columns, rows = torch.meshgrid(x, y, indexing="xy")
    points = torch.stack([columns, rows, torch.zeros_like(rows)], dim=-1).view(-1, 3)
    within: Tensor = box.within(points)
    return within.view(height, width)


def _not_finer(picture: Float[Tensor, "1 3 height width"], views: Views) -> Float[Tensor, "1 3 height width"]:
    """The picture with no more pixels than it takes on the screen, where finer ones would flicker."""
    assert views.camera_to_world is not None and views.intrinsics is not None
    distance = views.camera_to_world[0, 0, 2, 3].abs().clamp_min(1e-3)
    height = max(1, round(float(views.intrinsics[0, 0, 1] / distance)))
    if height >= picture.shape[-2]:
        return picture
    width = max(1, round(height * picture.shape[-1] / picture.shape[-2]))
    return F.interpolate(picture, (height, width), mode="bilinear", antialias=True)


def _to_rows(images: Float[Tensor, "1 1 channels height width"]) -> Float[Tensor, "height width channels"]:
    return images[0, 0].permute(1, 2, 0)
