"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REFERENCE = Path(os.environ.get("NERFSTUDIO_TOKENS_REFERENCE", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with `parity/` and `data/`: numbers of the published code and real scenes. Not part of the project."""
    if not (REFERENCE / "parity").is_dir():
        pytest.skip(f"reference numbers not found at {REFERENCE}; set NERFSTUDIO_TOKENS_REFERENCE")
    return REFERENCE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
