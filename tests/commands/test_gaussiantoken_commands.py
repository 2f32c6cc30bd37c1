"""Commands on a run of GaussianToken: evaluation, camera paths, splats, drawings, tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nerfstudio.scripts.exporter import ExportGaussianSplat
from nerfstudio.scripts.render import RenderInterpolated
from PIL import Image

from tests.commands.picture_evaluation import evaluated, measured
from tests.tiny_pictures import write_arrays, write_zip
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.multiscene.checkpoints import checkpoint_path, read_checkpoint
from token_methods.rendering.splat_files import read_splats

Command = Callable[..., str]
TINY = PRESETS["tiny"].architecture
STEPS = 2


# ns-eval.


def test_ns_eval_measures_the_average_on_every_held_out_picture(picture_run: Path, pictures: Path, tmp_path: Path) -> None:
    results, rows = evaluated(picture_run, tmp_path)
    assert results["num_images"] == 5 and [row["name"] for row in rows] == [f"val/{number:03d}.png" for number in range(8, 13)]
    network = GaussianTokenNetwork(TINY).eval()
    state = read_checkpoint(checkpoint_path(picture_run / "nerfstudio_models", STEPS - 1))["pipeline"]
    start = "_model.average.module."
    network.load_state_dict({key.removeprefix(start): value for key, value in state.items() if key.startswith(start)})
    for row in rows:
        assert row["psnr"] == pytest.approx(measured(network, pictures / row["name"]), abs=1e-3)


def test_one_picture_or_other_pictures(picture_run: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_reconstruct_takes_one_picture(picture_run: Path, others: Path, tmp_path: Path, ns_tokens: Command) -> None:
    options = ("--data", others / "other_0.png", "--output-dir", tmp_path / "out", "--seconds", 0.1)
    assert "16 Gaussians from other_0.png" in ns_tokens("reconstruct", "--load-config", picture_run, *options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fly_through.mp4", "scene.ply"]


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
