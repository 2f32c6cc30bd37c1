"""The wheel: what is in it, and what it promises."""

from __future__ import annotations

import ast
import configparser
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("dataparsers", "method_configs", "token_methods")

METHODS = {
    "tokengs",
    "tokengs-2view",
    "tokengs-4view",
    "tokengs-6view",
    *(f"tokengs-latent-{views}view-{loss}" for views in (2, 4, 6) for loss in ("ssim", "lpips")),
    "tokengs-tiny",
    "tokengs-small",
    *(f"gaussiantoken-{name}" for name in ("cifar", "mini-imagenet", "imagenet", "tiny")),
    "vqgan-baseline",
    "vqgan-cifar",
}
BROUGHT_BY_TORCH = {"triton"}
"""With its CUDA builds; without it nothing that needs it is run."""
DATAPARSERS = {"procedural-data", "dl3dv-data", "cifar-data", "image-folder-data"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of the tree as it is, built in a copy, so that neither stale build folders help nor new ones stay."""
    tree = tmp_path_factory.mktemp("tree")
    junk = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "outputs", "renders", "exports", "wandb")
    shutil.copytree(PROJECT, tree, ignore=junk, dirs_exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)],
        check=True,
        capture_output=True,
        text=True,
    )
    return zipfile.ZipFile(next((tree / "dist").glob("*.whl")))


def metadata_file(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(next(path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))).decode()


def test_wheel_holds_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    shipped = {Path(path) for path in wheel.namelist() if ".dist-info/" not in path}
    assert {path.parts[0] for path in shipped} == set(PACKAGES)
    assert {path.suffix for path in shipped} <= {".py", ".typed", ".safetensors"}
    assert {path for path in shipped if path.name == "py.typed"} == {Path(package, "py.typed") for package in PACKAGES}
    assert sum(wheel.getinfo(path.as_posix()).file_size for path in shipped) < 20e6


def test_wheel_misses_no_module(wheel: zipfile.ZipFile) -> None:
    written = {path.relative_to(PROJECT).as_posix() for package in PACKAGES for path in (PROJECT / package).rglob("*.py")}
    assert written <= set(wheel.namelist())


def test_package_init_files_are_empty() -> None:
    """nerfstudio imports our packages while it is half imported itself: whatever stood in one could close a circle."""
    assert [path for package in PACKAGES for path in (PROJECT / package).rglob("__init__.py") if path.read_text().strip()] == []


def test_entry_points_are_the_public_surface(wheel: zipfile.ZipFile) -> None:
    """Saved runs and users' command lines name these: adding one is fine, losing one is not."""
    entry_points = configparser.ConfigParser(delimiters=["="])
    entry_points.optionxform = str  # type: ignore[assignment,method-assign]
    entry_points.read_string(metadata_file(wheel, "entry_points.txt"))
    assert set(entry_points["nerfstudio.method_configs"]) == METHODS
    assert set(entry_points["nerfstudio.dataparser_configs"]) == DATAPARSERS
    assert dict(entry_points["console_scripts"]) == {"ns-tokens": "token_methods.commands.main:main"}
    for group in ("nerfstudio.method_configs", "nerfstudio.dataparser_configs"):
        for name, target in entry_points[group].items():
            assert target.partition(":")[2] == name.replace("-", "_")


def test_metadata_states_licence_and_supported_python(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(metadata_file(wheel, "METADATA"))
    assert metadata["Name"] == "nerfstudio-tokens"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata["Requires-Python"].split(",")) == {">=3.11", "<3.13"}
    assert "Apache License" in metadata_file(wheel, "licenses/LICENSE")
    extras = metadata.get_all("Provides-Extra")
    assert extras is not None
    assert {"dev", "pinned"} <= set(extras)


def imported_packages(package: str) -> set[str]:
    """Top-level packages that the code of `package` imports, its own and the standard library's left out."""
    found = set()
    for path in (PROJECT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - set(PACKAGES)


def test_every_import_is_a_stated_dependency() -> None:
    """What only happens to be there, as a dependency of a dependency, may be gone with its next release."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    stated = {Requirement(line).name.lower().replace("_", "-") for line in project["dependencies"]}
    distributions = packages_distributions()
    for package in PACKAGES:
        for name in imported_packages(package) - BROUGHT_BY_TORCH:
            providers = {distribution.lower().replace("_", "-") for distribution in distributions.get(name, [name])}
            assert providers & stated, f"{package} imports {name}, which pyproject.toml does not state"
