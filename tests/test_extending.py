"""The method of docs/extending.md, taken through nerfstudio's own commands: a newcomer's method works without a line elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import tyro
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.plugins.registry import discover_methods
from nerfstudio.scripts import train
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.exporter import ExportGaussianSplat
from nerfstudio.scripts.render import RenderInterpolated
from nerfstudio.utils import writer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tiny_scenes import write_tiny_scenes
from token_methods.commands.main import main as ns_tokens
from token_methods.commands.runs import read_config
from token_methods.core import perceptual
from token_methods.core.weights import WeightsError
from token_methods.multiscene.network_files import read_network
from token_methods.rendering.splat_files import read_splats

NAME = "pixel-gaussians"
EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
STEPS = 120
TRAIN = f"""{NAME} --machine.device-type cpu --max-num-iterations {STEPS} --experiment-name scenes --timestamp run
    --logging.local-writer.enable False --logging.profiler none --steps-per-eval-image 0 --steps-per-eval-all-images 0
    --pipeline.datamanager.image-height 16 --pipeline.datamanager.image-width 16 --pipeline.datamanager.num-target-views 2
    --pipeline.datamanager.num-workers 0 --pipeline.datamanager.cache-gigabytes 0.01 --pipeline.datamanager.eval-scene-fraction 0.25
    --pipeline.model.channels 16 --optimizers.network.scheduler.warmup-steps 10"""


def test_fits_on_a_few_screens() -> None:
    assert len((EXAMPLES / "pixel_gaussians.py").read_text().splitlines()) < 200


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a run that was started the way a user does: registered by the environment variable, set up by flags."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("extending")
    write_tiny_scenes(folder / "scenes", 4, num_frames=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        patch.setenv("NERFSTUDIO_METHOD_CONFIGS", f"{NAME}=pixel_gaussians:pixel_gaussians")
        methods, descriptions = discover_methods()
        patch.setitem(all_methods, NAME, methods[NAME])
        command_line = tyro.conf.FlagConversionOff[tyro.extras.subcommand_type_from_defaults(methods, descriptions)]
        words = [*TRAIN.split(), "--data", str(folder / "scenes"), "--output-dir", str(folder / "outputs")]
        writer.EVENT_WRITERS.clear()
        train.main(tyro.cli(command_line, args=words))
        yield folder / "outputs" / "scenes" / NAME / "run"


def test_loss_falls(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    losses = [event.value for event in events.Scalars("Train Loss")]
    assert len(losses) >= 10
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3]), losses


def test_ns_eval_measures_it_beside_the_baselines(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", "/dev/null/none")  # LPIPS weights are neither found nor downloaded
    monkeypatch.setattr(perceptual, "CACHE_FOLDER", tmp_path / "no weights")
    ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "report.json").main()
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert results["num_scenes"] == 1
    assert results["psnr"] > results["mean_colour_psnr"], results


def test_ns_export_and_ns_render_work_on_it(run: Path, tmp_path: Path) -> None:
    ExportGaussianSplat(load_config=run / "config.yml", output_dir=tmp_path).main()
    assert read_splats(tmp_path / "splat.ply").num_gaussians > 100  # two views of 16 x 16 pixels
    video = tmp_path / "video.mp4"
    RenderInterpolated(load_config=run / "config.yml", output_path=video, pose_source="train", interpolation_steps=2).main()
    assert video.stat().st_size > 0


def test_ns_tokens_works_on_it(run: Path, tmp_path: Path) -> None:
    ns_tokens(["export", "--load-config", str(run), "--output", str(tmp_path / "scene.ply")])
    assert read_splats(tmp_path / "scene.ply").num_gaussians > 100
    ns_tokens(["export-weights", "--load-config", str(run), "--output", str(tmp_path / "network.safetensors")])
    assert (tmp_path / "network.safetensors").is_file()


def test_another_training_starts_from_it_or_refuses(run: Path) -> None:
    """What --pipeline.initial-weights does, for a method that says nothing about it."""
    config = read_config(run).pipeline.model
    model = config.setup(scene_box=None, num_train_data=0)
    model.load_initial_weights(run)
    trained = read_network(run)
    assert all(torch.equal(value, trained[key]) for key, value in model.network.state_dict().items())

    config.channels = 8
    with pytest.raises(WeightsError, match="misshapen: encoder"):
        config.setup(scene_box=None, num_train_data=0).load_initial_weights(run)


def test_tuning_is_refused_in_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="PixelGaussianModel has no test-time tuning"):
        ns_tokens(["export", "--load-config", str(run), "--output", str(tmp_path / "scene.ply"), "--tuning-steps", "5"])
