"""TokenGS behind nerfstudio's model interface: parameter groups, precision, frames, the scene in hand, tuning."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.data.scene_box import SceneBox
from torch import nn

from tests.tiny_runs import SMALLEST, tiny_config
from tests.tiny_scenes import write_tiny_scenes
from token_methods.core.cameras import Similarity
from token_methods.core.views import SceneBatch
from token_methods.tokengs.config import PRESETS, TokenGSArchitecture
from token_methods.tokengs.model import TokenGSModel, TokenGSModelConfig

LATENT = {"enc_depth": 2, "num_latents": 6, "latent_cross_attn_depth": 2, "multiscale_encoder_layers": (0, 1)}


def model_of(config: TokenGSModelConfig) -> TokenGSModel:
    torch.manual_seed(3)
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    return config.setup(scene_box=box, num_train_data=1, metadata={}, device="cpu", grad_scaler=None)


def tiny_model(tmp_path: Path, **architecture: Any) -> TokenGSModel:
    return model_of(tiny_config(None, tmp_path, **architecture).pipeline.model)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> SceneBatch:
    """Two scenes, two context and two target views."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tiny_scenes(folder, 3, num_frames=8, with_points=True)
    manager = tiny_config(folder, folder).pipeline.datamanager
    manager.data = folder
    return manager.setup(device="cpu", test_mode="val").next_train_batch(0)


def first_scene(batch: SceneBatch) -> SceneBatch:
    first = slice(0, 1)
    assert batch.sparse_depth is not None
    parts = batch.context.scenes(first), batch.target.scenes(first)
    return SceneBatch(*parts, batch.names[first], unit=torch.ones(1), sparse_depth=batch.sparse_depth[first])


# The published optimisation.


@pytest.mark.parametrize("options", [{}, LATENT], ids=["base", "latent"])
def test_weight_decay_is_for_matrices_but_the_readout_and_latents(tmp_path: Path, options: dict[str, Any]) -> None:
    """Tensors of two and more dimensions decay, except activation_head.* and the latents; Gaussian tokens do."""
    model = tiny_model(tmp_path, **options)
    names = {id(parameter): name for name, parameter in model.network.named_parameters()}
    decayed, undecayed = ([names[id(parameter)] for parameter in group] for group in model.get_param_groups().values())
    assert list(model.get_param_groups()) == ["decayed", "undecayed"]
    assert sorted(decayed + undecayed) == sorted(names.values()), "every parameter is in one group"
    shapes = {name: parameter.ndim for name, parameter in model.network.named_parameters()}
    assert all(shapes[name] >= 2 for name in decayed)
    assert "gs_tokens" in decayed
    matrices_without = {name for name in undecayed if shapes[name] >= 2}
    readout = {name for name in names.values() if name.startswith("activation_head.") and shapes[name] >= 2}
    assert readout
    assert matrices_without == readout | ({"enc_dec_backbone.latents"} if options else set())


@pytest.mark.parametrize("options", [{}, LATENT], ids=["base", "latent"])
def test_every_parameter_learns(tmp_path: Path, batch: SceneBatch, options: dict[str, Any]) -> None:
    model = tiny_model(tmp_path, **options)
    model(batch).losses["loss"].backward()
    idle = [name for name, parameter in model.network.named_parameters() if parameter.grad is None or not parameter.grad.isfinite().all()]
    assert not idle


