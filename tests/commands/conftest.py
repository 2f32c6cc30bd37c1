"""Small runs that the tests of the commands share: one on scenes, one on pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image

from tests import tiny_runs
from tests.tiny_pictures import tiny_picture_config, tiny_pictures, write_folder
from tests.tiny_scenes import write_tiny_scene, write_tiny_scenes
from token_methods.commands.main import main
from token_methods.core import perceptual

NUM_SCENES = 4


@pytest.fixture(autouse=True)
def _same_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wide terminal, so that messages are not broken into lines; nothing from the developer's own shell and caches."""
    monkeypatch.setattr(CONSOLE, "_width", 1000)
    monkeypatch.delenv("NERFSTUDIO_TOKENS", raising=False)
    monkeypatch.setenv("TORCH_HOME", "/dev/null/none")  # LPIPS weights are neither found nor downloaded
    monkeypatch.setattr(perceptual, "CACHE_FOLDER", tmp_path / "no weights")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scenes in nerfstudio's form, with sparse points. Not to be changed."""
    folder = tmp_path_factory.mktemp("data") / "boxes"
    write_tiny_scenes(folder, NUM_SCENES, num_frames=9, with_points=True)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene outside the run's data. Not to be changed."""
    return write_tiny_scene(tmp_path_factory.mktemp("outside") / "photos", seed=9, num_frames=7, with_points=True)


@pytest.fixture(scope="session")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run on `scenes`: three to train on, one held out. Not to be changed."""
    torch.set_num_threads(1)
    return tiny_runs.run(tiny_runs.tiny_config(scenes, tmp_path_factory.mktemp("outputs"), steps=4, num_gs_tokens=32))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures to train on, five held out. Not to be changed."""
    return write_folder(tmp_path_factory.mktemp("pictures") / "pictures")


@pytest.fixture(scope="session")
def picture_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run on `pictures`. Not to be changed."""
    torch.set_num_threads(1)
    return tiny_runs.run(tiny_picture_config(pictures, tmp_path_factory.mktemp("picture runs"), steps=2))


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures outside the run's data. Not to be changed."""
    folder = tmp_path_factory.mktemp("data") / "others"
    folder.mkdir()
    for number, pixels in enumerate(tiny_pictures(3, seed=5)):
        Image.fromarray(pixels).resize((50, 40)).save(folder / f"other_{number}.png")
    return folder


@pytest.fixture
def ns_tokens(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `ns-tokens` in this process and returns what it printed."""

    def call(*arguments: object) -> str:
        capfd.readouterr()
        main([str(argument) for argument in arguments])
        return capfd.readouterr().out

    return call


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Runs `ns-tokens`, which must refuse, and returns its one sentence."""

    def call(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, str) and ended.value.code.startswith("ns-tokens: ")
        return ended.value.code

    return call
