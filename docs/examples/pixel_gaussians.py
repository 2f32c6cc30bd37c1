"""A whole feed-forward method in one file: every pixel of every context view becomes one Gaussian on its ray.

The idea of Splatter Image (Szymanowicz et al. 2024) and pixelSplat (Charatan et al. 2024), as small as it goes.
docs/extending.md walks through this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification
from torch import Tensor, nn
from torch.nn import Parameter

from token_methods.core.cameras import Similarity, camera_rays, mean_camera_frame, normalise_batch, plucker_rays
from token_methods.core.metrics import psnr
from token_methods.core.views import SceneBatch, Views
from token_methods.multiscene.datamanager_config import MultiSceneDataManagerConfig
from token_methods.multiscene.guard import gaussian_vital_signs
from token_methods.multiscene.model import GaussianSceneModel, GaussianSceneModelConfig, TrainingOutputs
from token_methods.multiscene.optimisation import AdamWOptimizerConfig, OneCycleSchedulerConfig
from token_methods.multiscene.pipeline import FeedForwardPipelineConfig
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig
from token_methods.rendering.gaussians3d import Gaussians3D

# network.py of a method: torch only, usable without nerfstudio.

RAW_CHANNELS = 12
"""Numbers per Gaussian before activation: distance 1, size 3, rotation 4, opacity 1, colour 3."""


@dataclass(frozen=True)
class FeatureMaps:
    """What the network knows of a batch of scenes."""

    views: Views
    """The context views, in the network frame."""
    features: Float[Tensor, "batch views channels height width"]


class PixelGaussianNetwork(nn.Module):
    """A few convolutions over colour and ray of each view, and a readout of one Gaussian per pixel."""

    def __init__(self, channels: int, nearest: float, farthest: float) -> None:
        super().__init__()
        self.nearest, self.farthest = nearest, farthest
        layers: list[nn.Module] = []
        for inputs in (9, channels, channels):
            layers += [nn.Conv2d(inputs, channels, kernel_size=3, padding=1), nn.GELU()]
        self.encoder = nn.Sequential(*layers)
        self.readout = nn.Conv2d(channels, RAW_CHANNELS, kernel_size=1)

    def encode(self, context: Views) -> FeatureMaps:
        """Views in the network frame to features."""
        assert context.images is not None
        seen = torch.cat([2 * context.images - 1, plucker_rays(context)], dim=2)
        return FeatureMaps(context, self.encoder(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]))

    def decode(self, maps: FeatureMaps) -> Gaussians3D:
        """Features to Gaussians in the network frame: one per pixel, at a distance along its ray."""
        views = maps.views
        assert views.images is not None and views.intrinsics is not None
        raw = self.readout(maps.features.flatten(0, 1)).unflatten(0, maps.features.shape[:2])
        distance, size, rotation, opacity, colour = raw.split([1, 3, 4, 1, 3], dim=2)
        distance = self.nearest * (self.farthest / self.nearest) ** distance.sigmoid()
        origins, directions = camera_rays(views)
        pixel = distance / views.intrinsics[:, :, 0, None, None, None]  # size of a pixel at that distance
        upright = rotation.new_tensor([1.0, 0.0, 0.0, 0.0])[:, None, None]

        def listed(maps: Float[Tensor, "batch views channels height width"]) -> Float[Tensor, "batch n channels"]:
            return maps.movedim(2, -1).flatten(1, 3)

        return Gaussians3D(
            means=listed(origins + distance * directions),
            quats=F.normalize(listed(rotation + upright), dim=-1),
            scales=listed(pixel * size.clamp(-3, 3).exp()),
            opacities=listed(opacity.sigmoid())[..., 0],
            colors=listed((views.images + 0.1 * colour).clamp(0, 1)),
        )


# model.py of a method: its face towards nerfstudio.


@dataclass
class PixelGaussianModelConfig(GaussianSceneModelConfig):
    """Settings of the method: each field is a flag of ns-train, its docstring the flag's help."""

    _target: type = field(default_factory=lambda: PixelGaussianModel)
    channels: int = 32
    """Channels of the feature maps."""
    nearest: float = 2.0
    """Smallest distance of a Gaussian from its camera, in multiples of the context's baseline."""
    farthest: float = 50.0
    """Largest distance."""


class PixelGaussianModel(GaussianSceneModel):
    """Says what the method is; scenes, batches, evaluation, viewer, export and files are the base's."""

    config: PixelGaussianModelConfig

    def populate_modules(self) -> None:
        super().populate_modules()
        self.network = PixelGaussianNetwork(self.config.channels, self.config.nearest, self.config.farthest)

    def normalise(self, batch: SceneBatch) -> tuple[SceneBatch, Similarity]:
        """World of the network: the frame of the mean context camera, the largest distance of a context camera from the first as unit."""
        assert batch.context.camera_to_world is not None, "pixel-gaussians needs cameras"
        frame = mean_camera_frame(batch.context.camera_to_world)
        places = batch.context.camera_to_world[..., :3, 3]
        scale = 1 / (places - places[:, :1]).norm(dim=-1).amax(dim=1).clamp(min=1e-6)
        frame = Similarity(frame.rotation, frame.translation * scale[:, None], scale)
        return normalise_batch(batch, frame), frame

    def encode(self, context: Views) -> FeatureMaps:
        return self.network.encode(context)

    def decode(self, tokens: FeatureMaps) -> Gaussians3D:
        return self.network.decode(tokens)

    def training_outputs(self, batch: SceneBatch) -> TrainingOutputs:
        assert batch.target.images is not None
        gaussians = self.decode(self.encode(batch.context))
        rendered, wanted = self.render(gaussians, batch.target).images, batch.target.images
        metrics = {"psnr": psnr(rendered.flatten(0, 1), wanted.flatten(0, 1)).mean()}
        health = gaussian_vital_signs(gaussians, batch.target, self.config.near_plane, self.config.far_plane)
        return TrainingOutputs({"rgb": F.mse_loss(rendered, wanted)}, metrics, health)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        return {"network": list(self.network.parameters())}


# method_configs/METHOD.py: what ns-train lists.

pixel_gaussians = MethodSpecification(
    config=FeedForwardTrainerConfig(
        method_name="pixel-gaussians",
        max_num_iterations=5_000,
        steps_per_eval_batch=0,
        pipeline=FeedForwardPipelineConfig(
            datamanager=MultiSceneDataManagerConfig(image_height=128, image_width=128, num_context_views=2, batch_size=4),
            model=PixelGaussianModelConfig(),
        ),
        optimizers={"network": {"optimizer": AdamWOptimizerConfig(lr=2e-3), "scheduler": OneCycleSchedulerConfig(warmup_steps=100)}},
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        viewer=ViewerConfig(quit_on_train_completion=True),
        vis="tensorboard",
    ),
    description="One Gaussian for each pixel of the context views.",
)
