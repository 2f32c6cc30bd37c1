"""A training step in two parts: a generator, then its discriminator on the same reconstruction; alone and in two processes."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nerfstudio.scripts.train import train_loop
from nerfstudio.utils import writer
from torch import Tensor

from tests.tiny_pictures import tiny_picture_config, write_arrays
from token_methods.core.views import SceneBatch
from token_methods.gaussiantoken.losses import LossWeights, discriminator_losses, generator_losses
from token_methods.gaussiantoken.model import GaussianTokenModel
from token_methods.multiscene.checkpoints import checkpoint_path, newest_readable
from token_methods.multiscene.guard import PATIENCE, TrainingCollapsed
from token_methods.multiscene.trainer import FeedForwardTrainer, FeedForwardTrainerConfig

HEARD = LossWeights(perceptual=0.0, generator_start_epoch=0)
"""The generator hears the discriminator from the first step on."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arrays(tmp_path_factory.mktemp("data") / "pictures.npz", trained=12)


def trainer_of(config: FeedForwardTrainerConfig, rank: int = 0, processes: int = 1) -> FeedForwardTrainer:
    torch.manual_seed(0)
    trainer = FeedForwardTrainer(config, rank, processes)
    trainer.setup()
    trainer.pipeline.train()
    return trainer


def config_of(data: Path, folder: Path, steps: int = 8, name: str = "run", **architecture: Any) -> FeedForwardTrainerConfig:
    """A network with one layer of each kind and no dropout, so that what is drawn at random does not tell processes apart."""
    config = tiny_picture_config(data, folder, steps, name)
    model = config.pipeline.model
    model.loss, model.average_decay = HEARD, 0.9
    embedder = dataclasses.replace(model.architecture.embedder, num_blocks=1, num_encoder_layers=1, num_decoder_layers=1, dropout=0.0)
    model.architecture = dataclasses.replace(model.architecture, **{"embedder": embedder, **architecture})
    config.get_base_dir().mkdir(parents=True)
    return config


def begin_codebook(model: GaussianTokenModel) -> None:
    """Random codes in the place of those that k-means finds in the first batch, so that this batch need not be the same."""
    book = model.network.quantize._codebook
    codes = torch.randn(book.embed.shape, generator=torch.Generator().manual_seed(1))
    book.embed.copy_(codes)
    book.embed_avg.copy_(codes)
    book.cluster_size.fill_(1.0)
    book.initted.fill_(1)


def stand_still(trainer: FeedForwardTrainer) -> None:
    """No optimiser moves anything: gradients stay those of the parameters that are there."""
    for optimizer in trainer.optimizers.optimizers.values():
        optimizer.param_groups[0]["lr"] = 0.0


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within a ten-thousandth of the largest number of each gradient."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-4 * value.abs().max() + 1e-8, name


def images_of(batch: SceneBatch) -> Tensor:
    assert batch.target.images is not None
    return batch.target.images[:, 0] * 2 - 1


# One process.


def test_three_steps_are_those_of_a_loop_written_by_hand(data: Path, tmp_path: Path) -> None:
    """The published order: forward, generator's loss and step, discriminator's loss on the old reconstruction and step, average.
    Both rates begin at the schedule's start and are set anew after each step."""
    config = config_of(data, tmp_path)
    for group in config.optimizers.values():  # quick enough for the first step to be seen
        group["optimizer"].lr, group["scheduler"].initial = 1e-2, 1e-3
    trainer = trainer_of(config)
    model: GaussianTokenModel = trainer.pipeline.model
    by_hand = copy.deepcopy(model)
    generator, discriminator = (
        torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.999), weight_decay=0.01, fused=True)
        for parameters in by_hand.get_param_groups().values()
    )
    average = {name: parameter.detach().clone() for name, parameter in by_hand.network.named_parameters()}
    rates = [1e-3, 1e-3 + (1e-2 - 1e-3) / 2, 0.5e-2 * (1 + math.cos(2 * math.pi / 8))]  # two steps of warm-up, eight in all
    for step, rate in enumerate(rates):
        model.step = by_hand.step = step
        drawn = torch.get_rng_state()
        trainer.train_iteration(step)
        torch.set_rng_state(drawn)
        for optimizer in (generator, discriminator):
            optimizer.param_groups[0]["lr"] = rate
        images = images_of(trainer.pipeline.datamanager.next_train_batch(step))
        tokens, commitment = by_hand.network.tokenize(images)
        reconstruction = by_hand.network.decode(tokens)
        losses = generator_losses(
            reconstruction, images, commitment, discriminator=by_hand.discriminator, perceptual=None, weights=HEARD, epoch=0
        )
        generator.zero_grad()
        losses["loss"].backward()
        generator.step()
        losses = discriminator_losses(
            images, reconstruction, discriminator=by_hand.discriminator, lecam=by_hand.lecam, weights=HEARD, epoch=0
        )
        discriminator.zero_grad()
        losses["loss"].backward()
        discriminator.step()
        for name, parameter in by_hand.network.named_parameters():
            average[name] += (1 - 0.9) * (parameter.detach() - average[name])
    expected = state_of(by_hand)
    found = state_of(model)
    moved = [name for name in expected if name.startswith(("network.", "discriminator.", "lecam."))]
    assert_close({name: found[name] for name in moved}, {name: expected[name] for name in moved}, rtol=1e-5, atol=1e-7)
    assert_close({name: found[f"average.module.{name}"] for name in average}, average, rtol=1e-5, atol=1e-7)
    assert trainer.optimizers.optimizers["generator"].param_groups[0]["lr"] < rates[2], "a rate for the fourth step is set"


