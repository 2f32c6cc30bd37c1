"""GaussianToken's nerfstudio face: pictures to tokens to pictures, what is trained and what is evaluated, and the epochs of its losses."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from torch import Tensor

from method_configs.gaussiantoken import gaussiantoken_cifar, gaussiantoken_imagenet, vqgan_baseline
from token_methods.core.perceptual import LpipsUnavailable
from token_methods.core.views import SceneBatch, Views
from token_methods.core.weights import WeightsError
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.discriminator import PatchDiscriminator
from token_methods.gaussiantoken.losses import LossWeights
from token_methods.gaussiantoken.model import GaussianTokenModel, GaussianTokenModelConfig, code_diversity
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.gaussiantoken.weights import published_weights, shadow_name

TINY = PRESETS["tiny"].architecture
WITHOUT_LPIPS = LossWeights(perceptual=0.0)


def model_of(**settings: Any) -> GaussianTokenModel:
    torch.manual_seed(0)
    config = GaussianTokenModelConfig(**{"architecture": TINY, "loss": WITHOUT_LPIPS, "steps_per_epoch": 10, **settings})
    model: GaussianTokenModel = config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1, metadata={})
    for network in (model.network, None if model.average is None else model.average.module):
        if network is not None:
            network.quantize._codebook.embed.copy_(torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(1)))
            network.quantize._codebook.initted.fill_(1)
    return model


def batch_of(count: int = 2, views: int = 1) -> SceneBatch:
    images = torch.rand(count, views, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    pictures = Views(height=32, width=32, images=images)
    return SceneBatch(context=pictures, target=pictures, names=tuple(map(str, range(count))))


@pytest.fixture(scope="module")
def model() -> GaussianTokenModel:
    """Not to be changed."""
    return model_of().eval()


# Pictures, tokens, pictures.


@torch.no_grad()
def test_a_picture_becomes_tokens_and_a_picture_again(model: GaussianTokenModel) -> None:
    """Networks take -1..1, everybody else 0..1."""
    batch = batch_of()
    assert batch.context.images is not None and model.average is not None
    scene = model.reconstruct(batch)
    expected = model.average.module.reconstruct(batch.context.images[:, 0] * 2 - 1)
    assert torch.equal(scene.representation.images, ((expected + 1) / 2).clamp(0, 1))
    assert scene.tokens.indices.shape == (2, 16) and scene.frame.scale.tolist() == [1, 1]
    rendered = model.render(scene.representation, batch.target)
    assert torch.equal(rendered.images[:, 0], scene.representation.images) and rendered.alphas.unique().tolist() == [1]


def test_only_single_pictures_are_taken(model: GaussianTokenModel) -> None:
    with pytest.raises(ValueError, match="takes single images: one view per scene, with its picture"):
        model.encode(batch_of(views=2).context)
    with pytest.raises(ValueError, match="with its picture"):
        model.encode(Views(height=32, width=32, camera_to_world=torch.eye(4)[None, None], intrinsics=torch.ones(1, 1, 4)))


def test_sizes_are_told_before_training() -> None:
    config = GaussianTokenModelConfig()
    config.check_image_size(32, 32)
    with pytest.raises(ValueError, match="takes images of 32x32 pixels: leave --pipeline"):
        config.check_image_size(32, 64)


# What is trained, and what is evaluated.


def test_every_parameter_is_trained_by_one_optimiser_or_constant(model: GaussianTokenModel) -> None:
    groups = model.get_param_groups()
    assert groups.keys() == {"generator", "discriminator"} == {name for part in model.step_parts or () for name in part}
    trained = [id(parameter) for group in groups.values() for parameter in group]
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in trained}
    assert len(trained) == len(set(trained))
    constant = {"fixed_offsets", "instance_feature"}
    assert {name.rpartition(".")[2] for name in names if not name.startswith("average.")} == constant | {"device_indicator_param"}
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if name.startswith("average."))


def test_a_discriminator_that_nobody_hears_is_not_trained() -> None:
    model = model_of(loss=LossWeights(perceptual=0.0, adversarial=0.0)).train()
    assert model.step_parts == (("generator",),) and model.get_param_groups().keys() == {"generator"}
    outputs = model.training_outputs(batch_of())
    sum(outputs.losses.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in model.discriminator.parameters())


def test_a_checkpoint_holds_both_weights_discriminator_and_averages(model: GaussianTokenModel) -> None:
    parts = {key.split(".")[0] for key in model.state_dict()}
    assert parts == {"device_indicator_param", "network", "average", "discriminator", "lecam"}
    assert {key for key in model.state_dict() if key.startswith("lecam")} == {"lecam.real", "lecam.fake"}
    assert {key for key in model_of(average_decay=None).state_dict() if key.startswith("average")} == set()


@torch.no_grad()
def test_the_average_is_evaluated_and_the_network_trained() -> None:
    model, batch = model_of(), batch_of()
    network = model.network.img_decoder.conv_out.weight
    assert model.average is not None
    for evaluating, moved in ((True, model.average.module.img_decoder.conv_out.weight), (False, network)):
        model.train(not evaluating)
        other = network if evaluating else model.average.module.img_decoder.conv_out.weight
        losses = []
        for change in (lambda: None, lambda other=other: other.mul_(3), lambda moved=moved: moved.mul_(3)):
            change()
            torch.manual_seed(0)
            losses.append(model.training_outputs(batch).metrics["loss_l1"].item())
        assert (losses[0] == losses[1]) == evaluating or not evaluating
        assert losses[1] != losses[2]
    assert model.evaluated is model.network and model.eval().evaluated is model.average.module
    assert model_of(average_decay=None).eval().evaluated is not None


# Losses and their epochs.


def test_the_generator_hears_the_discriminator_from_its_epoch_on() -> None:
    """Told by a callback at the beginning of every step, so also in the first one after resuming."""
    model = model_of(loss=LossWeights(perceptual=0.0, generator_start_epoch=2)).train()
    (callback,) = model.get_training_callbacks(None)  # type: ignore[arg-type]
    assert callback.where_to_run == [TrainingCallbackLocation.BEFORE_TRAIN_ITERATION]
    weights = {}
    for step in (0, 19, 20, 500):
        callback.run_callback(step=step)
        weights[step] = model.training_outputs(batch_of()).metrics["adversarial_weight"].item()
    assert weights == {0: 0, 19: 0, 20: pytest.approx(0.1), 500: pytest.approx(0.1)}


def test_the_parts_share_a_reconstruction_that_carries_no_gradient() -> None:
    model, batch = model_of().train(), batch_of()
    outputs = model.forward(batch)
    images, reconstruction = outputs.carried
    assert batch.target.images is not None and torch.equal(images, batch.target.images[:, 0] * 2 - 1)
    assert not reconstruction.requires_grad and outputs.scenes == ("0", "1")
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.fill_(float("nan"))  # the second part asks nothing more of the network
    following = model.forward(outputs)
    assert following.losses["discriminator_loss"].isfinite() and following.losses.keys() == {"discriminator_loss"}
    following.losses["discriminator_loss"].backward()
    assert all(parameter.grad is None for parameter in model.network.parameters())
    expected = model.discriminator(images).mean(), model.discriminator(reconstruction).mean()
    assert following.metrics["real_logits"].item() == pytest.approx(expected[0].item(), abs=1e-5)
    assert following.metrics["fake_logits"].item() == pytest.approx(expected[1].item(), abs=1e-5)


def test_losses_of_evaluation_leave_codebook_range_and_statistics_alone() -> None:
    model = model_of().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.forward(batch_of())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_without_lpips_weights_training_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any) -> Any:
        raise LpipsUnavailable("no weights for LPIPS (vgg)")

    monkeypatch.setattr("token_methods.core.perceptual.load_lpips", nowhere)
    model = model_of(loss=LossWeights())
    with pytest.raises(LpipsUnavailable, match=r"no weights for LPIPS \(vgg\); name a file with .*, or train without with .* 0$"):
        model.get_training_callbacks(None)  # type: ignore[arg-type]
    with torch.no_grad():
        assert model.eval().reconstruct(batch_of()).tokens is not None, "evaluation needs none"


def test_the_perceptual_network_is_no_part_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    perceptual = torch.nn.Linear(1, 1)
    perceptual.forward = lambda x, y: (x - y).abs().mean(dim=(1, 2, 3))  # type: ignore[method-assign]
    monkeypatch.setattr("token_methods.core.perceptual.load_lpips", lambda *_: perceptual)
    model = model_of(loss=LossWeights()).train()
    keys = set(model.state_dict())
    metrics = model.training_outputs(batch_of()).metrics
    assert metrics["loss_perceptual"].item() == pytest.approx(metrics["loss_l1"].item() / 2), "it takes images in 0..1"
    assert set(model.state_dict()) == keys


@pytest.mark.parametrize(
    ("indices", "expected"),
    [([5] * 8, 0.0), (list(range(64)), 1.0), ([0, 1] * 8, 1 / 63), ([0, 0, 0, 1], (math.exp(0.5623351) - 1) / 63)],
)
def test_diversity_of_codes(indices: list[int], expected: float) -> None:
    assert code_diversity(torch.tensor(indices)[None], 64).item() == pytest.approx(expected, abs=1e-6)


# Recipes.


@pytest.mark.parametrize(
    ("specification", "batch", "steps_per_epoch", "betas", "decay"),
    [
        (gaussiantoken_cifar, 384, 130, (0.9, 0.999), 0.01),
        (gaussiantoken_imagenet, 24, 53_382, (0.5, 0.9), 0.0),
        (vqgan_baseline, 24, 2_000, (0.9, 0.999), 0.01),
    ],
)
def test_recipes_are_the_published_ones(
    specification: Any, batch: int, steps_per_epoch: int, betas: tuple[float, float], decay: float
) -> None:
    """On one GPU: the joint batch of the published six, and their number of steps per epoch."""
    config = specification.config
    data, model = config.pipeline.datamanager, config.pipeline.model
    assert (data.batch_size, model.steps_per_epoch, config.max_num_iterations) == (batch, steps_per_epoch, 30 * steps_per_epoch)
    assert (model.loss, model.average_decay, config.max_gradient_norm) == (LossWeights(), 0.999, None)
    assert config.optimizers.keys() == {"generator", "discriminator"}
    for group in config.optimizers.values():
        optimizer, schedule = group["optimizer"], group["scheduler"]
        assert (optimizer.lr, optimizer.betas, optimizer.weight_decay, optimizer.eps) == (2e-4, betas, decay, 1e-8)
        assert (schedule.warmup_steps, schedule.initial, schedule.total_steps) == (steps_per_epoch, 1e-6, None)
    assert config.optimizers["generator"]["optimizer"] is not config.optimizers["discriminator"]["optimizer"]
    small = data.image_height == 32
    assert data.train_augmentation == ("none" if small else "random-resized-crop")
    assert data.evaluation_crop == ("resize-centre" if small else "centre"), "as published: without resizing"


# Published weights.


def published(**changes: Tensor) -> tuple[dict[str, Tensor], GaussianTokenNetwork, PatchDiscriminator]:
    torch.manual_seed(4)
    live, average, discriminator = GaussianTokenNetwork(TINY), GaussianTokenNetwork(TINY), PatchDiscriminator()
    weights = published_weights(live.state_dict(), TINY, average.state_dict(), discriminator.state_dict())
    return {**weights, **changes}, average, discriminator


@pytest.mark.parametrize("average_decay", [0.999, None])
def test_published_weights_fill_a_model(average_decay: float | None) -> None:
    weights, average, discriminator = published()
    model = model_of(average_decay=average_decay)
    state = model.config.imported_state(weights, "file.ckpt")
    model.load_state_dict(state | {"device_indicator_param": torch.empty(0)})
    key = "img_encoder.conv_in.weight"
    assert torch.equal(model.network.get_parameter(key), weights[key])
    assert torch.equal(model.discriminator.main[0].weight, discriminator.main[0].weight)
    if average_decay is not None:
        assert model.average is not None and model.average.n_averaged.item() == 1, "the first update averages"
        assert torch.equal(model.average.module.get_parameter(key), average.get_parameter(key))
        back = model.config.exported_weights(model.state_dict())
        assert back.keys() == weights.keys() and all(torch.equal(back[key].float(), value.float()) for key, value in weights.items())


def test_a_discriminator_of_another_shape_and_other_architectures_are_refused() -> None:
    weights, _, _ = published(**{"loss.discriminator.main.0.weight": torch.zeros(2)})
    config = model_of().config
    with pytest.raises(WeightsError, match=r"the discriminator in file.ckpt does not fit.*main.0.weight \[2\] instead of"):
        config.imported_state(weights, "file.ckpt")
    assert config.accepts(weights) and not GaussianTokenModelConfig().accepts(weights)
    grid = GaussianTokenModelConfig(architecture=dataclasses.replace(TINY, embedder=None))
    with pytest.raises(WeightsError, match="they fit the preset tiny"):
        grid.check_weights(weights, "file.ckpt")


def test_what_is_left_out_of_a_file_is_named() -> None:
    extra = {"gs_embed.op_module_map.x.weight": torch.zeros(1), "loss.perceptual_loss.net.weight": torch.zeros(1)}
    weights, _, _ = published(**extra, **{shadow_name("gs_embed.op_module_map.x.weight"): torch.zeros(1)})
    unread = model_of().config.unread_weights(weights)
    assert extra.keys() <= set(unread)
    assert not any(key.startswith("loss.discriminator") for key in unread), "it is trained on"


def test_rays_are_not_a_batch() -> None:
    with pytest.raises(ValueError, match="renders whole pictures, not single rays"):
        model_of().forward(SimpleNamespace())  # type: ignore[arg-type]
