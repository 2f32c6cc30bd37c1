"""What nerfstudio finds of ours, in interpreters of their own: imports happen in the order in which a user's do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

PACKAGES = ("dataparsers", "method_configs")
GROUPS = ("nerfstudio.method_configs", "nerfstudio.dataparser_configs")
OURS = [(group, entry.name) for group in GROUPS for entry in entry_points(group=group) if entry.value.split(".")[0] in PACKAGES]
METHODS = [name for group, name in OURS if group == GROUPS[0]]
DATAPARSERS = [name for group, name in OURS if group == GROUPS[1]]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter; CUDA_VISIBLE_DEVICES stays as the user left it, i.e. unset."""
    inherited = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=inherited | environment, check=False)


def test_package_is_installed() -> None:
    assert len(METHODS) == 18
    assert len(DATAPARSERS) == 4


LOAD_EVERYTHING = """
import json, sys, time
from importlib.metadata import entry_points

# What a command has imported anyway when it comes to us.
import nerfstudio.configs.dataparser_configs as built_in_dataparsers
import nerfstudio.models.splatfacto, nerfstudio.engine.trainer, nerfstudio.data.datamanagers.parallel_datamanager
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.plugins.types import MethodSpecification
import torch

start = time.perf_counter()
OURS = {"procedural-data", "dl3dv-data", "cifar-data", "image-folder-data"}
report = {"methods": {}, "dataparsers": sorted(OURS & set(built_in_dataparsers.all_dataparsers))}
for entry in entry_points(group="nerfstudio.method_configs"):
    if entry.dist.name == "nerfstudio-tokens":
        specification = entry.load()
        assert isinstance(specification, MethodSpecification), (entry.name, specification)
        assert specification.description
        report["methods"][entry.name] = specification.config.method_name
report["seconds"] = time.perf_counter() - start
report["cuda"] = torch.cuda.is_initialized()
report["networks"] = [name for name in sys.modules if name.startswith("token_methods.") and name.endswith(".network")]
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def loaded() -> dict:
    result = run_python(LOAD_EVERYTHING)
    assert result.returncode == 0, result.stderr
    assert "disabled" not in result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_every_method_loads_under_its_own_name(loaded: dict) -> None:
    """nerfstudio registers `config.method_name`, and evaluation looks that up again: it must be the listed name."""
    assert loaded["methods"] == {name: name for name in METHODS}


def test_every_dataparser_is_registered(loaded: dict) -> None:
    assert loaded["dataparsers"] == sorted(DATAPARSERS)


def test_loading_does_not_start_cuda(loaded: dict) -> None:
    assert loaded["cuda"] is False


def test_loading_is_quick(loaded: dict) -> None:
    """Our share of `ns-train --help`. The aim is 0.3 s on an idle machine; the bound leaves room for a busy one."""
    print(f"importing every method on top of nerfstudio took {loaded['seconds']:.2f} s")
    assert loaded["seconds"] < 1.5


@pytest.mark.parametrize("identifier", ["procedural_data", "dl3dv_data"])
def test_dataparser_loads_first_of_all(identifier: str) -> None:
    """nerfstudio loads dataparsers while it is half imported: from there on, these modules cannot be imported."""
    result = run_python(
        "import sys\n"
        "from dataparsers.entry_points import " + identifier + " as specification\n"
        "assert specification is not None\n"
        "closed = ('nerfstudio.configs.dataparser_configs', 'nerfstudio.configs.method_configs', 'nerfstudio.data.datamanagers',\n"
        "          'nerfstudio.pipelines', 'nerfstudio.engine.trainer', 'nerfstudio.models')\n"
        "circle = [name for name in sys.modules if name.startswith(closed)]\n"
        "assert not circle, circle"
    )
    assert result.returncode == 0, result.stderr


BREAK = """
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise {error}

sys.meta_path.insert(0, Broken())
"""


def test_broken_method_is_one_line_and_not_an_exception() -> None:
    result = run_python(
        BREAK.format(module="token_methods.tokengs", error="RuntimeError('two\\nlines')")
        + "from importlib.metadata import entry_points\n"
        + "ours = [entry for entry in entry_points(group='nerfstudio.method_configs') if entry.dist.name == 'nerfstudio-tokens']\n"
        + "assert [entry.name for entry in ours if (entry.load() is None) != entry.name.startswith('tokengs')] == []\n"
        + "assert len(ours) == 18"
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "methods are disabled" in line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("nerfstudio-tokens: the tokengs methods are disabled: RuntimeError: two lines (`pip check`")


def test_broken_dataparser_leaves_the_others() -> None:
    result = run_python(
        BREAK.format(module="dataparsers.dl3dv", error="ImportError('no zip')")
        + "from nerfstudio.configs.dataparser_configs import all_dataparsers\n"
        + "assert 'procedural-data' in all_dataparsers and 'dl3dv-data' not in all_dataparsers"
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("nerfstudio-tokens")]
    assert len(lines) == 1, result.stderr
    assert "dl3dv-data is disabled: ImportError: no zip" in lines[0]


def test_unknown_identifiers_are_attribute_errors() -> None:
    import dataparsers.entry_points
    import method_configs.entry_points

    for module in (dataparsers.entry_points, method_configs.entry_points):
        with pytest.raises(AttributeError, match="nonsense"):
            _ = module.nonsense


def test_ns_train_lists_our_methods() -> None:
    command = Path(sys.executable).with_name("ns-train")
    result = subprocess.run([command, "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}, check=False)
    assert result.returncode == 0, result.stderr
    for name in METHODS:
        assert f"• {name} " in result.stdout or f"• {name}\n" in result.stdout, name


@pytest.fixture
def without_ffmpeg(tmp_path: Path) -> dict[str, str]:
    """An environment with no ffmpeg on PATH, and a cache folder of its own."""
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")}


FIND_FFMPEG = "import shutil, method_configs.entry_points; print(shutil.which('ffmpeg'))"


def test_ffmpeg_is_found_where_the_system_has_none(without_ffmpeg: dict[str, str], tmp_path: Path) -> None:
    """`ns-render` asks for `ffmpeg` by that name after plugins were loaded."""
    expected = tmp_path / "cache" / "nerfstudio-tokens" / "bin" / "ffmpeg"
    for _ in range(2):
        found = run_python(FIND_FFMPEG, **without_ffmpeg)
        assert found.stdout.strip() == str(expected), found.stderr
    assert "ffmpeg version" in subprocess.run([expected, "-version"], capture_output=True, text=True, check=True).stdout

    expected.unlink()
    expected.symlink_to(tmp_path / "binary of an environment that was removed")
    assert run_python(FIND_FFMPEG, **without_ffmpeg).stdout.strip() == str(expected)


def test_own_ffmpeg_of_the_user_is_left_alone(without_ffmpeg: dict[str, str], tmp_path: Path) -> None:
    own = tmp_path / "bin" / "ffmpeg"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert run_python(FIND_FFMPEG, **without_ffmpeg).stdout.strip() == str(own)
    assert not (tmp_path / "cache").exists()


def test_cache_that_cannot_be_written_is_no_error(without_ffmpeg: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    result = run_python(FIND_FFMPEG, **without_ffmpeg)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "None", "")