def test_the_generators_part_gives_the_discriminator_no_gradient(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(data, tmp_path))
    model: GaussianTokenModel = trainer.pipeline.model
    seen: list[tuple[dict[str, Tensor], ...]] = []
    trainer.optimizers.optimizers["generator"].register_step_pre_hook(
        lambda *_: seen.append((gradients(model.discriminator), gradients(model.network), state_of(model.discriminator)))
    )
    trainer.train_iteration(0)  # leaves gradients behind in both
    for step in (1, 2):
        before = {name: parameter.detach().clone() for name, parameter in model.discriminator.named_parameters()}
        left = gradients(model.discriminator)
        _, losses, metrics = trainer.train_iteration(step)
        of_discriminator, of_generator, discriminator = seen[-1]
        assert of_generator and all(torch.equal(gradient, left[name]) for name, gradient in of_discriminator.items())
        assert all(torch.equal(discriminator[name], value) for name, value in before.items()), "the generator's part moves it not"
        assert any(not torch.equal(parameter, before[name]) for name, parameter in model.discriminator.named_parameters())
        assert losses.keys() == {"loss", "discriminator_loss"}
        norm = torch.stack([gradient.norm() for gradient in of_generator.values()]).norm()
        assert metrics["gradient_norm"].item() == pytest.approx(norm.item(), rel=1e-4), "of the generator alone"
        norm = torch.stack([gradient.norm() for gradient in gradients(model.discriminator).values()]).norm()
        assert metrics["gradient_norm/discriminator"].item() == pytest.approx(norm.item(), rel=1e-4)


def test_accumulated_batches_are_kept_apart_by_part(data: Path, tmp_path: Path) -> None:
    """Gradients are means over two batches, in both parts; the second part of each batch sees that batch's own reconstruction."""
    config = config_of(data, tmp_path)
    config.accumulated_batches = 2
    trainer = trainer_of(config)
    model: GaussianTokenModel = trainer.pipeline.model
    begin_codebook(model)
    stand_still(trainer)
    by_hand = copy.deepcopy(model)
    trainer.train_iteration(1)
    batches = [images_of(trainer.pipeline.datamanager.next_train_batch(number)) for number in (2, 3)]
    reconstructions = []
    for images in batches:
        tokens, commitment = by_hand.network.tokenize(images)
        reconstructions.append(by_hand.network.decode(tokens))
        terms = generator_losses(
            reconstructions[-1], images, commitment, discriminator=by_hand.discriminator, perceptual=None, weights=HEARD, epoch=0
        )
        (terms["loss"] / 2).backward()
    for images, reconstruction in zip(batches, reconstructions):
        terms = discriminator_losses(
            images, reconstruction, discriminator=by_hand.discriminator, lecam=by_hand.lecam, weights=HEARD, epoch=0
        )
        (terms["loss"] / 2).backward()
    assert_same_gradients(gradients(model.network), gradients(by_hand.network))
    assert_same_gradients(gradients(model.discriminator), gradients(by_hand.discriminator))


# Collapse.


def collapsed_codebook(model: GaussianTokenModel) -> None:
    """One code where the features are, all others out of reach."""
    begin_codebook(model)
    book = model.network.quantize._codebook
    book.embed[:, 1:] += 1e3
    book.embed_avg.copy_(book.embed)


def test_a_collapsed_codebook_is_named(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(data, tmp_path, 50, dead_code_threshold=0.0))
    collapsed_codebook(trainer.pipeline.model)
    cause = "all tokens take the same few codes, so nothing is told; lower the learning rate, or replace dead codes sooner"
    with pytest.raises(TrainingCollapsed, match=f"step {PATIENCE - 1}: for {PATIENCE} steps {cause}.*There is no good checkpoint yet"):
        trainer.train()
    assert not list(tmp_path.rglob("*.ckpt"))


def test_replacing_dead_codes_prevents_it(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(data, tmp_path, PATIENCE + 2))
    collapsed_codebook(trainer.pipeline.model)
    trainer.pipeline.model.network.quantize._codebook.cluster_size.zero_()
    trainer.train()
    _, state = newest_readable(trainer.checkpoint_dir)
    assert state["step"] == PATIENCE + 1


# Two processes.


def two_processes_config(data: Path, folder: Path, batch_size: int) -> FeedForwardTrainerConfig:
    config = config_of(data, folder, dead_code_threshold=0.0)
    config.pipeline.datamanager.batch_size = batch_size
    config.pipeline.model.loss = dataclasses.replace(HEARD, generator_start_epoch=1)  # batch statistics are each process's own
    return config


