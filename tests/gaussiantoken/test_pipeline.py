"""The pipeline of image tokenizers behind nerfstudio's commands: evaluation in training and by `ns-eval`, and the picture in hand."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nerfstudio.scripts.eval import ComputePSNR
from PIL import Image

from dataparsers.cifar import CifarDataParserConfig
from dataparsers.image_folder import ImageFolderDataParserConfig
from method_configs.gaussiantoken import gaussiantoken_tiny, vqgan_cifar
from tests.tiny_runs import run
from token_methods.core import inception, perceptual
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.pipeline import ImagePipeline, ImagePipelineConfig
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.trainer import FeedForwardTrainerConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (15, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine that has no weights and no network; nothing is downloaded here."""

    def unavailable(net: str, *_: Any) -> None:
        raise perceptual.LpipsUnavailable(f"no weights of {net}")

    monkeypatch.setattr(perceptual, "load_lpips", unavailable)
    monkeypatch.setattr(inception, "CACHE_FOLDER", tmp_path / "nothing")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 pictures to train on, 7 to evaluate."""
    path = tmp_path_factory.mktemp("cifar") / "c.npz"
    labels = np.zeros(8, dtype=np.int64)
    np.savez(path, x_train=PIXELS[:8], y_train=labels, x_test=PIXELS[8:], y_test=labels[:7], classes=np.array(["x"]))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(PIXELS):
        path = root / ("train/n01" if number < 8 else "val") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def small(config: ImagePipelineConfig, data: Path) -> ImagePipelineConfig:
    config = copy.deepcopy(config)
    config.datamanager.dataparser = (CifarDataParserConfig if data.suffix == ".npz" else ImageFolderDataParserConfig)(data=data)
    config.datamanager.data = None
    config.datamanager.batch_size, config.datamanager.eval_batch_size, config.datamanager.num_workers = 4, 3, 0
    config.datamanager.cache_gigabytes = 0.01
    return config


def pipeline_of(data: Path, test_mode: str = "val", **options: Any) -> ImagePipeline:
    torch.manual_seed(0)
    config = small(gaussiantoken_tiny.config.pipeline, data)
    for name, value in options.items():
        setattr(config if hasattr(config, name) else config.datamanager, name, value)
    pipeline: ImagePipeline = config.setup(device="cpu", test_mode=test_mode)
    return pipeline


def learned(pipeline: ImagePipeline) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in pipeline.model.state_dict().items()}


# Evaluation during training.


def test_training_is_evaluated_on_the_first_pictures_by_cheap_measures(arrays: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = pipeline_of(arrays, max_evaluation_images=5)
    summary = pipeline.get_average_eval_image_metrics(step=20)
    assert summary["num_images"] == 5
    assert {"psnr", "ssim", "mean_colour_psnr", "published_psnr", "code_usage", "code_perplexity", "bits_per_image"} <= summary.keys()
    assert all(type(value) is float for value in summary.values())
    said = " ".join(capsys.readouterr().out.split())
    assert "Step 20: PSNR" in said and "over 5 picture(s) with crop resize-centre" in said
    assert "not measured" not in said


@pytest.mark.parametrize("evaluate", ["get_eval_loss_dict", "get_eval_image_metrics_and_images", "get_average_eval_image_metrics"])
def test_evaluation_leaves_training_as_it_was(arrays: Path, evaluate: str) -> None:
    """Codebook, scale range, averages, batch statistics and random numbers; also where it fails."""
    pipeline = pipeline_of(arrays)
    pipeline.train()
    before, drawn = learned(pipeline), torch.get_rng_state()
    getattr(pipeline, evaluate)(step=1)
    after = learned(pipeline)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert pipeline.model.training and pipeline.training
    assert all(parameter.grad is None for parameter in pipeline.model.parameters())
    pipeline.eval()
    getattr(pipeline, evaluate)(step=1)


def test_losses_are_of_a_whole_batch(arrays: Path) -> None:
    pipeline = pipeline_of(arrays)
    pipeline.train()
    outputs, losses, metrics = pipeline.get_eval_loss_dict(step=3)
    assert len(outputs.scenes) == 3 and all(name.startswith("test/") for name in outputs.scenes)
    assert losses["loss"].item() == pytest.approx(metrics["loss_l1"].item())
    assert pipeline.get_eval_loss_dict(step=3)[0].scenes == outputs.scenes
    seen = {name for step in range(0, 10_000, 500) for name in pipeline.get_eval_loss_dict(step)[0].scenes}
    assert len(seen) == 7, "steps of evaluation are multiples of a round number, and still every picture has its turn"


@pytest.mark.parametrize("method", ["gaussians", "grid"])
def test_panels_are_pictures(arrays: Path, method: str) -> None:
    config = small(gaussiantoken_tiny.config.pipeline, arrays)
    if method == "grid":
        config = small(vqgan_cifar.config.pipeline, arrays)
        config.model.architecture = dataclasses.replace(PRESETS["tiny"].architecture, embedder=None, map_size=(8, 8))
    pipeline = config.setup(device="cpu", test_mode="val")
    metrics, panels = pipeline.get_eval_image_metrics_and_images(step=0)
    rows = 4 if method == "gaussians" else 3
    assert {name: tuple(panel.shape) for name, panel in panels.items()} == {
        "reconstructions": (rows * 128, 3 * 128, 3),
        "code_usage": (160, 640, 3),
    }
    for panel in panels.values():
        assert panel.min() >= 0 and panel.max() <= 1
    assert metrics["num_rays"] == 3 * 32 * 32 and metrics["psnr"] > 0


# ns-eval.


@pytest.fixture(scope="module")
def trained(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps."""
    config: FeedForwardTrainerConfig = copy.deepcopy(gaussiantoken_tiny.config)
    config.pipeline = small(config.pipeline, arrays)
    config.data, config.output_dir = None, tmp_path_factory.mktemp("runs")
    config.experiment_name, config.timestamp, config.vis = "pictures", "run", "tensorboard"
    config.machine.device_type, config.max_num_iterations = "cpu", 2
    config.steps_per_save = config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    config.logging.local_writer.enable, config.logging.profiler = False, "none"
    return run(config)


