"""GaussianToken methods: the published presets, their baselines without Gaussians, and one for a CPU."""

from __future__ import annotations

from dataclasses import replace

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.plugins.types import MethodSpecification

from dataparsers.cifar import CifarDataParserConfig
from dataparsers.image_folder import ImageFolderDataParserConfig
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.losses import LossWeights
from token_methods.gaussiantoken.model import GaussianTokenModelConfig
from token_methods.gaussiantoken.pipeline import ImagePipelineConfig
from token_methods.multiscene.image_datamanager_config import ImageDataManagerConfig
from token_methods.multiscene.optimisation import AdamWOptimizerConfig, WarmupCosineSchedulerConfig
from token_methods.multiscene.trainer import FeedForwardTrainerConfig


def _specification(
    method_name: str,
    preset_name: str,
    description: str,
    dataparser: DataParserConfig,
    training_images: int,
    loss: LossWeights | None = None,
) -> MethodSpecification:
    """A preset as a method on one GPU: its batch is that of all published GPUs together, an epoch has as many steps as it had there."""
    preset = PRESETS[preset_name]
    recipe, (height, width) = preset.training, preset.architecture.image_size
    batches = -(-training_images // recipe.batch_size)
    steps_per_epoch = max(1, batches // recipe.num_processes)
    optimizer = AdamWOptimizerConfig(lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay)  # Adam, where nothing decays
    schedule = WarmupCosineSchedulerConfig(warmup_steps=steps_per_epoch * recipe.warmup_epochs, initial=recipe.warmup_lr)
    small = height <= 32
    config = FeedForwardTrainerConfig(
        method_name=method_name,
        max_num_iterations=steps_per_epoch * recipe.num_epochs,
        steps_per_save=500,
        steps_per_eval_batch=0,
        steps_per_eval_image=500,
        steps_per_eval_all_images=1000,
        max_gradient_norm=None,
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        pipeline=ImagePipelineConfig(
            datamanager=ImageDataManagerConfig(
                dataparser=dataparser,
                image_height=height,
                image_width=width,
                batch_size=recipe.batch_size * recipe.num_processes,
                train_augmentation="none" if small else "random-resized-crop",
                evaluation_crop="resize-centre" if small else "centre",
            ),
            model=GaussianTokenModelConfig(
                architecture=preset.architecture,
                loss=loss or LossWeights(generator_start_epoch=recipe.gan_start_epoch),
                steps_per_epoch=steps_per_epoch,
                average_decay=recipe.averaging_decay,
                recomputed_levels=0 if small else 2,
            ),
        ),
        optimizers={name: {"optimizer": replace(optimizer), "scheduler": replace(schedule)} for name in ("generator", "discriminator")},
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, quit_on_train_completion=True),
        vis="tensorboard",
    )
    return MethodSpecification(config=config, description=description)


gaussiantoken_cifar = _specification(
    "gaussiantoken-cifar", "cifar", "GaussianToken for 32x32 images: 64 Gaussians with codes.", CifarDataParserConfig(), 50_000
)
gaussiantoken_mini_imagenet = _specification(
    "gaussiantoken-mini-imagenet",
    "mini-imagenet",
    "GaussianToken for 256x256 images, Mini-ImageNet recipe: 256 Gaussians with codes.",
    ImageFolderDataParserConfig(),
    48_000,
)
gaussiantoken_imagenet = _specification(
    "gaussiantoken-imagenet",
    "imagenet",
    "GaussianToken for 256x256 images, ImageNet recipe: 256 Gaussians with codes.",
    ImageFolderDataParserConfig(),
    1_281_166,
)
vqgan_baseline = _specification(
    "vqgan-baseline", "vqgan", "The baseline without Gaussians at 256x256: a grid of 256 codes.", ImageFolderDataParserConfig(), 48_000
)
vqgan_cifar = _specification(
    "vqgan-cifar", "vqgan-cifar", "The baseline without Gaussians at 32x32: a grid of 64 codes.", CifarDataParserConfig(), 50_000
)
gaussiantoken_tiny = _specification(
    "gaussiantoken-tiny",
    "tiny",
    "GaussianToken for a CPU: 16 Gaussians for a 32x32 image, trained on absolute differences alone.",
    ImageFolderDataParserConfig(),
    1_600,
    LossWeights(perceptual=0.0, adversarial=0.0),
)
