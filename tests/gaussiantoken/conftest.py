"""Tiny runs of the image tokenizer that several files of tests read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from nerfstudio.utils.rich_utils import CONSOLE

from tests.gaussiantoken.picture_runs import trained, write_pictures


@pytest.fixture
def same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line breaks, and no picture that the environment names."""
    monkeypatch.setattr(CONSOLE, "_width", 1000)
    monkeypatch.delenv("NERFSTUDIO_TOKENS", raising=False)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(pictures, tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="session")
def grid_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(pictures, tmp_path_factory.mktemp("grid"), grid=True)