def one_step(trainer: FeedForwardTrainer) -> dict[str, Any]:
    """Names, gradients and codebook of one step of a trainer that stands still."""
    model: GaussianTokenModel = trainer.pipeline.model
    begin_codebook(model)
    stand_still(trainer)
    trainer.train_iteration(3)
    return {
        "names": trainer.pipeline.datamanager.next_train_batch(3).names,
        "network": gradients(model.network),
        "discriminator": gradients(model.discriminator),
        "codebook": {name: value.float() for name, value in state_of(model.network.quantize).items()},
    }


def trained(config: FeedForwardTrainerConfig, rank: int, processes: int, seed: int) -> dict[str, Tensor]:
    """The model's state after nerfstudio's own training loop."""
    trainers: list[FeedForwardTrainer] = []

    def setup(**arguments: Any) -> FeedForwardTrainer:
        trainers.append(FeedForwardTrainer(config, **arguments))
        return trainers[0]

    config.setup, config.machine.seed = setup, seed  # type: ignore[method-assign]
    writer.EVENT_WRITERS.clear()
    train_loop(rank, processes, config, rank)
    return state_of(trainers[0].pipeline.model)


def process(rank: int, processes: int, data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", world_size=processes, rank=rank)
    torch.manual_seed(rank)
    trainer = FeedForwardTrainer(two_processes_config(data, folder / f"looked_at_by_{rank}", 2), rank, processes)
    trainer.setup()
    trainer.pipeline.train()
    results: dict[str, Any] = {"before": state_of(trainer.pipeline.model)} | one_step(trainer)
    whole, resumed = (config_of(data, folder / str(rank), 5, name) for name in ("whole", "resumed"))
    for config in (whole, resumed):
        embedder = dataclasses.replace(config.pipeline.model.architecture.embedder, dropout=0.1)
        config.pipeline.model.architecture = dataclasses.replace(config.pipeline.model.architecture, embedder=embedder)
        config.steps_per_save, config.kept_checkpoints = 2, 0
    results["trained"] = trained(whole, rank, processes, seed=42)
    dist.barrier()
    resumed.load_checkpoint = checkpoint_path(folder / "0/pictures/gaussiantoken-tiny/whole/nerfstudio_models", 2)
    results["resumed"] = trained(resumed, rank, processes, seed=7)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if torch.cuda.is_available():
        pytest.skip("the processes are forked, which CUDA does not survive")
    folder = tmp_path_factory.mktemp("distributed")
    mp.start_processes(process, (2, data, folder), nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_have_the_gradients_and_the_codebook_of_one_on_the_joint_batch(
    data: Path, ranks: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The generator's. The discriminator normalises by the statistics of each process's own batch, so its gradient is the mean of those
    on both halves of the joint batch."""
    trainer = trainer_of(two_processes_config(data, tmp_path, 4))
    model: GaussianTokenModel = trainer.pipeline.model
    model.load_state_dict(ranks[0]["before"])
    by_hand = copy.deepcopy(model)
    alone = one_step(trainer)
    assert ranks[0]["names"] + ranks[1]["names"] == alone["names"] and len(set(alone["names"])) == 4
    begin_codebook(by_hand)
    images = images_of(trainer.pipeline.datamanager.next_train_batch(3))
    reconstruction = by_hand.network.reconstruct(images).detach()
    for half in (slice(0, 2), slice(2, 4)):
        lecam = copy.deepcopy(by_hand.lecam)
        terms = discriminator_losses(
            images[half], reconstruction[half], discriminator=by_hand.discriminator, lecam=lecam, weights=HEARD, epoch=0
        )
        (terms["loss"] / 2).backward()
    for rank in ranks:
        assert_same_gradients(rank["network"], alone["network"])
        assert_close(rank["codebook"], alone["codebook"], rtol=1e-5, atol=1e-6)
        assert_same_gradients(rank["discriminator"], gradients(by_hand.discriminator))


def test_two_processes_stay_together_and_resume_exactly(ranks: list[dict[str, Any]]) -> None:
    """With k-means, replaced codes and dropout: networks, average, codebook and discriminator, bit for bit. What is each process's own
    until the next step begins are statistics of its batches: of the discriminator's norms, of LeCAM and of the scale range."""
    own = ("running_mean", "running_var", "lecam.real", "lecam.fake", "scale_range", "range_scheduler")
    assert_close(ranks[0]["before"], ranks[1]["before"], rtol=0, atol=0)
    shared = [name for name in ranks[0]["trained"] if not any(part in name for part in own)]
    first, second = ({name: rank["trained"][name] for name in shared} for rank in ranks)
    assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first["network.quantize._codebook.embed"], ranks[0]["before"]["network.quantize._codebook.embed"])
    for rank in ranks:
        assert_close(rank["resumed"], rank["trained"], rtol=0, atol=0)
