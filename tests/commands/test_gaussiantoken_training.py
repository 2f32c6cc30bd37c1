"""`ns-train` on pictures: from wherever they are, resumed bit for bit, and with options that say what they do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts import train
from nerfstudio.utils import writer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dataparsers.cifar import CifarDataParserConfig
from dataparsers.image_folder import ImageFolderDataParserConfig
from tests import tiny_runs
from tests.commands.picture_evaluation import differences
from tests.tiny_pictures import tiny_picture_config, write_arrays, write_zip
from token_methods.gaussiantoken.losses import LossWeights
from token_methods.multiscene.checkpoints import checkpoint_path, read_checkpoint
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig

OURS = [name for name, config in all_methods.items() if isinstance(config, FeedForwardTrainerConfig) and "tokengs" not in name]
STEPS = 7


def long_config(pictures: Path, folder: Path, name: str = "run") -> FeedForwardTrainerConfig:
    """Random windows, dropout, and a generator that hears the discriminator from the fourth step on."""
    config = tiny_picture_config(pictures, folder, STEPS, name)
    config.pipeline.model.loss = LossWeights(perceptual=0.0, generator_start_epoch=1)
    config.pipeline.model.steps_per_epoch = 3
    config.pipeline.datamanager.train_augmentation = "random-resized-crop"
    return config


@pytest.fixture(scope="session")
def long_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of seven steps, evaluated on the way. Not to be changed."""
    torch.set_num_threads(1)
    config = long_config(pictures, tmp_path_factory.mktemp("runs"))
    config.steps_per_save, config.kept_checkpoints = 2, 0
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 3
    return tiny_runs.run(config)


