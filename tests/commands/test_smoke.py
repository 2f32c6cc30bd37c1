"""Each command once as a user starts it: a process of its own, from its console script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from token_methods.rendering.splat_files import read_splats


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One thread; caches of its own, and no LPIPS weights that would be downloaded."""
    own = {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path / "home"), "TORCH_HOME": "/dev/null/none", "COLUMNS": "200"}
    return os.environ | own


def start(environment: dict[str, str], *words: object) -> str:
    """Run a command that must succeed; what it printed."""
    name, *arguments = map(str, words)
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def test_ns_train(environment: dict[str, str], scenes: Path, tmp_path: Path) -> None:
    sizes = {"image-height": 16, "image-width": 16, "num-workers": 1}
    options = [word for name, value in sizes.items() for word in (f"--pipeline.datamanager.{name}", value)]
    options += ["--max-num-iterations", 2, "--machine.device-type", "cpu", "--output-dir", tmp_path, "--timestamp", "t"]
    start(environment, "ns-train", "tokengs-tiny", "--data", scenes, *options, "nerfstudio-data", "--orientation-method", "none")
    run = tmp_path / "boxes" / "tokengs-tiny" / "t"
    assert (run / "config.yml").is_file() and torch.load(run / "nerfstudio_models" / "step-000000001.ckpt", weights_only=True)["step"] == 1


def test_ns_eval(environment: dict[str, str], run: Path, tmp_path: Path) -> None:
    options = ["--load-config", run / "config.yml", "--output-path", tmp_path / "metrics.json"]
    said = start(environment | {"NERFSTUDIO_TOKENS": "--scene scene_1"}, "ns-eval", *options)
    assert "LPIPS is not measured" in said
    assert json.loads((tmp_path / "metrics.json").read_text())["results"]["num_scenes"] == 1


def test_ns_render(environment: dict[str, str], run: Path, tmp_path: Path) -> None:
    output = tmp_path / "video.mp4"
    options = ["--load-config", run / "config.yml", "--interpolation-steps", 2, "--output-path", output, "--rendered-output-names", "rgb"]
    start(environment | {"NERFSTUDIO_TOKENS": "--scene scene_1"}, "ns-render", "interpolate", *options)
    assert output.stat().st_size > 0


def test_ns_export(environment: dict[str, str], run: Path, tmp_path: Path) -> None:
    start(environment, "ns-export", "gaussian-splat", "--load-config", run / "config.yml", "--output-dir", tmp_path)
    assert read_splats(tmp_path / "splat.ply").num_gaussians > 0


def test_ns_tokens(environment: dict[str, str], run: Path, photos: Path, tmp_path: Path) -> None:
    options = ["--load-config", run, "--data", photos, "--output-dir", tmp_path / "out", "--seconds", 0.1, "--tuning-steps", 2]
    start(environment, "ns-tokens", "reconstruct", *options)
    assert (tmp_path / "out" / "scene.ply").is_file() and (tmp_path / "out" / "fly_through.mp4").is_file()


def test_a_mistake_ends_a_command_of_nerfstudio_in_one_sentence(environment: dict[str, str], run: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("ns-export"), "pointcloud", "--load-config", run / "config.yml", "--output-dir", tmp_path]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert "point clouds, meshes and --render-nearest-camera cannot be made with it" in result.stderr.splitlines()[-1]
