"""Training as `ns-train` runs it: exact resume, the optimisation step, what is logged, and how wrong settings end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.tiny_runs import run, tiny_config
from tests.tiny_scenes import write_tiny_scenes
from token_methods.core.views import SceneBatch
from token_methods.multiscene.checkpoints import CheckpointError, checkpoint_path, read_checkpoint
from token_methods.multiscene.plain_errors import SettingsError
from token_methods.multiscene.trainer import FeedForwardTrainer, FeedForwardTrainerConfig

STEPS = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tiny_scenes(folder, 4, num_frames=8, with_points=True)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(data, tmp_path_factory.mktemp("runs"), STEPS)
    config.steps_per_save, config.kept_checkpoints = 2, 0
    config.steps_per_eval_all_images = 3  # evaluation must leave no trace in what is trained
    return run(config)


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two nested states are not equal bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [found for key in one for found in differences(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        return [found for index, pair in enumerate(zip(one, other)) for found in differences(*pair, f"{name}/{index}")]
    same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
    return [] if same else [name]


def trainer_of(config: FeedForwardTrainerConfig) -> FeedForwardTrainer:
    torch.manual_seed(0)
    config.pipeline.datamanager.data = config.data
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    return trainer


# Resuming.


@pytest.mark.parametrize(("after", "num_workers", "seed"), [(2, 0, 42), (4, 1, 42), (2, 3, 7)])
def test_a_resumed_run_equals_the_uninterrupted_one(
    uninterrupted: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], after: int, num_workers: int, seed: int
) -> None:
    """Bit for bit: parameters, moments, schedules, random states (which another seed of the resuming process must not change)."""
    config = tiny_config(data, tmp_path, STEPS)
    config.load_dir, config.load_step = uninterrupted / "nerfstudio_models", after
    config.pipeline.datamanager.num_workers = num_workers
    config.machine.seed = seed
    folder = run(config)
    assert f"Trained {STEPS - 1 - after} steps" in capsys.readouterr().out
    expected = read_checkpoint(checkpoint_path(uninterrupted / "nerfstudio_models", STEPS - 1))
    found = read_checkpoint(checkpoint_path(folder / "nerfstudio_models", STEPS - 1))
    assert not differences(expected, found)
    before = read_checkpoint(checkpoint_path(uninterrupted / "nerfstudio_models", after))
    assert len(differences(before["pipeline"], found["pipeline"])) > 10


def test_a_run_folder_is_enough_to_resume_a_finished_run_which_does_nothing(
    uninterrupted: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(data, tmp_path, STEPS)
    config.load_dir = uninterrupted
    folder = run(config)
    assert f"Nothing left to train: the checkpoint is at step {STEPS} of {STEPS}" in capsys.readouterr().out
    assert not (folder / "nerfstudio_models").exists()


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    uninterrupted: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copied"
    folder.mkdir()
    for step in (2, 4):
        checkpoint_path(folder, step).write_bytes(checkpoint_path(uninterrupted / "nerfstudio_models", step).read_bytes())
    content = checkpoint_path(folder, 4).read_bytes()
    checkpoint_path(folder, 4).write_bytes(content[: len(content) // 2])
    config = tiny_config(data, tmp_path, 4)
    config.load_dir = folder
    run(config)
    said = " ".join(capsys.readouterr().out.split())
    assert "step-000000004.ckpt is truncated" in said
    assert "Falling back to step-000000002.ckpt" in said
    assert "Resuming after step 2" in said


def test_a_resumed_run_does_not_need_its_initial_weights(uninterrupted: Path, data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, STEPS)
    config.load_dir = uninterrupted
    config.pipeline.initial_weights = tmp_path / "gone.safetensors"
    run(config)


def test_a_checkpoint_without_these_optimisers_is_refused(uninterrupted: Path, data: Path, tmp_path: Path) -> None:
    path = checkpoint_path(uninterrupted / "nerfstudio_models", 2)
    state = read_checkpoint(path)
    state["optimizers"]["generator"] = state["optimizers"].pop("decayed")
    torch.save(state, tmp_path / "step-000000002.ckpt")
    config = tiny_config(data, tmp_path, STEPS)
    config.load_checkpoint = tmp_path / "step-000000002.ckpt"
    with pytest.raises(CheckpointError, match=r"optimisers in .* are not those of tokengs-tiny.*generator"):
        run(config)


# Saving.


def test_only_the_newest_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, 6)
    config.steps_per_save = 1
    folder = run(config)
    assert sorted(path.name for path in (folder / "nerfstudio_models").iterdir()) == ["step-000000004.ckpt", "step-000000005.ckpt"]
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_a_checkpoint_holds_the_network_and_not_the_scene_in_hand(uninterrupted: Path) -> None:
    state = read_checkpoint(checkpoint_path(uninterrupted / "nerfstudio_models", 2))
    others = [key for key in state["pipeline"] if not key.startswith("_model.network.")]
    assert others == ["_model.device_indicator_param"]


# The optimisation step.


def gradients(trainer: FeedForwardTrainer, batches: list[SceneBatch], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Gradients that one step on `batches` leaves behind; a rate of 0 keeps the parameters where they are."""
    given = iter(batches)
    monkeypatch.setattr(trainer.pipeline.datamanager, "next_train_batch", lambda step: next(given))
    for optimizer in trainer.optimizers.optimizers.values():
        optimizer.param_groups[0]["lr"] = 0.0
    trainer.pipeline.train()
    trainer.train_iteration(0)
    return {name: p.grad for name, p in trainer.pipeline.model.named_parameters() if p.grad is not None}