def test_reduced_precision_stays_inside_the_network(tmp_path: Path, batch: SceneBatch) -> None:
    """Gaussians, pictures, losses, gradients and parameters are float32, whatever the caller runs under."""
    model = tiny_model(tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normalised, _ = model.normalise(batch)
        gaussians = model.decode(model.encode(normalised.context))
        rendered = model.render(gaussians, normalised.target)
        outputs = model(batch)
    outputs.losses["loss"].backward()
    values = [getattr(gaussians, field.name) for field in dataclasses.fields(gaussians)]
    values += [rendered.images, rendered.depths, rendered.alphas, *outputs.losses.values(), *outputs.metrics.values()]
    values += list(model.parameters()) + [p.grad for p in model.parameters() if p.grad is not None]
    assert {value.dtype for value in values} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_what_is_logged_and_watched_holds_no_graph(tmp_path: Path, batch: SceneBatch) -> None:
    outputs = tiny_model(tmp_path)(batch)
    assert list(outputs.losses) == ["loss"]
    assert {"psnr", "loss_rgb", "loss_ssim", "loss_visibility", "gaussians/opacity", "gaussians/in_view"} == set(outputs.metrics)
    assert set(outputs.health) == {"opacity", "in_view"}
    assert not any(value.requires_grad for value in (outputs.metrics | outputs.health).values())
    assert outputs.scenes == batch.names


def test_the_published_start_is_far_from_what_counts_as_collapse(tmp_path: Path, batch: SceneBatch) -> None:
    """Opacity sigmoid(-2) = 0.119, and all Gaussians in front of the first camera."""
    published = PRESETS["train_dl3dv_base"].architecture
    architecture = dataclasses.replace(published, **SMALLEST)
    config = tiny_config(None, tmp_path).pipeline.model
    config.architecture, config.camera_scale_method, config.scene_scale = architecture, "constant", 0.15
    health = model_of(config)(batch).health
    assert health["opacity"].item() == pytest.approx(1 / (1 + math.exp(2)), rel=0.02)
    assert health["in_view"] > 0.2


# Frames.


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("method", ["constant", "distance", "bound", "sparse_depth"])
def test_the_frame_and_unit_of_a_dataset_do_not_matter(tmp_path: Path, batch: SceneBatch, scale: float, method: str) -> None:
    """Pictures stay the same, depths and Gaussians follow the dataset."""
    angle = torch.tensor(0.7)
    rotation = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    moved = Similarity(rotation[None], scale * torch.tensor([[3.0, -1.0, 2.0]]), torch.tensor([scale]))
    one = first_scene(batch)
    assert one.unit is not None and one.sparse_depth is not None
    other = dataclasses.replace(
        one,
        context=moved.views(one.context),
        target=moved.views(one.target),
        unit=one.unit * scale,
        sparse_depth=one.sparse_depth * scale,
    )
    model = tiny_model(tmp_path).eval()
    model.config.camera_scale_method = method
    scenes = [model.reconstruct(each) for each in (one, other)]
    pictures = [model.render_scene(scene, each.target) for scene, each in zip(scenes, (one, other))]
    torch.testing.assert_close(pictures[1].images, pictures[0].images, rtol=0, atol=2e-3)
    torch.testing.assert_close(pictures[1].depths / scale, pictures[0].depths, rtol=1e-3, atol=5e-3)
    model.scene = scenes[0]
    expected = moved.points(model.dataset_gaussians().means)
    model.scene = scenes[1]
    torch.testing.assert_close(model.dataset_gaussians().means / scale, expected / scale, rtol=1e-3, atol=2e-3)


# The scene in hand.


def test_the_scene_in_hand_and_lpips_stay_out_of_checkpoints(tmp_path: Path, batch: SceneBatch) -> None:
    model = tiny_model(tmp_path)
    keys, parameters = set(model.state_dict()), len(list(model.parameters()))
    model.scene = model.reconstruct(first_scene(batch))
    model._lpips.append(nn.Linear(2, 2))
    assert set(model.state_dict()) == keys
    assert len(list(model.parameters())) == parameters
    assert {key for key in keys if not key.startswith("network.")} == {"device_indicator_param"}


@pytest.mark.parametrize("mode", ["tokens", "scene_latents"])
def test_tuning_lowers_the_loss_on_the_context_and_leaves_the_weights(tmp_path: Path, batch: SceneBatch, mode: str) -> None:
    model = tiny_model(tmp_path, **LATENT).eval()
    model.config.tuning_mode = mode  # type: ignore[assignment]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    told: list[float] = []
    tuned = model.reconstruct(first_scene(batch), 20, 1e-2, lambda step, loss: told.append(float(loss)))
    assert len(told) == 20
    assert min(told[-3:]) < told[0]
    fitted = "tokens" if mode == "tokens" else "scene_latents"
    plain = model.reconstruct(first_scene(batch))
    assert not torch.equal(getattr(tuned.tokens, fitted), getattr(plain.tokens, fitted))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.network.parameters())


def test_latents_cannot_be_tuned_where_there_are_none(tmp_path: Path, batch: SceneBatch) -> None:
    model = tiny_model(tmp_path)
    model.config.tuning_mode = "scene_latents"
    with pytest.raises(ValueError, match="needs a latent preset such as tokengs-latent-4view-ssim"):
        model.reconstruct(batch, tuning_steps=1)


def test_architectures_that_cannot_be_are_refused_when_they_are_described() -> None:
    with pytest.raises(ValueError, match="not a multiple of enc_num_heads"):
        TokenGSArchitecture(enc_embed_dim=10, enc_num_heads=3)
