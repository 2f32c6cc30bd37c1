"""FeedForwardModel: a method as nerfstudio sees it, said in three words: encode, decode, render.

`normalise` carries a batch from its dataset's frame into the frame that the network works in; tokens and
representation live there. Cameras are carried in and Gaussians out at the border of this file, nowhere else.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor
from torch.nn import Parameter
from tyro.conf import Suppress

from token_methods.core.averaging import WeightAverage
from token_methods.core.cameras import Similarity
from token_methods.core.views import SceneBatch, Views
from token_methods.core.weights import WeightsError, compare_keys, read_safetensors
from token_methods.multiscene.camera_views import views_from_cameras
from token_methods.multiscene.network_files import read_network
from token_methods.multiscene.plain_errors import SettingsError
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import RenderedViews
from token_methods.rendering.splat_files import SH_C0

Progress = Callable[[int, float], None]
NO_RAYS = (
    "a feed-forward method renders whole pictures, not single rays, and gives no normals: point clouds, meshes and --render-nearest-camera "
    "cannot be made with it; export its Gaussians with `ns-export gaussian-splat` or `ns-tokens export`"
)
"""Where nerfstudio asks for rays."""


@dataclass(frozen=True)
class SceneInHand:
    """The one scene that viewer, render and export look at. Replaced as a whole, never changed."""

    batch: SceneBatch
    """The scene's context and target views, in the dataset's frame."""
    frame: Similarity
    """Dataset frame -> network frame."""
    tokens: Any
    """What the method's `encode` returned (tuned or not)."""
    representation: Any
    """What the method's `decode` returned, in the network frame."""


@dataclass(frozen=True)
class TrainingOutputs:
    """What one training batch gives."""

    losses: dict[str, Tensor]
    """Summed and differentiated by the trainer."""
    metrics: dict[str, Tensor]
    """Scalars to be logged; those of `health` among them."""
    health: dict[str, Tensor] = field(default_factory=dict)
    """Scalars that fall to zero when training collapses (see guard.py)."""
    scenes: tuple[str, ...] = ()
    """Names of the scenes in the batch."""
    carried: Any = None
    """What the next part of the training step needs of this batch, for methods whose step has several (see `step_parts`)."""


