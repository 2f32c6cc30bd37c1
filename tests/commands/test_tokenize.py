"""`ns-tokens tokenize` and `detokenize`, and the comparison with other formats: pictures of any kind in, the same pictures out."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from token_methods.commands.tokenize import load_tokenizer, psnr
from token_methods.core.metrics import psnr as reference_psnr
from token_methods.gaussiantoken.config import PRESETS, GaussianTokenArchitecture
from token_methods.gaussiantoken.model import GaussianTokenModelConfig
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.gaussiantoken.token_file import read_tokens
from token_methods.multiscene.checkpoints import write_checkpoint
from token_methods.multiscene.pipeline import FeedForwardPipelineConfig
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig

Command = Callable[..., str]
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "rate_distortion.py"
TINY = PRESETS["tiny"].architecture
GRID = replace(TINY, embedder=None)


def write_run(folder: Path, architecture: GaussianTokenArchitecture, seed: int = 0) -> Path:
    """A run of an untrained network with random codes, which needs no data."""
    torch.manual_seed(seed)
    network = GaussianTokenNetwork(architecture)
    network.quantize.codebook.copy_(torch.randn_like(network.quantize.codebook))
    config = FeedForwardTrainerConfig(
        method_name="gaussiantoken-tiny", pipeline=FeedForwardPipelineConfig(model=GaussianTokenModelConfig(architecture=architecture))
    )
    weights = {f"_model.network.{key}": value for key, value in network.state_dict().items()}
    write_checkpoint(folder / "nerfstudio_models", 0, {"step": 0, "pipeline": weights})
    (folder / "config.yml").write_text(yaml.dump(config))
    return folder


@pytest.fixture(scope="session")
def tokenizer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("gaussians") / "run", TINY)


@pytest.fixture(scope="session")
def grid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("grid") / "run", GRID)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every kind, and two files that are none. Not to be changed."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    (folder / "inner").mkdir(parents=True)
    Image.fromarray(picture(40, 33)).save(folder / "colour.png")
    Image.fromarray(picture(20, 64)[..., 0]).save(folder / "inner" / "grey.jpg")
    Image.fromarray(picture(32, 32)).quantize(16).save(folder / "inner" / "palette.gif")
    Image.fromarray(picture(9, 70, 4)).save(folder / "alpha.webp", lossless=True)
    Image.fromarray(picture(3, 3)[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    (folder / "notes.txt").write_text("no picture")
    return folder


GOOD = ["alpha.webp", "colour.png", "deep.png", "inner/grey.jpg", "inner/palette.gif"]


def test_pictures_of_every_kind_travel_through_a_file(tokenizer_run: Path, folder: Path, tmp_path: Path, ns_tokens: Command) -> None:
    tokens, out = tmp_path / "made" / "tokens.safetensors", tmp_path / "out"
    said = ns_tokens("tokenize", folder, "--load-config", tokenizer_run, "--output", tokens)
    assert said.count("Skipped") == said.count("broken.png") == 1 and "5 pictures, 1 skipped" in said
    file = read_tokens(tokens)
    assert [own.name for own in file.pictures] == GOOD
    said = ns_tokens("detokenize", tokens, "--load-config", tokenizer_run / "config.yml", "--output-dir", out)
    assert f"5 pictures of {tokens}: {out}" in said
    expected = load_tokenizer(tokenizer_run).detokenize_all([file.tokens(number) for number in range(len(GOOD))])
    for number, name in enumerate(GOOD):
        written = Image.open((out / name).with_suffix(".png"))
        with Image.open(folder / name) as original:
            assert written.size == original.size and written.format == "PNG"
        assert np.array_equal(np.asarray(written), expected[number]), name
    assert len(list(out.rglob("*.*"))) == len(GOOD)


def test_the_table_tells_what_the_file_gives_back(tokenizer_run: Path, folder: Path, tmp_path: Path, ns_tokens: Command) -> None:
    tokens = tmp_path / "tokens.safetensors"
    depth = ("--position-bits", 3, "--scale-bits", 2, "--rotation-bits", 1)
    said = ns_tokens("tokenize", folder, "--load-config", tokenizer_run, "--output", tokens, *depth)
    (row,) = [line for line in said.splitlines() if "colour.png" in line]
    cells = [cell.strip() for cell in row.split("\N{BOX DRAWINGS LIGHT VERTICAL}")[2:-1]]
    original = picture(40, 33)
    tokenizer, file = load_tokenizer(tokenizer_run), read_tokens(tokens)
    exact = tokenizer.detokenize(tokenizer.tokenize(original))
    kept = tokenizer.detokenize(file.tokens(GOOD.index("colour.png")))
    size = 4 * 16 * (6 + 2 * 3 + 2 * 2 + 1) / 8  # four tiles of 16 tokens
    assert cells[:4] == ["33 x 40", f"{size:.0f}", f"{8 * size / (33 * 40):.4f}", f"{psnr(original, exact):.2f}"]
    assert cells[4].startswith(f"{psnr(original, kept):.2f} (") and file.bits.per_token == 11
    (row,) = [line for line in said.splitlines() if "whole file" in line]
    assert f" {tokens.stat().st_size} " in row


def test_exact_geometry_loses_nothing(tokenizer_run: Path, folder: Path, tmp_path: Path, ns_tokens: Command) -> None:
    depth = ("--position-bits", 32, "--scale-bits", 32, "--rotation-bits", 32)
    tokens = tmp_path / "t.safetensors"
    said = ns_tokens("tokenize", folder, "--load-config", tokenizer_run, "--output", tokens, *depth)
    assert said.count("(+0.00)") == len(GOOD) + 1
    tokenizer = load_tokenizer(tokenizer_run)
    assert np.array_equal(tokenizer.detokenize(read_tokens(tokens).tokens(1)), tokenizer.detokenize(tokenizer.tokenize(picture(40, 33))))


def test_a_grid_has_no_geometry(grid_run: Path, folder: Path, tmp_path: Path, ns_tokens: Command) -> None:
    tokens = tmp_path / "t.safetensors"
    said = ns_tokens("tokenize", folder / "colour.png", "--load-config", grid_run, "--output", tokens)
    assert "1 pictures; 6 bits of code per token" in said
    ns_tokens("detokenize", tokens, "--load-config", grid_run, "--output-dir", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "colour.png").size == (33, 40)


def test_archives_are_read_without_unpacking(tokenizer_run: Path, folder: Path, tmp_path: Path, ns_tokens: Command) -> None:
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in (*GOOD, "broken.png", "notes.txt"):
            opened.write(folder / name, f"top/{name}")
        opened.write(folder / "deep.png", "../outside.png")
    tokens = tmp_path / "t.safetensors"
    said = ns_tokens("tokenize", archive, folder / "deep.png", "--load-config", tokenizer_run, "--output", tokens)
    assert said.count("Skipped") == 2 and "'../outside.png' cannot be the name" in said
    assert sorted(own.name for own in read_tokens(tokens).pictures) == sorted([*(f"top/{name}" for name in GOOD), "deep.png"])


def test_equal_names_are_told_apart(tokenizer_run: Path, folder: Path, tmp_path: Path, ns_tokens: Command, refusal: Command) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.copy(folder / "colour.png", other / "colour.jpg")  # as PNG: the content counts
    tokens, run = tmp_path / "t.safetensors", ("--load-config", tokenizer_run)
    ns_tokens("tokenize", folder, other, *run, "--output", tokens)
    assert {"pictures/colour.png", "other/colour.png", "colour.jpg"} <= {own.name for own in read_tokens(tokens).pictures}
    ns_tokens("tokenize", other / "colour.png", other / "colour.jpg", *run, "--output", tokens)
    ns_tokens("detokenize", tokens, *run, "--output-dir", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"colour.png.png", "colour.jpg.png"}
    assert "would have the name" in refusal("tokenize", folder, folder, *run, "--output", tokens)


def test_averaged_weights_are_taken(tokenizer_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tokenizer_run, run)
    path = run / "nerfstudio_models" / "step-000000000.ckpt"
    state = torch.load(path, weights_only=True)
    live = dict(state["pipeline"])
    state["pipeline"].update({key.replace(".network.", ".average.module."): value for key, value in live.items()})
    state["pipeline"].update({key: torch.zeros_like(value) for key, value in live.items()})
    torch.save(state, path)
    tokenizer, expected = load_tokenizer(run), load_tokenizer(tokenizer_run)
    assert tokenizer.layout == expected.layout
    assert np.array_equal(tokenizer.tokenize(picture(32, 32)).indices, expected.tokenize(picture(32, 32)).indices)


# What is refused.


def test_wrong_input_ends_in_one_sentence(tokenizer_run: Path, folder: Path, tmp_path: Path, refusal: Command) -> None:
    run, output = ("--load-config", tokenizer_run), ("--output", tmp_path / "t.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04")
    assert "does not exist: name pictures" in refusal("tokenize", tmp_path / "none.png", *run, *output)
    assert "holds no pictures" in refusal("tokenize", tmp_path / "empty", *run, *output)
    assert "no complete zip archive" in refusal("tokenize", tmp_path / "cut.zip", *run, *output)
    assert "none of the 1 pictures can be read" in refusal("tokenize", folder / "broken.png", *run, *output)
    assert "name at least one picture" in refusal("tokenize", *run, *output)
    assert "must end in .safetensors" in refusal("tokenize", folder, *run, "--output", tmp_path / "t.zip")
    assert "scale bits must be 1 to 16" in refusal("tokenize", folder, *run, *output, "--scale-bits", 20)
    none = ("--position-bits", 0, "--scale-bits", 0, "--rotation-bits", 0)
    assert "need 1 bit or more each" in refusal("tokenize", folder, *run, *output, *none)
    assert "no run at" in refusal("tokenize", folder, "--load-config", tmp_path / "nowhere", *output)
    assert "there is no token file" in refusal("detokenize", tmp_path / "none.safetensors", *run, "--output-dir", tmp_path / "out")
    assert not (tmp_path / "t.safetensors").exists() and not (tmp_path / "out").exists()


def test_runs_of_other_methods_are_refused(run: Path, folder: Path, tmp_path: Path, refusal: Command) -> None:
    said = refusal("tokenize", folder, "--load-config", run, "--output", tmp_path / "t.safetensors")
    assert "is a run of tokengs-tiny, which does not tokenize pictures" in said


def test_tokens_of_another_network_are_refused(
    tokenizer_run: Path, grid_run: Path, folder: Path, tmp_path: Path, ns_tokens: Command, refusal: Command
) -> None:
    tokens, out = tmp_path / "t.safetensors", ("--output-dir", tmp_path / "out")
    ns_tokens("tokenize", folder / "deep.png", "--load-config", tokenizer_run, "--output", tokens)
    twin = write_run(tmp_path / "twin", TINY, seed=1)
    assert "not made by the network of" in (said := refusal("detokenize", tokens, "--load-config", twin, *out)) and "the codebook" in said
    said = refusal("detokenize", tokens, "--load-config", grid_run, *out)
    assert "16 tokens per tile instead of 64" in said and "name the run that made it" in said
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-1])
    assert "cut off" in refusal("detokenize", tokens, "--load-config", tokenizer_run, *out)
    assert not (tmp_path / "out").exists()


def test_psnr_is_the_usual_one() -> None:
    one, other = picture(9, 7, seed=1), picture(9, 7, seed=2)
    expected = reference_psnr(*(torch.from_numpy(own).permute(2, 0, 1)[None] / 255 for own in (one, other)))
    assert psnr(one, other) == pytest.approx(expected.item(), abs=1e-4)
    assert psnr(one, one) == float("inf")


# The comparison with other formats.


def compare(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    run_path(str(SCRIPT), run_name="__main__")


def test_rate_and_distortion_of_a_folder(tokenizer_run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(monkeypatch, "--load-config", tokenizer_run, "--images", folder, "--output-dir", tmp_path)
    told: dict[str, Any] = json.loads((tmp_path / "rate_distortion.json").read_text())
    assert told["pictures"] == 5 and told["pixels"] == 40 * 33 + 20 * 64 + 32 * 32 + 9 * 70 + 9
    assert "1 of the 5 pictures were JPEG" in told["notes"][0]
    by_format = {name: [row for row in told["points"] if row["format"] == name] for name in ("tokens", "PNG", "JPEG", "WebP")}
    assert [len(rows) for rows in by_format.values()] == [7, 1, 14, 14] and by_format["PNG"][0]["psnr"] is None
    for name in ("JPEG", "WebP"):
        assert by_format[name][0]["psnr"] < by_format[name][-1]["psnr"]
    # Tiles of a picture times 16 tokens: 4, 2, 1, 3 and 1 tiles.
    assert by_format["tokens"][0]["num_bytes"] - by_format["tokens"][0]["overhead"] == pytest.approx(11 * 16 * (6 + 14) / 8 / 5)
    assert Image.open(tmp_path / "rate_distortion.png").size == (600, 400)
    assert "| tokens | 8/6/6 bits |" in (tmp_path / "rate_distortion.md").read_text()


def test_rate_and_distortion_of_arrays(grid_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = tmp_path / "cifar.npz"
    np.savez(arrays, x_test=np.stack([picture(32, 32, seed=seed) for seed in range(4)]))
    words = ("--load-config", grid_run, "--images", arrays, "--output-dir", tmp_path / "out")
    compare(monkeypatch, *words, "--max-pictures", 2)
    told = json.loads((tmp_path / "out" / "rate_distortion.json").read_text())
    assert told["pictures"] == 2 and told["points"][0]["setting"] == "grid" and not told["notes"]
    np.savez(arrays, x_train=np.zeros(3))
    with pytest.raises(SystemExit, match="has no readable array x_test"):
        compare(monkeypatch, *words)


def test_sizes_are_interpolated_between_qualities_only() -> None:
    names = run_path(str(SCRIPT))
    points = [names["Point"]("JPEG", "", size, 0.0, 0.0, quality) for size, quality in ((100.0, 20.0), (400.0, 30.0))]
    sizes = [names["interpolated"](points, quality, lambda point: point.num_bytes) for quality in (19.0, 20.0, 25.0, 31.0)]
    assert sizes == [None, pytest.approx(100), pytest.approx(200), None]
