"""nerfstudio imports dataparsers while it is half imported itself: they must ask little of it, and nothing of CUDA."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def run(code: str, **environment: str) -> dict:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_touches_neither_cuda_nor_what_is_half_imported() -> None:
    found = run(
        "import json, sys, torch\n"
        "import dataparsers.procedural.parser, dataparsers.dl3dv\n"
        "print(json.dumps({'cuda': torch.cuda.is_initialized(), 'modules': sorted(sys.modules)}))"
    )
    assert not found["cuda"]
    forbidden = ("nerfstudio.configs.dataparser_configs", "nerfstudio.data.datamanagers", "nerfstudio.pipelines", "nerfstudio.models")
    forbidden += ("nerfstudio.engine.trainer", "token_methods", "method_configs", "open3d")
    assert [name for name in found["modules"] if name.startswith(forbidden)] == []


def test_nerfstudio_lists_the_dataparsers() -> None:
    names = "procedural-data=dataparsers.entry_points:procedural_data,dl3dv-data=dataparsers.entry_points:dl3dv_data"
    found = run(
        "import json\n"
        "from nerfstudio.configs.dataparser_configs import all_dataparsers\n"
        "print(json.dumps({name: type(config).__name__ for name, config in all_dataparsers.items()}))",
        NERFSTUDIO_DATAPARSER_CONFIGS=names,
    )
    assert found["procedural-data"] == "ProceduralDataParserConfig"
    assert found["dl3dv-data"] == "DL3DVDataParserConfig"
