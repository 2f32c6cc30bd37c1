"""TokenGS methods: the published presets, and two short recipes that learn in minutes."""

from __future__ import annotations

from dataclasses import replace

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from token_methods.multiscene.datamanager_config import MultiSceneDataManagerConfig
from token_methods.multiscene.optimisation import AdamWOptimizerConfig, OneCycleSchedulerConfig
from token_methods.multiscene.pipeline import FeedForwardPipelineConfig
from token_methods.multiscene.sampling import GapSampler, NearestSampler
from token_methods.multiscene.trainer import FeedForwardTrainerConfig
from token_methods.tokengs.config import PRESETS, TokenGSArchitecture, TokenGSPreset, TrainingRecipe, TuningRecipe
from token_methods.tokengs.model import SHIPPED, TokenGSModelConfig


def _specification(method_name: str, preset: TokenGSPreset, description: str, published: bool = True) -> MethodSpecification:
    """A preset as a method: where each of its constants goes in nerfstudio's configuration."""
    recipe = preset.training
    assert recipe is not None
    schedule = OneCycleSchedulerConfig(warmup_steps=recipe.warmup_steps, final_divisor=recipe.final_div_factor)
    config = FeedForwardTrainerConfig(
        method_name=method_name,
        max_num_iterations=recipe.num_steps,
        steps_per_save=500,
        steps_per_eval_batch=0,
        steps_per_eval_image=500,
        steps_per_eval_all_images=2000,
        max_gradient_norm=recipe.gradient_clip,
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        pipeline=FeedForwardPipelineConfig(
            datamanager=MultiSceneDataManagerConfig(
                image_height=preset.image_height,
                image_width=preset.image_width,
                crop_convention="published" if published else "exact",
                num_context_views=preset.num_context_views,
                num_target_views=preset.num_target_views,
                batch_size=recipe.batch_size,
                train_sampler=GapSampler() if published else NearestSampler(),
                mirror_probability=recipe.mirror_probability,
            ),
            model=TokenGSModelConfig(
                architecture=preset.architecture,
                loss=preset.loss,
                camera_normalization_method=preset.camera_normalization_method,
                camera_scale_method="constant" if published else "sparse_depth",
                scene_scale=preset.scene_scale,
                background_color=preset.background,
                near_plane=preset.near,
                far_plane=preset.far,
                tuning_mode=preset.tuning.mode,
                tuning_learning_rate=preset.tuning.lr,
            ),
        ),
        optimizers={
            "decayed": {"optimizer": AdamWOptimizerConfig(lr=recipe.lr, weight_decay=recipe.weight_decay), "scheduler": schedule},
            "undecayed": {"optimizer": AdamWOptimizerConfig(lr=recipe.lr), "scheduler": schedule},
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, quit_on_train_completion=True),
        vis="tensorboard",
    )
    return MethodSpecification(config=config, description=description)


tokengs = _specification(
    "tokengs", PRESETS["train_dl3dv_base"], "TokenGS, published base recipe: posed images to 3D Gaussians in one pass."
)

tokengs_2view = _specification("tokengs-2view", PRESETS["finetune_dl3dv_2view"], "TokenGS fine-tuned at 256x448 with 2 context views.")
tokengs_4view = _specification("tokengs-4view", PRESETS["finetune_dl3dv_4view"], "TokenGS fine-tuned at 256x448 with 4 context views.")
tokengs_6view = _specification("tokengs-6view", PRESETS["finetune_dl3dv_6view"], "TokenGS fine-tuned at 256x448 with 6 context views.")


def _latent(views: int, loss: str) -> MethodSpecification:
    preset = PRESETS[f"finetune_dl3dv_latent_{views}view_{loss}"]
    tuned = PRESETS[f"eval_dl3dv_latent_{views}view_{loss}"].tuning
    description = f"TokenGS with a latent bottleneck, {views} context views, {loss.upper()} recipe."
    return _specification(f"tokengs-latent-{views}view-{loss}", replace(preset, tuning=tuned), description)


tokengs_latent_2view_ssim = _latent(2, "ssim")
tokengs_latent_4view_ssim = _latent(4, "ssim")
tokengs_latent_6view_ssim = _latent(6, "ssim")
tokengs_latent_2view_lpips = _latent(2, "lpips")
tokengs_latent_4view_lpips = _latent(4, "lpips")
tokengs_latent_6view_lpips = _latent(6, "lpips")


# The short recipe (docs/results/short_recipe.md): a start whose Gaussians already cover the view, LayerScale that lets the decoder
# speak at once, the frame of the mean camera, and camera scale from the sparse points, so that scenes of any unit look alike.

_ANCHORED = TokenGSArchitecture(
    enc_depth=4,
    dec_depth=5,
    enc_embed_dim=512,
    enc_num_heads=8,
    num_gs_tokens=1024,
    gs_token_std=1.0,
    dec_init_values=0.1,
    anchor_depth=1.5,
    anchor_opacity=0.8,
    anchor_overlap=0.7,
)

_SHORT = replace(
    PRESETS["train_dl3dv_base"],
    architecture=_ANCHORED,
    training=TrainingRecipe(lr=3e-4, num_steps=4_000, warmup_steps=200),
    tuning=TuningRecipe(lr=3e-2),
    camera_normalization_method="mean_cam",
    scene_scale=1.5,
)

_TINY = replace(
    _SHORT,
    architecture=replace(_ANCHORED, dec_patch_size=4, enc_depth=3, dec_depth=4, enc_embed_dim=192, enc_num_heads=6, num_gs_tokens=144),
    training=TrainingRecipe(lr=5e-4, num_steps=1_000, warmup_steps=50, batch_size=2),
    image_height=96,
    image_width=96,
    num_context_views=3,
    num_target_views=2,
)

tokengs_small = _specification(
    "tokengs-small", _SHORT, "TokenGS that learns in minutes on one GPU: a smaller network with an anchored start.", published=False
)
tokengs_tiny = _specification(
    "tokengs-tiny", _TINY, "TokenGS for a CPU: the smallest network, trained on from weights that come with the package.", published=False
)
tokengs_tiny.config.pipeline.initial_weights = SHIPPED  # type: ignore[attr-defined]
