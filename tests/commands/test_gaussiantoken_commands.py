"""GaussianToken from the first command to the last: training, resuming, evaluation, exports, tokens, published weights in and out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts import train
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.exporter import ExportGaussianSplat
from nerfstudio.scripts.render import RenderInterpolated
from nerfstudio.utils import writer
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests import tiny_runs
from tests.tiny_pictures import tiny_picture_config, tiny_pictures, write_arrays, write_folder, write_zip
from token_methods.core.metrics import psnr
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.discriminator import PatchDiscriminator
from token_methods.gaussiantoken.losses import LossWeights
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.gaussiantoken.weights import published_weights, shadow_name
from token_methods.multiscene.checkpoints import checkpoint_path, read_checkpoint
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig
from token_methods.rendering.splat_files import read_splats

Command = Callable[..., str]
OURS = [name for name, config in all_methods.items() if isinstance(config, FeedForwardTrainerConfig) and "tokengs" not in name]
STEPS = 7


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures to train on, five held out. Not to be changed."""
    return write_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures outside the run's data. Not to be changed."""
    folder = tmp_path_factory.mktemp("data") / "others"
    folder.mkdir()
    for number, pixels in enumerate(tiny_pictures(3, seed=5)):
        Image.fromarray(pixels).resize((50, 40)).save(folder / f"other_{number}.png")
    return folder


def long_config(pictures: Path, folder: Path, name: str = "run") -> FeedForwardTrainerConfig:
    """Random windows, dropout, and a generator that hears the discriminator from the fourth step on."""
    config = tiny_picture_config(pictures, folder, STEPS, name)
    config.pipeline.model.loss = LossWeights(perceptual=0.0, generator_start_epoch=1)
    config.pipeline.model.steps_per_epoch = 3
    config.pipeline.datamanager.train_augmentation = "random-resized-crop"
    return config


