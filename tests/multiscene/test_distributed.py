"""Two processes on the CPU (gloo) train as one process does on both their batches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nerfstudio.scripts.train import train_loop
from nerfstudio.utils import writer
from torch import Tensor

from tests.tiny_runs import tiny_config
from tests.tiny_scenes import write_tiny_scenes
from token_methods.core.views import SceneBatch
from token_methods.multiscene.checkpoints import checkpoint_path, read_checkpoint
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.trainer import FeedForwardTrainer, FeedForwardTrainerConfig
from token_methods.multiscene.windows import EvaluationWindow

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the processes are forked, which CUDA does not survive")

STEPS = 6
SAVED = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tiny_scenes(folder, 7, num_frames=8, with_points=True)
    return folder


def config_of(data: Path, output_dir: Path, batch_size: int, name: str = "run") -> FeedForwardTrainerConfig:
    config = tiny_config(data, output_dir, STEPS, name)
    manager = config.pipeline.datamanager
    manager.data, manager.batch_size, manager.eval_scene_fraction = data, batch_size, 0.45
    config.steps_per_save, config.steps_per_eval_all_images, config.kept_checkpoints = SAVED, 4, 0
    config.get_base_dir().mkdir(parents=True)
    return config


def observations(trainer: FeedForwardTrainer) -> dict[str, Any]:
    """Gradients of one step on one batch and on two, the scenes that it saw, and what evaluation says."""
    seen = {"names": trainer.pipeline.datamanager.next_train_batch(3).names}
    trainer.pipeline.train()
    for batches in (1, 2):
        for optimizer in trainer.optimizers.optimizers.values():
            optimizer.param_groups[0]["lr"] = 0.0  # leaves the parameters where they are
        trainer.config.accumulated_batches = batches
        trainer.train_iteration(3)
        seen[f"gradients_{batches}"] = {name: p.grad for name, p in trainer.pipeline.model.named_parameters() if p.grad is not None}
    return seen | {"metrics": trainer.pipeline.get_average_eval_image_metrics(step=0)}


def problem_of_one_process(trainer: FeedForwardTrainer, rank: int) -> str:
    """What evaluation says in this process when the second one finds a scene gone."""
    data = trainer.pipeline.datamanager
    load = data.load_window

    def gone(window: EvaluationWindow) -> SceneBatch:
        raise SceneError(f"scene {window.scene} does not exist (any more)")

    data.load_window = gone if rank == 1 else load  # type: ignore[method-assign]
    try:
        trainer.pipeline.get_average_eval_image_metrics(step=0)
    except SceneError as error:
        return str(error)
    return ""


def trained(config: FeedForwardTrainerConfig, rank: int, processes: int) -> dict[str, Tensor]:
    """Parameters after nerfstudio's own training loop."""
    trainers: list[FeedForwardTrainer] = []

    def setup(**arguments: Any) -> FeedForwardTrainer:
        trainers.append(FeedForwardTrainer(config, **arguments))
        return trainers[0]

    config.setup = setup  # type: ignore[method-assign]
    writer.EVENT_WRITERS.clear()
    train_loop(rank, processes, config, rank)
    return {name: p.detach() for name, p in trainers[0].pipeline.model.named_parameters()}


