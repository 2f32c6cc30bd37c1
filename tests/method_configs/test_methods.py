"""What `ns-train` lists: every method can be said on the command line, and holds its preset's constants."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path

import pytest
import torch
import tyro
import yaml
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion, all_methods
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from token_methods.multiscene.plain_errors import SettingsError
from token_methods.multiscene.sampling import GapSampler
from token_methods.multiscene.trainer import FeedForwardTrainer, FeedForwardTrainerConfig
from token_methods.tokengs.config import PRESETS

LATENT = [f"{views}view-{loss}" for views in (2, 4, 6) for loss in ("ssim", "lpips")]
PUBLISHED = {
    "tokengs": "train_dl3dv_base",
    **{f"tokengs-{views}view": f"finetune_dl3dv_{views}view" for views in (2, 4, 6)},
    **{f"tokengs-latent-{kind}": f"finetune_dl3dv_latent_{kind.replace('-', '_')}" for kind in LATENT},
}
OURS = [name for name, config in all_methods.items() if isinstance(config, FeedForwardTrainerConfig)]
TOKENIZERS = [
    "gaussiantoken-cifar",
    "gaussiantoken-imagenet",
    "gaussiantoken-mini-imagenet",
    "gaussiantoken-tiny",
    "vqgan-baseline",
    "vqgan-cifar",
]


def parse(*arguments: str) -> FeedForwardTrainerConfig:
    return tyro.cli(AnnotatedBaseConfigUnion, args=list(arguments))  # type: ignore[call-overload]


def test_methods_are_the_published_ones_and_short_recipes() -> None:
    assert set(OURS) == {*PUBLISHED, "tokengs-tiny", "tokengs-small", *TOKENIZERS}


@pytest.mark.parametrize("method", TOKENIZERS)
def test_a_tokenizer_can_be_said_on_the_command_line(method: str) -> None:
    options = "--data pictures --max-num-iterations 7 --pipeline.model.loss.perceptual 0 --optimizers.generator.optimizer.lr 0.5"
    config = parse(method, *options.split(), "image-folder-data", "--eval-fraction", "0.2")
    assert config.method_name == method
    assert (config.data, config.max_num_iterations) == (Path("pictures"), 7)
    assert config.pipeline.model.loss.perceptual == 0
    assert config.optimizers["generator"]["optimizer"].lr == 0.5
    assert config.pipeline.datamanager.dataparser.eval_fraction == 0.2
    assert config.pipeline.model.architecture == all_methods[method].pipeline.model.architecture


def test_the_published_tokenizers_train_as_long_as_published() -> None:
    """30 epochs: of 50 000 images in batches of 6 x 64 (782 batches over 6 devices), of 1.28 million and 48 000 in batches of 6 x 4."""
    steps = {method: all_methods[method].max_num_iterations for method in TOKENIZERS}
    assert steps["gaussiantoken-cifar"] == steps["vqgan-cifar"] == 130 * 30
    assert steps["gaussiantoken-imagenet"] == 53_382 * 30
    assert steps["gaussiantoken-mini-imagenet"] == steps["vqgan-baseline"] == 2_000 * 30
    cifar = all_methods["gaussiantoken-cifar"]
    assert cifar.pipeline.datamanager.batch_size == 384
    assert cifar.pipeline.model.steps_per_epoch == cifar.optimizers["generator"]["scheduler"].warmup_steps == 130


@pytest.mark.parametrize("method", [method for method in OURS if method not in TOKENIZERS])
def test_a_method_can_be_said_on_the_command_line(method: str) -> None:
    options = "--data scenes --max-num-iterations 7 --pipeline.model.tuning-steps 5 --optimizers.decayed.optimizer.lr 0.5"
    config = parse(method, *options.split(), "nerfstudio-data", "--eval-mode", "all")
    assert config.method_name == method
    assert config.data == Path("scenes")
    assert config.max_num_iterations == 7
    assert config.pipeline.model.tuning_steps == 5
    assert config.optimizers["decayed"]["optimizer"].lr == 0.5
    assert config.pipeline.datamanager.dataparser.eval_mode == "all"
    assert config.pipeline.model.architecture == all_methods[method].pipeline.model.architecture


def test_help_shows_what_counts_and_hides_what_does_nothing() -> None:
    text = io.StringIO()
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(text):
        parse("tokengs-tiny", "--help")
    assert ended.value.code == 0
    shown = text.getvalue()
    for option in ("--max-gradient-norm", "--accumulated-batches", "--pipeline.initial-weights", "--pipeline.datamanager.train-sampler"):
        assert option in shown
    for idle in ("--mixed-precision", "--gradient-accumulation-steps", "optimizer.max-norm", "num-rays-per-batch", "--prompt", "collider"):
        assert idle not in shown


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_published_method_holds_the_constants_of_its_preset(method: str) -> None:
    preset, config = PRESETS[PUBLISHED[method]], all_methods[method]
    recipe, data, model = preset.training, config.pipeline.datamanager, config.pipeline.model
    assert recipe is not None
    assert (config.max_num_iterations, config.max_gradient_norm) == (recipe.num_steps, recipe.gradient_clip)
    assert (data.image_height, data.image_width) == (preset.image_height, preset.image_width)
    assert (data.num_context_views, data.num_target_views) == (preset.num_context_views, preset.num_target_views)
    assert data.batch_size == recipe.batch_size
    assert (data.mirror_probability, data.crop_convention) == (recipe.mirror_probability, "published")
    assert isinstance(data.train_sampler, GapSampler)
    assert (model.architecture, model.loss) == (preset.architecture, preset.loss)
    assert (model.camera_normalization_method, model.camera_scale_method, model.scene_scale) == (
        preset.camera_normalization_method,
        preset.camera_scale_method,
        preset.scene_scale,
    )
    assert (model.background_color, model.near_plane, model.far_plane) == (preset.background, preset.near, preset.far)
    assert model.precision == "bfloat16"
    evaluation = PRESETS[PUBLISHED[method].replace("finetune", "eval")]
    assert (model.tuning_steps, model.tuning_mode, model.tuning_learning_rate) == (0, evaluation.tuning.mode, evaluation.tuning.lr)


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_published_optimiser(method: str) -> None:
    """Section 7 of the specification in figures: AdamW (0.9, 0.95), 1e-8; decay 0.05 for one group; a cycle over the whole training."""
    config = all_methods[method]
    base = method == "tokengs"
    groups = {name: (group["optimizer"], group["scheduler"]) for name, group in config.optimizers.items()}
    assert {name: optimizer.weight_decay for name, (optimizer, _) in groups.items()} == {"decayed": 0.05, "undecayed": 0.0}
    for optimizer, schedule in groups.values():
        assert (optimizer.lr, optimizer.betas, optimizer.eps) == (4e-4 if base else 4e-5, (0.9, 0.95), 1e-8)
        assert (schedule.warmup_steps, schedule.initial_divisor, schedule.final_divisor) == (2_000 if base else 400, 25.0, 1000.0)
        assert schedule.total_steps is None, "as long as the training"
    assert config.max_num_iterations == (150_000 if base else 10_000)
    assert config.mixed_precision is False


def test_a_schedule_spans_the_training_and_cycles_the_first_beta() -> None:
    config = copy.deepcopy(all_methods["tokengs-2view"])
    config.max_num_iterations = 1_000
    trainer = object.__new__(FeedForwardTrainer)
    trainer.config = config
    parameters = {"decayed": [torch.nn.Parameter(torch.zeros(2, 2))], "undecayed": [torch.nn.Parameter(torch.zeros(2))]}
    trainer.pipeline = type("Pipeline", (), {"get_param_groups": lambda self: parameters})()
    optimizers = trainer.setup_optimizers()
    assert config.optimizers["decayed"]["scheduler"].total_steps is None, "the configuration stays as it was saved"
    seen = []
    for step in range(1_000):
        group = optimizers.optimizers["decayed"].param_groups[0]
        seen.append((group["lr"], group["betas"]))
        optimizers.optimizer_step_all()
        optimizers.scheduler_step_all(step)
    rates, betas = [rate for rate, _ in seen], [betas for _, betas in seen]
    assert rates[0] == pytest.approx(4e-5 / 25) and betas[0] == (pytest.approx(0.95), 0.95)
    assert rates[399] == pytest.approx(4e-5) and betas[399] == (pytest.approx(0.85), 0.95)
    assert rates[999] == pytest.approx(4e-5 / 25 / 1000) and betas[999] == (pytest.approx(0.95), 0.95)


@pytest.mark.parametrize("method", OURS)
def test_a_saved_configuration_is_the_same_when_it_is_read(method: str) -> None:
    config = all_methods[method]
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config


@pytest.mark.parametrize("method", OURS)
def test_nerfstudio_finds_the_base_classes_it_asserts(method: str) -> None:
    config = all_methods[method]
    assert isinstance(config.pipeline, VanillaPipelineConfig)
    assert isinstance(config.pipeline.datamanager, VanillaDataManagerConfig)
    assert config.vis == "tensorboard", "nerfstudio's default would call a server"
    assert config.machine.device_type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_images_that_cannot_be_cut_into_patches_are_refused_before_training() -> None:
    config = parse("tokengs-tiny", "--data", "anywhere", "--machine.device-type", "cpu", "--pipeline.datamanager.image-height", "30")
    with pytest.raises(SettingsError, match=r"image-height 30.*multiples of 8"):
        config.check()