def ns_train(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """As on the command line, in this process."""
    writer.EVENT_WRITERS.clear()
    monkeypatch.setattr(sys, "argv", ["ns-train", *map(str, words)])
    train.entrypoint()


@pytest.mark.parametrize(
    ("kind", "dataparser", "named"),
    [
        ("folder", "image-folder-data", ImageFolderDataParserConfig),
        ("zip", "image-folder-data", ImageFolderDataParserConfig),
        ("npz", "cifar-data", CifarDataParserConfig),
    ],
)
def test_ns_train_reads_pictures_from_wherever_they_are(
    kind: str, dataparser: str, named: type, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {
        "folder": lambda: pictures,
        "zip": lambda: write_zip(tmp_path / "p.zip", pictures),
        "npz": lambda: write_arrays(tmp_path / "p.npz"),
    }
    options = ["--output-dir", tmp_path, "--experiment-name", "e", "--timestamp", "t", "--machine.device-type", "cpu"]
    options += ["--max-num-iterations", 2, "--steps-per-eval-image", 1, "--steps-per-eval-all-images", 1]
    options += ["--pipeline.datamanager.batch-size", 4, "--pipeline.datamanager.num-workers", 1, "--logging.profiler", "none"]
    ns_train(monkeypatch, "gaussiantoken-tiny", "--data", data[kind](), *options, dataparser)
    run = tmp_path / "e" / "gaussiantoken-tiny" / "t"
    state = read_checkpoint(checkpoint_path(run / "nerfstudio_models", 1))
    assert {key.split(".")[1] for key in state["pipeline"]} == {"device_indicator_param", "network", "average", "discriminator", "lecam"}
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"Eval Images/reconstructions", "Eval Images/code_usage"}
    assert {"Eval Images Metrics/psnr", "Eval Images Metrics Dict (all images)/code_usage"} <= set(events.Tags()["scalars"])
    config = yaml.load((run / "config.yml").read_text(), Loader=yaml.Loader)
    assert type(config.pipeline.datamanager.dataparser) is named


def test_scalars_tell_both_parts_of_a_step(long_run: Path) -> None:
    events = EventAccumulator(str(long_run), size_guidance={"scalars": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    terms = ("l1", "adversarial", "commitment", "discriminator", "lecam")
    assert {f"Train Metrics Dict/loss_{term}" for term in terms} <= scalars
    assert {"Train Metrics Dict/gradient_norm", "Train Metrics Dict/gradient_norm/discriminator"} <= scalars
    assert {
        "Train Loss Dict/loss",
        "Train Loss Dict/discriminator_loss",
        "learning_rate/generator",
        "learning_rate/discriminator",
    } <= scalars
    assert {"Train Metrics Dict/tokens/codes", "Train Metrics Dict/tokens/mean_scale", "Eval Loss", "Eval Images Metrics/ssim"} <= scalars


@pytest.mark.parametrize(("after", "num_workers", "seed"), [(2, 3, 7), (4, 0, 42)])
def test_a_resumed_run_equals_the_uninterrupted_one(
    long_run: Path, pictures: Path, tmp_path: Path, after: int, num_workers: int, seed: int
) -> None:
    """Bit for bit: network, average, discriminator, LeCAM, codebook, scale range, both optimisers and schedules, random states. The
    uninterrupted run was evaluated on the way, the resumed one is not."""
    config = long_config(pictures, tmp_path)
    config.load_dir, config.load_step = long_run / "nerfstudio_models", after
    config.pipeline.datamanager.num_workers, config.machine.seed = num_workers, seed
    folder = tiny_runs.run(config)
    expected = read_checkpoint(checkpoint_path(long_run / "nerfstudio_models", STEPS - 1))
    found = read_checkpoint(checkpoint_path(folder / "nerfstudio_models", STEPS - 1))
    assert not differences(expected, found)
    before = read_checkpoint(checkpoint_path(long_run / "nerfstudio_models", after))
    moved = " ".join(differences(before["pipeline"], found["pipeline"]))
    for part in ("network.img_encoder", "average.module.gs_embed", "discriminator.main.0", "lecam.real", "_codebook.embed", "range_max"):
        assert part in moved, part
    assert found["optimizers"].keys() == {"generator", "discriminator"} == found["schedulers"].keys()


def test_training_goes_on_from_the_average_of_another_run(long_run: Path, pictures: Path, tmp_path: Path) -> None:
    """As documented for `--pipeline.initial-weights`: the network that was evaluated, with a fresh average and discriminator."""
    config = tiny_picture_config(pictures, tmp_path, steps=1)
    config.pipeline.initial_weights = long_run
    config.optimizers["generator"]["optimizer"].lr = config.optimizers["generator"]["scheduler"].initial = 0.0
    folder = tiny_runs.run(config)
    weights = read_checkpoint(checkpoint_path(folder / "nerfstudio_models", 0))["pipeline"]
    before = read_checkpoint(checkpoint_path(long_run / "nerfstudio_models", STEPS - 1))["pipeline"]
    key = "img_decoder.conv_out.weight"
    assert torch.equal(weights[f"_model.network.{key}"], before[f"_model.average.module.{key}"])
    assert not torch.equal(before[f"_model.network.{key}"], before[f"_model.average.module.{key}"])


@pytest.mark.parametrize("method", OURS)
def test_a_saved_configuration_is_the_same_when_it_is_read(method: str) -> None:
    config = all_methods[method]
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config
    assert config.vis == "tensorboard", "nerfstudio's default would call a server"


def test_there_are_six_methods() -> None:
    assert sorted(OURS) == sorted(
        [
            "gaussiantoken-cifar",
            "gaussiantoken-mini-imagenet",
            "gaussiantoken-imagenet",
            "gaussiantoken-tiny",
            "vqgan-baseline",
            "vqgan-cifar",
        ]
    )


OPTION = re.compile(r"^(--[a-z][\w.-]*)", re.MULTILINE)


def help_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        ns_train(monkeypatch, *words, "--help")
    assert ended.value.code == 0
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    return "\n".join(line.strip("│╭╮╰╯─ ") for line in lines)


@pytest.mark.parametrize(
    "words",
    [
        ("gaussiantoken-cifar",),
        ("gaussiantoken-cifar", "pipeline.model.architecture.embedder:embedder-architecture"),
        ("gaussiantoken-cifar", "cifar-data"),
        ("vqgan-baseline", "image-folder-data"),
    ],
)
def test_every_option_says_what_it_does(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_text(monkeypatch, capsys, *words)
    places = [match.start() for match in OPTION.finditer(text)]
    mute = []
    for start, end in zip(places, [*places[1:], len(text)]):
        option, _, said = text[start:end].partition("\n")
        named, _, beside = option.partition(" ")
        sentence = re.sub(r"\(default:.*", "", f"{beside}\n{said}", flags=re.DOTALL)
        words_said = [word for word in sentence.split() if re.fullmatch(r"[A-Za-z][a-z'-]*[.,;:]?", word)]
        if len(words_said) < 2 and not named.startswith("--data"):
            mute.append(named)
    assert len(places) >= 1 and mute == []


def test_help_hides_what_does_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(monkeypatch, capsys, "gaussiantoken-cifar")
    for option in (
        "loss.perceptual",
        "loss.generator-start-epoch",
        "average-decay",
        "train-augmentation",
        "evaluation-crop",
        "lpips-weights",
    ):
        assert option in text
    for idle in ("tuning-steps", "mixed-precision", "max-norm", "num-rays-per-batch", "context-views", "collider", "sh-degree"):
        assert idle not in text