@pytest.fixture(scope="session")
def picture_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def evaluated(run: Path, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What `ns-eval` writes: the summary of its JSON file, and the rows of pictures beside the images."""
    ComputePSNR(load_config=run / "config.yml", output_path=folder / "metrics.json", render_output_path=folder / "images").main()
    report = json.loads((folder / "images" / "per_image.json").read_text())
    return json.loads((folder / "metrics.json").read_text())["results"], report["images"]


# ns-train.


@pytest.mark.parametrize(("kind", "dataparser"), [("folder", "image-folder-data"), ("zip", "image-folder-data"), ("npz", "cifar-data")])
def test_ns_train_reads_pictures_from_wherever_they_are(
    kind: str, dataparser: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert type(config.pipeline.datamanager.dataparser).__name__ == {"cifar-data": "CifarDataParserConfig"}.get(
        dataparser, "ImageFolderDataParserConfig"
    )


def test_scalars_tell_both_parts_of_a_step(picture_run: Path) -> None:
    events = EventAccumulator(str(picture_run), size_guidance={"scalars": 0}).Reload()
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


@pytest.mark.parametrize(("after", "num_workers", "seed"), [(2, 3, 7), (4, 0, 42)])
def test_a_resumed_run_equals_the_uninterrupted_one(
    picture_run: Path, pictures: Path, tmp_path: Path, after: int, num_workers: int, seed: int
) -> None:
    """Bit for bit: network, average, discriminator, LeCAM, codebook, scale range, both optimisers and schedules, random states. The
    uninterrupted run was evaluated on the way, the resumed one is not."""
    config = long_config(pictures, tmp_path)
    config.load_dir, config.load_step = picture_run / "nerfstudio_models", after
    config.pipeline.datamanager.num_workers, config.machine.seed = num_workers, seed
    folder = tiny_runs.run(config)
    expected = read_checkpoint(checkpoint_path(picture_run / "nerfstudio_models", STEPS - 1))
    found = read_checkpoint(checkpoint_path(folder / "nerfstudio_models", STEPS - 1))
    assert not differences(expected, found)
    before = read_checkpoint(checkpoint_path(picture_run / "nerfstudio_models", after))
    moved = " ".join(differences(before["pipeline"], found["pipeline"]))
    for part in ("network.img_encoder", "average.module.gs_embed", "discriminator.main.0", "lecam.real", "_codebook.embed", "range_max"):
        assert part in moved, part
    assert found["optimizers"].keys() == {"generator", "discriminator"} == found["schedulers"].keys()


def test_training_goes_on_from_the_average_of_another_run(picture_run: Path, pictures: Path, tmp_path: Path) -> None:
    """As documented for `--pipeline.initial-weights`: the network that was evaluated, with a fresh average and discriminator."""
    config = tiny_picture_config(pictures, tmp_path, steps=1)
    config.pipeline.initial_weights = picture_run
    config.optimizers["generator"]["optimizer"].lr = config.optimizers["generator"]["scheduler"].initial = 0.0
    folder = tiny_runs.run(config)
    weights = read_checkpoint(checkpoint_path(folder / "nerfstudio_models", 0))["pipeline"]
    before = read_checkpoint(checkpoint_path(picture_run / "nerfstudio_models", STEPS - 1))["pipeline"]
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


# ns-eval.


def test_ns_eval_measures_the_average_on_every_held_out_picture(picture_run: Path, pictures: Path, tmp_path: Path) -> None:
    results, rows = evaluated(picture_run, tmp_path)
    assert results["num_images"] == 5 and [row["name"] for row in rows] == [f"val/{number:03d}.png" for number in range(8, 13)]
    network = GaussianTokenNetwork(PRESETS["tiny"].architecture).eval()
    state = read_checkpoint(checkpoint_path(picture_run / "nerfstudio_models", STEPS - 1))["pipeline"]
    start = "_model.average.module."
    network.load_state_dict({key.removeprefix(start): value for key, value in state.items() if key.startswith(start)})
    for row in rows:
        assert row["psnr"] == pytest.approx(measured(network, pictures / row["name"]), abs=1e-3)


def measured(network: GaussianTokenNetwork, path: Path) -> float:
    """PSNR of a network on a picture of its size, without any of our commands."""
    image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        reconstruction = (network.reconstruct(image * 2 - 1) + 1) / 2
    return psnr(reconstruction.clamp(0, 1), image).item()


def test_one_picture_or_other_pictures(
    picture_run: Path, pictures: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, arrays = write_zip(tmp_path / "others.zip", others), write_arrays(tmp_path / "arrays.npz", held_out=2)
    said = {
        "--scene val/011.png": ["val/011.png"],
        "--scene 1": ["val/009.png"],
        "--scene train/002.png": ["train/002.png"],
        f"--scene {others / 'other_1.png'}": [str(others / "other_1.png")],
        f"--data {others}": [f"other_{number}.png" for number in range(3)],
        f"--data {archive}": [f"other_{number}.png" for number in range(3)],
        f"--data {others / 'other_1.png'}": ["other_1.png"],
        f"--data {others} --scene other_2.png": ["other_2.png"],
        f"--data {arrays} --dataparser cifar-data": ["test/00000.png", "test/00001.png"],
    }
    for number, (text, names) in enumerate(said.items()):
        monkeypatch.setenv("NERFSTUDIO_TOKENS", text)
        results, rows = evaluated(picture_run, tmp_path / str(number))
        assert [row["name"] for row in rows] == names, text
        assert results["num_images"] == len(names)


# Looking at a picture, and its tokens as files.


def test_a_camera_path_and_splats_of_a_named_picture(picture_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", "--scene val/009.png")
    video = tmp_path / "video.mp4"
    RenderInterpolated(load_config=picture_run / "config.yml", output_path=video, pose_source="eval", interpolation_steps=2).main()
    assert video.stat().st_size > 0
    ExportGaussianSplat(load_config=picture_run / "config.yml", output_dir=tmp_path).main()
    assert read_splats(tmp_path / "splat.ply").num_gaussians == 16


def test_tokens_there_and_back(picture_run: Path, others: Path, tmp_path: Path, ns_tokens: Command) -> None:
    """Of pictures of another size than the network's: padded, and cut back."""
    tokens, output = tmp_path / "tokens.safetensors", tmp_path / "pictures"
    assert "3 pictures" in ns_tokens("tokenize", others, "--load-config", picture_run, "--output", tokens)
    ns_tokens("detokenize", tokens, "--load-config", picture_run, "--output-dir", output)
    assert [Image.open(path).size for path in sorted(output.iterdir())] == [(50, 40)] * 3


def test_a_drawing_of_the_tokens(picture_run: Path, tmp_path: Path, ns_tokens: Command) -> None:
    output = tmp_path / "tokens.svg"
    said = ns_tokens("export", "--load-config", picture_run, "--output", output, "--scene", "val/010.png")
    assert f"16 tokens of val/010.png as ellipses: {output}" in said and output.read_text().startswith(("<svg", "<?xml"))


# Published weights.


def lightning_checkpoint(path: Path, preset: str = "tiny", **more: Any) -> dict[str, Tensor]:
    """A file as the published trainer writes it: each trained tensor twice, networks of the loss, and what else Lightning keeps."""
    torch.manual_seed(3)
    live, average = (GaussianTokenNetwork(PRESETS[preset].architecture) for _ in range(2))
    codes = torch.randn_like(live.quantize._codebook.embed)
    for network in (live, average):
        network.quantize._codebook.embed.copy_(codes)
        network.quantize._codebook.embed_avg.copy_(2 * codes)
        network.quantize._codebook.cluster_size.fill_(2.0)
        network.quantize._codebook.initted.fill_(1)
    weights = published_weights(live.state_dict(), PRESETS[preset].architecture, average.state_dict(), PatchDiscriminator().state_dict())
    unread = {
        "gs_embed.op_module_map.ffn.identity_fc.weight": torch.zeros(3),
        shadow_name("gs_embed.op_module_map.ffn.identity_fc.weight"): torch.zeros(3),
        "gs_embed.layers.2.to_features.0.weight": torch.zeros(3),
        "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(64, 3, 3, 3),
    }
    counters = {"epoch": 29, "global_step": 97_530, "pytorch-lightning_version": "2.2.0", "loops": {"fit_loop": {"state_dict": {}}}}
    torch.save(
        {**counters, "state_dict": {**weights, **unread}, "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}], **more}, path
    )
    return weights


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path / "published.ckpt"
    return path, lightning_checkpoint(path)


def test_published_weights_become_a_run(
    published: tuple[Path, dict[str, Tensor]], pictures: Path, others: Path, tmp_path: Path, ns_tokens: Command
) -> None:
    """Evaluation is that of the averaged weights and the live codebook, and every command works on the run."""
    path, weights = published
    imported = tmp_path / "imported"
    said = ns_tokens("import", "--preset", "gaussiantoken-tiny", "--weights", path, "--output-dir", imported, "--data", pictures)
    assert "22 tensors that nothing here reads are left out: model_ema (19), " in said and "loss.perceptual_loss (1)" in said
    network = GaussianTokenNetwork(PRESETS["tiny"].architecture).eval()
    own = {key: weights.get(shadow_name(key), weights.get(key, value)) for key, value in network.state_dict().items()}
    network.load_state_dict(own)
    _, rows = evaluated(imported, tmp_path / "evaluation")
    assert len(rows) == 5
    for row in rows:
        assert row["psnr"] == pytest.approx(measured(network, pictures / row["name"]), abs=1e-3)
    tokens = tmp_path / "tokens.safetensors"
    ns_tokens("tokenize", others, "--load-config", imported, "--output", tokens)
    ns_tokens("export", "--load-config", imported, "--output", tmp_path / "tokens.svg")
    ExportGaussianSplat(load_config=imported / "config.yml", output_dir=tmp_path / "splats").main()
    assert tokens.is_file() and (tmp_path / "tokens.svg").is_file() and (tmp_path / "splats" / "splat.ply").is_file()


def test_published_weights_come_back_bit_for_bit(published: tuple[Path, dict[str, Tensor]], tmp_path: Path, ns_tokens: Command) -> None:
    path, weights = published
    ns_tokens("import", "--preset", "gaussiantoken-tiny", "--weights", path, "--output-dir", tmp_path / "imported")
    again = tmp_path / "again.safetensors"
    ns_tokens("export-weights", "--load-config", tmp_path / "imported", "--output", again)
    found = load_file(again)
    assert found.keys() == weights.keys()
    assert [key for key, value in weights.items() if not torch.equal(found[key].to(value.dtype), value)] == []
    ns_tokens("import", "--preset", "gaussiantoken-tiny", "--weights", again, "--output-dir", tmp_path / "second")
    first, second = (read_checkpoint(checkpoint_path(tmp_path / name / "nerfstudio_models", 0)) for name in ("imported", "second"))
    assert not differences(first["pipeline"], second["pipeline"])


def test_training_goes_on_from_published_weights(
    published: tuple[Path, dict[str, Tensor]], pictures: Path, tmp_path: Path, ns_tokens: Command
) -> None:
    path, weights = published
    ns_tokens("import", "--preset", "gaussiantoken-tiny", "--weights", path, "--output-dir", tmp_path / "imported")
    config = tiny_picture_config(pictures, tmp_path / "outputs", steps=1)
    config.pipeline.initial_weights = tmp_path / "imported"
    run = tiny_runs.run(config)
    found = read_checkpoint(checkpoint_path(run / "nerfstudio_models", 0))["pipeline"]["_model.network.img_decoder.conv_out.weight"]
    expected = weights[shadow_name("img_decoder.conv_out.weight")]
    assert (found - expected).abs().max() < 2e-6, "one step at the rate of the first"


def test_a_checkpoint_with_every_published_key_of_cifar_is_taken(reference: Path, tmp_path: Path, ns_tokens: Command) -> None:
    manifest = json.loads((reference / "parity" / "gaussiantoken" / "state_dict_manifest.json").read_text())["presets"]["cifar_gqgan"]
    state = {key: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape) for key, (shape, dtype, _) in manifest.items()}
    torch.save({"state_dict": state}, tmp_path / "cifar.ckpt")
    said = ns_tokens("import", "--preset", "gaussiantoken-cifar", "--weights", tmp_path / "cifar.ckpt", "--output-dir", tmp_path / "run")
    found = read_checkpoint(checkpoint_path(tmp_path / "run" / "nerfstudio_models", 0))["pipeline"]
    assert not any(value.any() for key, value in found.items() if key.startswith(("_model.network.img", "_model.average.module.img")))
    assert "of cifar.ckpt are now the run" in said
    shutil.rmtree(tmp_path / "run")


# As a user starts it.


def test_commands_as_processes_of_their_own(pictures: Path, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path / "home"), "TORCH_HOME": "/dev/null/none", "COLUMNS": "200"}

    def start(*words: object) -> str:
        command = [str(Path(sys.executable).with_name(str(words[0]))), *map(str, words[1:])]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result.stdout

    options = ["--max-num-iterations", 2, "--pipeline.datamanager.batch-size", 4, "--output-dir", tmp_path, "--timestamp", "t"]
    start("ns-train", "gaussiantoken-tiny", "--data", pictures, *options, "--machine.device-type", "cpu", "image-folder-data")
    run = tmp_path / "pictures" / "gaussiantoken-tiny" / "t"
    said = start("ns-eval", "--load-config", run / "config.yml", "--output-path", tmp_path / "metrics.json")
    assert "LPIPS (vgg), VGG16-FD and VGG16-KD are not measured" in said
    assert json.loads((tmp_path / "metrics.json").read_text())["results"]["num_images"] == 5
    start("ns-tokens", "tokenize", pictures / "val", "--load-config", run, "--output", tmp_path / "tokens.safetensors")
    assert (tmp_path / "tokens.safetensors").is_file()