def halves(batch: SceneBatch) -> list[SceneBatch]:
    rows = (slice(0, 1), slice(1, 2))
    assert batch.unit is not None and batch.sparse_depth is not None
    return [
        SceneBatch(batch.context.scenes(i), batch.target.scenes(i), batch.names[i], unit=batch.unit[i], sparse_depth=batch.sparse_depth[i])
        for i in rows
    ]


def test_two_accumulated_batches_of_one_scene_equal_one_batch_of_two(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(data, tmp_path)
    config.max_gradient_norm = None
    whole = trainer_of(config)
    batch = whole.pipeline.datamanager.next_train_batch(3)
    expected = gradients(whole, [batch], monkeypatch)

    config = tiny_config(data, tmp_path)
    config.max_gradient_norm = None
    config.accumulated_batches = 2
    accumulating = trainer_of(config)
    accumulating.pipeline.model.load_state_dict(whole.pipeline.model.state_dict())
    found = gradients(accumulating, halves(batch), monkeypatch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("chunk", ["scene", "view"])
def test_rendering_in_chunks_leaves_the_gradients_as_they_are(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: str
) -> None:
    trainer = trainer_of(tiny_config(data, tmp_path))
    batch = trainer.pipeline.datamanager.next_train_batch(3)
    expected = {name: gradient.clone() for name, gradient in gradients(trainer, [batch], monkeypatch).items()}
    trainer.pipeline.model.config.render_chunk = chunk
    for name, gradient in gradients(trainer, [batch], monkeypatch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_gradient_is_clipped_over_all_parameters_together(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(data, tmp_path)
    config.max_gradient_norm = 0.01
    trainer = trainer_of(config)
    found = gradients(trainer, [trainer.pipeline.datamanager.next_train_batch(0)], monkeypatch)
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


# What is logged.


def test_scalars_and_panels_are_in_tensorboard(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(data, tmp_path, 22)
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 10
    folder = run(config)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars, images = set(events.Tags()["scalars"]), set(events.Tags()["images"])
    assert {
        "Train Loss",
        "Train Loss Dict/loss",
        "Train Metrics Dict/psnr",
        "Train Metrics Dict/gradient_norm",
        "Train Metrics Dict/gaussians/opacity",
        "Train Metrics Dict/gaussians/in_view",
        "learning_rate/decayed",
        "beta1/decayed",
        "Eval Loss",
        "Eval Images Metrics/psnr",
        "Eval Images Metrics Dict (all images)/psnr",
        "Eval Images Metrics Dict (all images)/nearest_context_psnr",
    } <= scalars
    assert images == {"Eval Images/context", "Eval Images/comparison"}
    assert events.Images("Eval Images/comparison")[0].width == 2 * 16
    assert events.Images("Eval Images/comparison")[0].height == 4 * 16
    rates = [event.value for event in events.Scalars("learning_rate/decayed")]
    peak = config.optimizers["decayed"]["optimizer"].lr
    assert max(rates) == pytest.approx(peak, rel=1e-2)
    assert rates[-1] == pytest.approx(peak / 25 / 1000, rel=1e-2), "the cycle ends with the training"
    betas = [event.value for event in events.Scalars("beta1/decayed")]
    assert betas[0] == pytest.approx(0.95)
    assert min(betas) < 0.95
    said = " ".join(capsys.readouterr().out.split())
    assert "First 20 steps:" in said
    assert "Trained 22 steps" in said
    assert said.count("ms a step,") == said.count("scenes/s (over the second half), peak memory") == 2


def test_training_goes_on_when_the_scenes_to_evaluate_are_gone(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(data, tmp_path, 5)
    config.pipeline.datamanager.eval_scene_fraction = 0.0  # nothing is held out
    config.steps_per_eval_image = config.steps_per_eval_all_images = 1
    folder = run(config)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("is not evaluated: there are no held-out-frames to evaluate") == 1
    assert checkpoint_path(folder / "nerfstudio_models", 4).is_file()


# Wrong settings: one sentence each, before anything is written.


def test_no_data(tmp_path: Path) -> None:
    config = tiny_config(None, tmp_path)
    with pytest.raises(SettingsError, match="no data: write `ns-train tokengs-tiny --data FOLDER`"):
        run(config)
    assert not (tmp_path / "scenes").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("device", "devices", "message"),
    [("cuda", 1, "no CUDA device is available: add --machine.device-type cpu"), ("cpu", 2, "--machine.num-devices 2 needs as many CUDA")],
)
def test_devices_that_are_not_there(data: Path, tmp_path: Path, device: str, devices: int, message: str) -> None:
    config = tiny_config(data, tmp_path)
    config.machine.device_type, config.machine.num_devices = device, devices
    with pytest.raises(SettingsError, match=message):
        run(config)


def test_a_step_of_no_batches(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path)
    config.accumulated_batches = 0
    with pytest.raises(SettingsError, match="--accumulated-batches 0"):
        run(config)


def test_an_output_folder_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"cannot write .*config\.yml \(Not a directory\): make room, or name another --output-dir"):
        run(tiny_config(data, tmp_path / "file"))


def test_a_checkpoint_folder_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, 3)
    config.get_base_dir().mkdir(parents=True)
    (config.get_base_dir() / "nerfstudio_models").touch()
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*step-000000002\.ckpt"):
        run(config)


@pytest.mark.parametrize("name", ["load_dir", "load_checkpoint"])
def test_nothing_to_resume_from(data: Path, tmp_path: Path, name: str) -> None:
    config = tiny_config(data, tmp_path)
    setattr(config, name, tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"there (are no checkpoints in|is no checkpoint) .*nowhere"):
        run(config)


def test_a_wrong_setting_ends_ns_train_with_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from nerfstudio.scripts.train import entrypoint; entrypoint()", "tokengs-tiny"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("Error: no data: write `ns-train tokengs-tiny --data FOLDER`")
    assert "Traceback" not in result.stderr