def process(rank: int, processes: int, data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", world_size=processes, rank=rank)
    results: dict[str, Any] = {}
    torch.manual_seed(rank)
    trainer = FeedForwardTrainer(config_of(data, folder / f"looked_at_by_{rank}", 1), rank, processes)
    trainer.setup()
    results["before"] = {name: p.detach().clone() for name, p in trainer.pipeline.model.named_parameters()}
    results |= observations(trainer)
    results["problem"] = problem_of_one_process(trainer, rank)
    (folder / "runs" / str(rank)).mkdir(parents=True)
    whole = config_of(data, folder / "runs" / str(rank), 1)
    results["trained"] = trained(whole, rank, processes)
    results["drawn"] = torch.rand(3)
    resumed = config_of(data, folder / "runs" / str(rank), 1, "resumed")
    dist.barrier()
    resumed.load_checkpoint = checkpoint_path(folder / "runs/0/scenes/tokengs-tiny/run/nerfstudio_models", SAVED)
    resumed.machine.seed = 7
    results["resumed"] = trained(resumed, rank, processes)
    results["drawn_after_resuming"] = torch.rand(3)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("distributed")
    mp.start_processes(process, (2, data, folder), nprocs=2, start_method="fork")
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    return first, second, folder


@pytest.fixture(scope="module")
def alone(data: Path, ranks: tuple[dict, dict, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process that sees both batches, with the parameters that the two began with."""
    trainer = FeedForwardTrainer(config_of(data, tmp_path_factory.mktemp("alone"), 2))
    trainer.setup()
    with torch.no_grad():
        for name, parameter in trainer.pipeline.model.named_parameters():
            parameter.copy_(ranks[0]["before"][name])
    return observations(trainer)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def test_each_process_sees_its_own_scenes(ranks: tuple[dict, dict, Path], alone: dict) -> None:
    assert ranks[0]["names"] + ranks[1]["names"] == alone["names"]
    assert len(set(alone["names"])) == 2


@pytest.mark.parametrize("batches", [1, 2])
def test_gradients_of_a_step_equal_those_of_one_process_on_the_joint_batch(
    ranks: tuple[dict, dict, Path], alone: dict, batches: int
) -> None:
    for rank in ranks[:2]:
        assert_close(rank[f"gradients_{batches}"], alone[f"gradients_{batches}"], rtol=1e-4, atol=1e-6)
    assert_close(ranks[0][f"gradients_{batches}"], ranks[1][f"gradients_{batches}"], rtol=0, atol=0)


def test_every_process_has_the_metrics_over_all_scenes(ranks: tuple[dict, dict, Path], alone: dict) -> None:
    measured = [name for name in alone["metrics"] if name not in ("fps", "seconds_to_reconstruct")]
    assert alone["metrics"]["num_scenes"] == 3, "an odd number of scenes over two processes"
    for name in measured:
        assert ranks[0]["metrics"][name] == ranks[1]["metrics"][name] == pytest.approx(alone["metrics"][name], abs=1e-5), name


def test_a_scene_that_one_process_cannot_read_stops_the_evaluation_of_all(ranks: tuple[dict, dict, Path]) -> None:
    """Otherwise the others would wait for its figures until the launcher gives up."""
    assert ranks[0]["problem"] == ranks[1]["problem"] != ""


def test_parameters_are_the_same_in_both_processes_after_training(ranks: tuple[dict, dict, Path]) -> None:
    first, second, _ = ranks
    assert_close(first["before"], second["before"], rtol=0, atol=0)
    assert_close(first["trained"], second["trained"], rtol=0, atol=0)
    assert sum(not torch.equal(first["trained"][name], value) for name, value in first["before"].items()) > 10


def test_only_the_first_process_writes(ranks: tuple[dict, dict, Path]) -> None:
    first, second = (ranks[2] / "runs" / str(rank) / "scenes/tokengs-tiny/run" for rank in range(2))
    assert sorted(os.listdir(first / "nerfstudio_models")) == [f"step-{step:09d}.ckpt" for step in (SAVED, STEPS - 1)]
    assert not (second / "nerfstudio_models").exists()
    assert any(name.startswith("events.out") for name in os.listdir(first))
    assert not any(name.startswith("events.out") for name in os.listdir(second))


def test_a_checkpoint_of_two_processes_has_the_names_of_one(ranks: tuple[dict, dict, Path]) -> None:
    state = read_checkpoint(checkpoint_path(ranks[2] / "runs/0/scenes/tokengs-tiny/run/nerfstudio_models", SAVED))
    assert {key.removeprefix("_model.") for key in state["pipeline"]} == set(ranks[0]["before"])
    assert len(state["random_states"]) == 2


def test_two_processes_resume_exactly(ranks: tuple[dict, dict, Path]) -> None:
    for rank in ranks[:2]:
        assert_close(rank["resumed"], rank["trained"], rtol=0, atol=0)
        assert torch.equal(rank["drawn_after_resuming"], rank["drawn"])
    assert not torch.equal(ranks[0]["drawn"], ranks[1]["drawn"]), "each process has its own random state back"