def test_ns_eval_measures_every_picture(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ComputePSNR(load_config=trained / "config.yml", output_path=tmp_path / "metrics.json", render_output_path=tmp_path / "pictures").main()
    results = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)["results"]
    assert results["num_images"] == 7
    assert results["psnr_std"] > 0
    report = json.loads((tmp_path / "pictures/per_image.json").read_text(), parse_constant=pytest.fail)
    assert report["mean"] == results
    assert (report["crop"], report["precision"]) == ("resize-centre", "float32")
    assert [image["name"] for image in report["images"]] == [f"test/{number:05d}.png" for number in range(7)]
    assert Image.open(tmp_path / "pictures/comparison.png").size == (7 * 128, 3 * 128)
    said = " ".join(capsys.readouterr().out.split())
    for sentence in (
        "LPIPS (vgg), VGG16-FD and VGG16-KD are not measured: no weights of vgg",
        "LPIPS (alex) is not measured: no weights of alex",
        "rFID is not measured: its Inception weights are not at",
    ):
        assert said.count(sentence) == 1


def test_ns_eval_measures_the_named_picture_alone(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", "--scene test/00002.png")
    ComputePSNR(load_config=trained / "config.yml", output_path=tmp_path / "metrics.json", render_output_path=tmp_path).main()
    report = json.loads((tmp_path / "per_image.json").read_text())
    assert [image["name"] for image in report["images"]] == ["test/00002.png"]
    assert report["mean"]["num_images"] == 1 and report["mean"]["psnr_std"] == 0


def test_published_precision_is_left_behind(arrays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ns-eval` computes in float32; what comes after, and evaluation in training, as configured."""
    pipeline = pipeline_of(arrays)
    seen: list[str] = []
    encode = pipeline.model.encode
    monkeypatch.setattr(pipeline.model, "encode", lambda views: seen.append(pipeline.model.config.precision) or encode(views))
    pipeline.get_average_eval_image_metrics(step=0)
    pipeline.get_average_eval_image_metrics()
    assert set(seen[:3]) == {"bfloat16"} and set(seen[3:]) == {"float32"} and len(seen) == 6
    assert pipeline.model.config.precision == "bfloat16"


def test_a_broken_picture_stops_evaluation_and_is_named(folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folder, tmp_path / "pictures")
    pipeline = pipeline_of(data)
    pipeline.train()
    (data / "val/12.png").write_bytes(b"broken")
    with pytest.raises(SceneError, match=r"val/12\.png is not an image"):
        pipeline.get_average_eval_image_metrics(output_path=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert pipeline.training and pipeline.model.config.precision == "bfloat16"


# Averaged weights.


def test_the_average_of_the_weights_is_evaluated_while_the_weights_are_trained(arrays: Path) -> None:
    pipeline = pipeline_of(arrays)
    before = pipeline.get_average_eval_image_metrics(step=0)["psnr"]
    with torch.no_grad():
        for parameter in pipeline.model.network.parameters():
            parameter.mul_(1.5)
    assert pipeline.get_average_eval_image_metrics(step=0)["psnr"] == before
    assert pipeline.model.average is not None
    pipeline.model.average.restart(pipeline.model.network)
    assert pipeline.get_average_eval_image_metrics(step=0)["psnr"] != before


# The picture in hand.


def test_the_picture_in_hand_is_encoded_and_can_be_changed(folder: Path) -> None:
    pipeline = pipeline_of(folder, "test")
    pipeline.eval()
    pipeline.refresh_scene()
    assert pipeline.model.scene is not None
    assert pipeline.model.scene.batch.names == ("val/08.png",)
    pipeline.select_scene("val/11.png")
    scene = pipeline.model.scene
    assert scene.batch.names == ("val/11.png",) and scene.representation.images.shape == (1, 3, 32, 32)
    with pytest.raises(SceneError, match="neither a picture of the data nor a file"):
        pipeline.select_scene("val/99.png")
    assert pipeline.model.scene is scene and pipeline.datamanager.current.name == "val/11.png"
    assert pipeline.get_average_eval_image_metrics()["num_images"] == 7, "only a command that names a picture measures it alone"


# Several processes.


def process(rank: int, data: Path, broken: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", world_size=2, rank=rank)
    summary = pipeline_of(data).get_average_eval_image_metrics(step=0, get_std=True, output_path=folder / str(rank))
    try:
        pipeline_of(broken).get_average_eval_image_metrics(step=0)
    except SceneError as error:
        (folder / f"problem{rank}").write_text(str(error))
    few = pipeline_of(data, max_evaluation_images=1).get_average_eval_image_metrics(step=0)
    (folder / f"{rank}.json").write_text(json.dumps([summary, few]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes are forked, which CUDA does not survive")
def test_two_processes_measure_what_one_does(arrays: Path, folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "pictures")
    (broken / "val/12.png").write_bytes(b"broken")  # in the second batch, which is the second process's
    mp.start_processes(process, (arrays, broken, tmp_path), nprocs=2, start_method="fork")
    pipeline = pipeline_of(arrays)
    alone = pipeline.get_average_eval_image_metrics(step=0, get_std=True, output_path=tmp_path / "alone")
    for rank in range(2):
        summary, few = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {**summary, "images_per_second": 0} == pytest.approx(
            {**alone, "images_per_second": 0}, rel=1e-6, abs=1e-8
        )  # an SSIM near zero
        assert few["num_images"] == 1, "one of the processes had nothing to do"
        assert "val/12.png" in (tmp_path / f"problem{rank}").read_text(), "both stop"
    reports = [json.loads((tmp_path / place / "per_image.json").read_text())["images"] for place in ("0", "alone")]
    assert [image["name"] for image in reports[0]] == [image["name"] for image in reports[1]]
    assert not (tmp_path / "1").exists(), "the first process writes"
