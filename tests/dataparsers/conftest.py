"""Small procedural scenes, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataparsers.procedural.parser import ProceduralDataParserConfig, generate_scenes


@pytest.fixture(scope="session")
def procedural(tmp_path_factory: pytest.TempPathFactory) -> ProceduralDataParserConfig:
    """Two scenes of nine frames, 48x40, already on disk."""
    config = ProceduralDataParserConfig(
        data=tmp_path_factory.mktemp("procedural"), num_scenes=2, image_height=40, image_width=48, frames_per_scene=9, device="cpu"
    )
    generate_scenes(config)
    return config


@pytest.fixture(scope="session")
def scene_folder(procedural: ProceduralDataParserConfig) -> Path:
    return procedural.scene_folders()[0]
