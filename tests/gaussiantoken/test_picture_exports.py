"""Tokens of a picture as files: `ns-export gaussian-splat` and `ns-tokens export` on tiny runs."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from nerfstudio.scripts.exporter import ExportGaussianSplat

from tests.gaussiantoken.picture_runs import loaded
from token_methods.commands.main import main
from token_methods.multiscene.plain_errors import SettingsError
from token_methods.rendering.splat_files import read_splats

pytestmark = pytest.mark.usefixtures("same_everywhere")


def test_ns_export_writes_the_tokens_as_splats(run: Path, tmp_path: Path) -> None:
    ExportGaussianSplat(load_config=run / "config.yml", output_dir=tmp_path).main()
    splats = read_splats(tmp_path / "splat.ply")
    expected = loaded(run).model.layers().splats()
    torch.testing.assert_close(splats.means, expected.means)
    torch.testing.assert_close(splats.scales, expected.scales)
    torch.testing.assert_close(splats.colors, expected.colors, atol=1e-5, rtol=0)


def test_ns_export_of_a_grid_is_refused(grid_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cells of a grid, not Gaussians"):
        ExportGaussianSplat(load_config=grid_run / "config.yml", output_dir=tmp_path).main()


def ns_tokens_refuses(*arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return str(ended.value.code)


@pytest.mark.parametrize(("name", "format"), [("drawing.svg", None), ("drawing", "svg"), ("drawing.svg", "svg")])
def test_ns_tokens_export_draws_the_tokens(run: Path, tmp_path: Path, name: str, format: str | None) -> None:
    said = [] if format is None else ["--format", format]
    main(["export", "--load-config", str(run), "--output", str(tmp_path / "new" / name), "--scene", "1", *said])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["drawing.svg"]
    root = ElementTree.parse(tmp_path / "new" / "drawing.svg").getroot()
    assert len(root.findall("{http://www.w3.org/2000/svg}ellipse")) == 16


def test_ns_tokens_export_writes_splats_of_pictures(run: Path, tmp_path: Path) -> None:
    main(["export", "--load-config", str(run), "--output", str(tmp_path / "tokens"), "--format", "ply"])
    torch.testing.assert_close(read_splats(tmp_path / "tokens.ply").means, loaded(run).model.means[None])


def test_ns_tokens_export_refuses_what_it_cannot_do(run: Path, grid_run: Path, tmp_path: Path) -> None:
    wrong = ns_tokens_refuses("export", "--load-config", run, "--output", tmp_path / "a.ply", "--format", "svg")
    assert "a.ply does not end in .svg" in wrong
    for name in ("a.svg", "a.ply"):
        assert "cells of a grid, not Gaussians" in ns_tokens_refuses("export", "--load-config", grid_run, "--output", tmp_path / name)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in ns_tokens_refuses("export", "--load-config", run, "--output", tmp_path / "file" / "a.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
