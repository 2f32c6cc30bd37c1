"""Collapses that really happen, each named within fifty steps, with the last good checkpoint still there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny_runs import run, tiny_config
from tests.tiny_scenes import write_tiny_scenes
from token_methods.core.views import SceneBatch, Views
from token_methods.multiscene.checkpoints import newest_readable
from token_methods.multiscene.datamanager import MultiSceneDataManager
from token_methods.multiscene.guard import PATIENCE, CollapseGuard, TrainingCollapsed, gaussian_vital_signs
from token_methods.multiscene.trainer import FeedForwardTrainerConfig
from token_methods.rendering.gaussians3d import Gaussians3D


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tiny_scenes(folder, 4, num_frames=8, with_points=True)
    return folder


def learning_rate(config: FeedForwardTrainerConfig, rate: float) -> None:
    for group in config.optimizers.values():
        group["optimizer"].lr = rate


def collapsed(config: FeedForwardTrainerConfig) -> str:
    with pytest.raises(TrainingCollapsed) as stopped:
        run(config)
    return str(stopped.value)


def good_checkpoint(config: FeedForwardTrainerConfig) -> dict:
    """The newest checkpoint after a collapse, which must be readable and finite."""
    path, state = newest_readable(config.get_base_dir() / "nerfstudio_models")
    assert all(value.isfinite().all() for value in state["pipeline"].values())
    return {"path": path, **state}


@pytest.mark.parametrize("rate", [1.0, 1e8])
def test_an_absurd_learning_rate(data: Path, tmp_path: Path, rate: float) -> None:
    config = tiny_config(data, tmp_path, 50)
    learning_rate(config, rate)
    assert re.search("the .*gradient became infinite or NaN; lower the learning rate or lengthen the warm-up", collapsed(config))


def test_a_slow_death_does_not_push_out_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    """At this rate opacities die within ten steps, and every step is to be saved."""
    config = tiny_config(data, tmp_path, 50)
    learning_rate(config, 0.07)
    config.steps_per_save = 1
    message = collapsed(config)
    assert "lower the learning rate" in message
    named = re.search(r"The last good checkpoint is (\S*step-\d+\.ckpt)", message)
    assert named is not None
    resumed = tiny_config(data, tmp_path, 30, "resumed")
    learning_rate(resumed, 1e-4)
    resumed.load_checkpoint = Path(named[1])
    run(resumed)


def test_an_image_that_is_not_a_number_names_its_scenes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MultiSceneDataManager.next_train_batch
    poisoned: list[tuple[str, ...]] = []

    def next_train_batch(self: MultiSceneDataManager, step: int) -> SceneBatch:
        batch = original(self, step)
        if step == 7:
            assert batch.context.images is not None
            poisoned.append(batch.names)
            batch = dataclasses.replace(batch, context=dataclasses.replace(batch.context, images=batch.context.images * float("nan")))
        return batch

    monkeypatch.setattr(MultiSceneDataManager, "next_train_batch", next_train_batch)
    config = tiny_config(data, tmp_path, 50)
    config.steps_per_save = 2
    message = collapsed(config)
    assert f"step 7 (scenes {', '.join(poisoned[0])})" in message
    assert "look for broken poses or images there" in message
    assert good_checkpoint(config)["step"] == 6


def no_opacity(config: FeedForwardTrainerConfig) -> None:
    config.pipeline.model.architecture = dataclasses.replace(config.pipeline.model.architecture, anchor_opacity=1e-9)


def far_away(config: FeedForwardTrainerConfig) -> None:
    config.pipeline.model.architecture = dataclasses.replace(config.pipeline.model.architecture, anchor_depth=500.0)


def behind_the_cameras(config: FeedForwardTrainerConfig) -> None:
    far_away(config)
    config.pipeline.model.architecture = dataclasses.replace(config.pipeline.model.architecture, gaussian_z_offset=500.0)
    config.pipeline.model.near_plane = 600.0


def nothing_to_learn(config: FeedForwardTrainerConfig) -> None:
    config.pipeline.model.loss = dataclasses.replace(config.pipeline.model.loss, rgb=0.0, ssim=0.0, visibility=1e-30)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (no_opacity, "all opacities are nearly 0.*start with more opacity"),
        (far_away, "all Gaussians lie outside every target view.*scene scale"),
        (behind_the_cameras, "all Gaussians lie outside every target view"),
        (nothing_to_learn, "all gradients are 0, so nothing is learnt; change the start"),
    ],
)
def test_a_start_that_cannot_learn(data: Path, tmp_path: Path, spoil: Callable[[FeedForwardTrainerConfig], None], cause: str) -> None:
    config = tiny_config(data, tmp_path, 50)
    spoil(config)
    with pytest.raises(TrainingCollapsed, match=f"step {PATIENCE - 1}: for {PATIENCE} steps {cause}.*There is no good checkpoint yet"):
        run(config)


def published_start(config: FeedForwardTrainerConfig) -> None:
    """The start of the publication: opacity 0.119, LayerScale 5e-5, all Gaussians in one spot, rate 1/25 of the peak."""
    model = config.pipeline.model
    model.architecture = dataclasses.replace(
        model.architecture, anchor_depth=None, gs_token_std=0.01, clip_head_readout_std=0.002, dec_init_values=None
    )
    model.camera_scale_method, model.scene_scale, model.camera_normalization_method = "constant", 0.15, "first_cam"
    for group in config.optimizers.values():
        group["scheduler"].warmup_steps, group["scheduler"].total_steps = 2_000, 150_000


@pytest.mark.parametrize("start", [lambda config: None, published_start], ids=["anchored", "published"])
def test_a_healthy_start_is_left_alone(data: Path, tmp_path: Path, start: Callable[[FeedForwardTrainerConfig], None]) -> None:
    config = tiny_config(data, tmp_path, 2 * PATIENCE + 2)
    start(config)
    run(config)
    assert good_checkpoint(config)["step"] == config.max_num_iterations - 1


def test_some_odd_batches_are_no_collapse() -> None:
    guard = CollapseGuard()
    one = torch.tensor(1.0)
    for step in range(10 * PATIENCE):
        in_view = torch.tensor(0.0 if step % PATIENCE else 0.5)
        guard.observe(step, one, one, {"opacity": one, "in_view": in_view})
    guard.check()
    assert guard.doubt == "in_view"


def test_vital_signs_count_gaussians_inside_a_frustum() -> None:
    """Seen by one camera at the origin that looks along z: four inside, one each to the side, behind, too near and too far."""
    means = torch.tensor([[0, 0, 1], [0.4, 0, 1], [0, -0.4, 1], [4, 4, 10], [0.6, 0, 1], [0, 0, -1], [0, 0, 0.05], [0, 0, 200.0]])
    gaussians = Gaussians3D(
        means=means[None],
        scales=torch.ones(1, 8, 3),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(1, 8, 4),
        opacities=torch.linspace(0, 1, 8)[None],
        colors=torch.zeros(1, 8, 3),
    )
    views = Views(8, 8, camera_to_world=torch.eye(4)[None, None], intrinsics=torch.tensor([[[8.0, 8.0, 4.0, 4.0]]]))
    signs = gaussian_vital_signs(gaussians, views, near=0.1, far=100.0)
    assert signs["in_view"].item() == 0.5
    assert signs["opacity"].item() == pytest.approx(0.5)