@dataclass
class FeedForwardModelConfig(ModelConfig):
    """What every feed-forward method shares."""

    enable_collider: Suppress[bool] = False
    collider_params: Suppress[dict[str, float] | None] = None
    loss_coefficients: Suppress[dict[str, float]] = field(default_factory=dict)
    eval_num_rays_per_chunk: Suppress[int] = 4096
    prompt: Suppress[str | None] = None
    tuning_steps: int = 0
    """Test-time tuning steps on the context views of a scene before it is evaluated or shown; 0 turns tuning off."""
    tuning_learning_rate: float = 1e-2
    """Learning rate of test-time tuning."""
    average_decay: float | None = None
    """Evaluate a running average of the network's weights, of which each step keeps this share; None evaluates the weights themselves."""

    def check_image_size(self, height: int, width: int) -> None:
        """Refuse images that the network cannot take.

        Raises:
            ValueError: what it can take; methods that take any size leave this as it is.
        """

    # Published weights, for `ns-tokens import` and `export-weights`.

    def check_weights(self, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Network weights under published names that fit this architecture key by key.

        Raises:
            WeightsError: they do not fit, or the method has no weights to import.
        """
        raise WeightsError(f"{self._target.__name__} has no published weights to import; train it with ns-train")

    def accepts(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether `check_weights` would take the keys and shapes of these weights."""
        return False

    def read_weights(self, path: Path) -> dict[str, Tensor]:
        """All tensors of a published file, without executing anything.

        Raises:
            WeightsError: it cannot be read.
        """
        return read_safetensors(path)

    def unread_weights(self, weights: Mapping[str, Tensor]) -> list[str]:
        """Keys of a published file that are known and that nothing here needs."""
        return []

    def imported_state(self, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The whole state of a model that starts from published weights.

        Raises:
            WeightsError: see `check_weights`.
        """
        return {f"network.{key}": value for key, value in self.check_weights(weights, source).items()}

    def exported_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published names and tensors out of the whole state of a trained model."""
        return {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}


class FeedForwardModel(Model):
    """A method whose networks turn a few views of any scene into a representation that can be rendered.

    What is trained is the module `network`, which `populate_modules` sets: weights files hold its keys.
    """

    config: FeedForwardModelConfig
    scene: SceneInHand | None
    average: WeightAverage | None
    step_parts: tuple[tuple[str, ...], ...] | None = None
    """Names of the optimisers that each part of a training step moves, one part after the other, as a generator and its discriminator
    are trained; None: one part moves all."""

    # What a method says.

    @abstractmethod
    def normalise(self, batch: SceneBatch) -> tuple[SceneBatch, Similarity]:
        """The batch in the network frame, and the way there from the dataset frame."""

    @abstractmethod
    def encode(self, context: Views) -> Any:
        """Views in the network frame -> tokens."""

    @abstractmethod
    def decode(self, tokens: Any) -> Any:
        """Tokens -> representation in the network frame."""

    @abstractmethod
    def render(self, representation: Any, views: Views) -> RenderedViews:
        """What an ordered group of cameras sees of the representation; all in the network frame."""

    @abstractmethod
    def training_outputs(self, batch: SceneBatch) -> TrainingOutputs:
        """Losses and metrics of one batch that is in the network frame already."""

    def following_outputs(self, previous: TrainingOutputs) -> TrainingOutputs:
        """Losses and metrics of the next part of a training step, after the optimisers of the part before have moved."""
        raise NotImplementedError(f"{type(self).__name__} trains in one part")

    @abstractmethod
    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Trained parameters by the name of their optimiser in the method's configuration."""

    def tune(self, tokens: Any, context: Views, steps: int, learning_rate: float, progress: Progress | None = None) -> Any:
        """Tokens fitted to the context views of one scene, weights fixed.

        Raises:
            SettingsError: the method cannot.
        """
        raise SettingsError(f"{type(self).__name__} has no test-time tuning: leave --tuning-steps out, or set it to 0")

    def load_initial_weights(self, path: Path) -> None:
        """Start from the network of another run, which must fit key by key; methods with rules for related networks say their own.

        Raises:
            WeightsError: it does not fit, or there is none.
            CheckpointError: a checkpoint that cannot be read.
        """
        weights, network = read_network(path), self.get_submodule("network")
        compare_keys(weights, network.state_dict(), str(path))
        network.load_state_dict(weights)

    # What the house does with it.

    def __init__(self, config: FeedForwardModelConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.average = None
        if config.average_decay is not None:
            self.average = WeightAverage(self.get_submodule("network"), config.average_decay)

    def populate_modules(self) -> None:
        self.scene = None

    @property
    def evaluated(self) -> torch.nn.Module:
        """The network that reconstructs scenes: the average of the weights where one is kept, except while training."""
        average: torch.nn.Module | None = None if self.average is None or self.training else self.average.module
        return self.get_submodule("network") if average is None else average

    def forward(self, batch: SceneBatch | TrainingOutputs) -> TrainingOutputs:  # type: ignore[override]
        """One training batch, in the dataset frame, or what the part of the step before made of it; goes through the data-parallel
        wrapper.

        Raises:
            SettingsError: nerfstudio asks for rays, as its exporters of point clouds and meshes do.
        """
        if isinstance(batch, TrainingOutputs):
            return self.following_outputs(batch)
        if not isinstance(batch, SceneBatch):
            raise SettingsError(NO_RAYS)
        normalised, _ = self.normalise(batch)
        return dataclasses.replace(self.training_outputs(normalised), scenes=batch.names)

    def reconstruct(
        self, batch: SceneBatch, tuning_steps: int | None = None, learning_rate: float | None = None, progress: Progress | None = None
    ) -> SceneInHand:
        """Encode and decode one scene; tuned for `tuning_steps` (default: as configured) on its context views."""
        steps = self.config.tuning_steps if tuning_steps is None else tuning_steps
        rate = self.config.tuning_learning_rate if learning_rate is None else learning_rate
        normalised, frame = self.normalise(batch)
        with torch.no_grad():
            tokens = self.encode(normalised.context)
        if steps > 0:
            tokens = self.tune(tokens, normalised.context, steps, rate, progress)
        with torch.no_grad():
            return SceneInHand(batch, frame, tokens, self.decode(tokens))

    @torch.no_grad()
    def render_scene(self, scene: SceneInHand, views: Views) -> RenderedViews:
        """What cameras of the dataset frame see; depth comes back in the dataset's unit."""
        rendered = self.render(scene.representation, scene.frame.views(views))
        return dataclasses.replace(rendered, depths=rendered.depths / scene.frame.scale[:, None, None, None, None])

    def get_outputs(self, camera: Cameras) -> dict[str, Tensor]:  # type: ignore[override]
        if not isinstance(camera, Cameras):
            raise SettingsError(NO_RAYS)
        return self.get_outputs_for_camera(camera)

    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: Any) -> dict[str, Tensor]:
        raise SettingsError(NO_RAYS)

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """One camera's picture of the scene in hand: rgb, depth, accumulation, each [height, width, channels]."""
        scene = self.scene
        if scene is None:
            raise RuntimeError("no scene is in hand: the pipeline encodes one before anything is rendered")
        rendered = self.render_scene(self.cropped(scene, obb_box), views_from_cameras(camera.to(self.device)))
        return {
            "rgb": rendered.images[0, 0].permute(1, 2, 0).clamp(0, 1),
            # Where nothing is, nothing hides what a viewer draws: as far away as the farthest.
            "depth": torch.where(rendered.alphas > 0, rendered.depths, rendered.depths.max())[0, 0].permute(1, 2, 0),
            "accumulation": rendered.alphas[0, 0].permute(1, 2, 0),
        }

    def cropped(self, scene: SceneInHand, obb_box: OrientedBox | None) -> SceneInHand:
        """The part of a scene inside a box of the dataset frame; methods without geometry show all of it."""
        return scene

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        return torch.cat([outputs[output_name], outputs["accumulation"]], dim=-1)

    def get_metrics_dict(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        raise RuntimeError("feed-forward methods are evaluated scene by scene: see multiscene/evaluation.py")

    get_loss_dict = get_image_metrics_and_images = get_metrics_dict  # type: ignore[assignment]

    def get_training_callbacks(self, training_callback_attributes: Any) -> list[Any]:
        return []

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return torch.nn.Module.load_state_dict(self, state_dict, strict=strict, assign=assign)


@dataclass
class GaussianSceneModelConfig(FeedForwardModelConfig):
    """A method whose representation is 3D Gaussians."""

    background_color: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """RGB in [0, 1] behind the Gaussians, in training and evaluation."""
    near_plane: float = 0.025
    """Nothing nearer than this is drawn; in units of the network frame."""
    far_plane: float = 125.0
    """Nothing farther than this is drawn; in units of the network frame."""
    sh_degree: Suppress[int] = 0


class GaussianSceneModel(FeedForwardModel, SplatfactoModel):  # type: ignore[misc]
    """A feed-forward model whose scene in hand is Gaussians3D, with the faces that viewer and `ns-export` ask of splats."""

    config: GaussianSceneModelConfig  # type: ignore[assignment]
    background_color: Tensor

    def populate_modules(self) -> None:
        FeedForwardModel.populate_modules(self)
        self.crop_box = None
        self.background_color = torch.tensor(self.config.background_color)

    def render(self, representation: Gaussians3D, views: Views) -> RenderedViews:
        from token_methods.rendering.rasterize import render

        return render(representation, views, self.config.background_color, self.config.near_plane, self.config.far_plane)

    def cropped(self, scene: SceneInHand, obb_box: OrientedBox | None) -> SceneInHand:
        if obb_box is None:
            return scene
        gaussians: Gaussians3D = scene.representation
        inside = obb_box.within(gaussians.transformed(scene.frame.inverse()).means[0]).reshape(-1)
        return dataclasses.replace(scene, representation=gaussians.keep(inside))

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        outputs = super().get_outputs_for_camera(camera, obb_box)
        behind = outputs["rgb"].new_tensor(self.config.background_color)
        # A viewer has a background of its own, and so has a camera path with a crop box: what was composited is taken away.
        override = renderers.BACKGROUND_COLOR_OVERRIDE
        wanted = (self.background_color if override is None else override).to(behind)
        outputs["rgb"] = (outputs["rgb"] + (1 - outputs["accumulation"]) * (wanted - behind)).clamp(0, 1)
        return outputs

    def dataset_gaussians(self) -> Gaussians3D:
        """The Gaussians of the scene in hand in the dataset's frame, without those that hold a non-finite number.

        Raises:
            RuntimeError: no scene is in hand.
        """
        scene = self.scene
        if scene is None:
            raise RuntimeError("no scene is in hand: the pipeline encodes one before anything is exported")
        gaussians: Gaussians3D = scene.representation.transformed(scene.frame.inverse())
        return gaussians.keep(gaussians.finite()[0])

    # Faces that nerfstudio's viewer and exporter read (log scales, logit opacities, as splatfacto stores them).

    @property
    def means(self) -> Float[Tensor, "n 3"]:
        # The viewer reads every public property before a scene is chosen.
        return torch.zeros(0, 3) if self.scene is None else self.dataset_gaussians().means[0]

    @property
    def num_points(self) -> int:
        return 0 if self.scene is None else self.scene.representation.num_gaussians

    @property
    def quats(self) -> Float[Tensor, "n 4"]:
        return torch.zeros(0, 4) if self.scene is None else self.dataset_gaussians().quats[0]

    @property
    def scales(self) -> Float[Tensor, "n 3"]:
        return torch.zeros(0, 3) if self.scene is None else self.dataset_gaussians().scales[0].clamp(min=1e-12).log()

    @property
    def opacities(self) -> Float[Tensor, "n 1"]:
        return torch.zeros(0, 1) if self.scene is None else self.dataset_gaussians().opacities[0, :, None].clamp(1e-8, 1 - 1e-7).logit()

    @property
    def colors(self) -> Float[Tensor, "n 3"]:
        return torch.zeros(0, 3) if self.scene is None else self.dataset_gaussians().colors[0]

    @property
    def features_dc(self) -> Float[Tensor, "n 3"]:
        return (self.colors - 0.5) / SH_C0

    @property
    def shs_0(self) -> Float[Tensor, "n 3"]:
        return self.features_dc

    @property
    def features_rest(self) -> Float[Tensor, "n 0 3"]:
        return self.colors.new_zeros(len(self.colors), 0, 3)

    @property
    def shs_rest(self) -> Float[Tensor, "n 0 3"]:
        return self.features_rest
