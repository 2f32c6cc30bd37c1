"""What is wrong with pictures, weights and runs is said in one sentence: what, where, how to put it right. What only looks wrong works."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image

from dataparsers.cifar import CifarDataParserConfig
from tests import tiny_runs
from tests.commands.refusals import Evil, refused
from tests.tiny_pictures import SIZE, tiny_picture_config, tiny_pictures, write_arrays, write_folder, write_zip
from token_methods.core.perceptual import LpipsUnavailable
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.losses import LossWeights
from token_methods.multiscene.checkpoints import newest_readable
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.image_datamanager import ImageDataManager
from token_methods.multiscene.plain_errors import SettingsError
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig

Command = Callable[..., str]
TINY = PRESETS["tiny"].architecture


# Pictures that cannot be used.


def nothing(folder: Path) -> Path:
    folder.mkdir()
    return folder


def no_pictures(folder: Path) -> Path:
    nothing(folder)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def torn_archive(folder: Path) -> Path:
    path = write_zip(folder.with_suffix(".zip"), write_folder(folder))
    path.write_bytes(path.read_bytes()[:-300])
    return path


def archive_without_pictures(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no picture")
    return path


def broken_pictures(folder: Path) -> Path:
    for path in write_folder(folder).rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    return folder


def missing_in_the_list(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    for name in ("train", "val"):
        (folder / f"{name}.csv").write_text("filename,label\nn01.jpg,n01\n")
    return folder


def arrays_as_a_folder(folder: Path) -> Path:
    return write_arrays(folder.with_suffix(".npz")).rename(folder.with_suffix(".array"))


@pytest.mark.parametrize(
    ("make", "named", "fix"),
    [
        (lambda folder: folder, "pictures does not exist", "Give --data a folder or a zip archive with pictures"),
        (nothing, "pictures holds no pictures (.bmp .gif .jpeg", "Check --data"),
        (no_pictures, "pictures holds no pictures (.bmp .gif .jpeg", "Check --data"),
        (torn_archive, "pictures.zip", "again"),
        (archive_without_pictures, "pictures.zip holds no pictures", "Check --data"),
        (broken_pictures, "pictures/val/0", ".png is truncated or broken (image file is truncated); copy it again or remove"),
        (missing_in_the_list, "val.csv: 1 of the 1 pictures that it names are missing, first ", "images/n01.jpg"),
        (arrays_as_a_folder, "pictures.array is neither a picture nor a zip archive", "cifar-data"),
    ],
)
def test_data_without_usable_pictures(make: Callable[[Path], Path], named: str, fix: str, tmp_path: Path) -> None:
    data = make(tmp_path / "pictures")
    said = refused(tiny_picture_config(data, tmp_path / "outputs"))
    assert named in said and fix in said and str(tmp_path) in said, said


def cifar_archive(path: Path, **changes: Any) -> Path:
    """CIFAR-100 as it is published, with two pictures in each part."""
    pixels = tiny_pictures(2).transpose(0, 3, 1, 2).reshape(2, -1)
    part = {b"data": pixels, b"fine_labels": [0, 1], b"coarse_labels": [0, 0], b"filenames": [b"a.png", b"b.png"]}
    contents = {"train": part, "test": part, "meta": {b"fine_label_names": [b"x", b"y"], b"coarse_label_names": [b"z"]}, **changes}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            data = pickle.dumps(content, protocol=2)
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def cifar_config(data: Path, folder: Path) -> FeedForwardTrainerConfig:
    config = tiny_picture_config(data, folder, steps=1)
    config.pipeline.datamanager.dataparser = CifarDataParserConfig()
    return config


def test_cifar_archives(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive = cifar_archive(tmp_path / "cifar-100-python.tar.gz")
    config = cifar_config(archive, tmp_path / "outputs")
    config.pipeline.datamanager.batch_size = 2
    tiny_runs.run(config)
    archive.write_bytes(archive.read_bytes()[:-500])
    said = refused(cifar_config(archive, tmp_path / "torn"))
    assert f"{archive} is truncated or is no .tar.gz archive" in said and "Copy or download it again" in said
    cifar_archive(archive, train={b"data": Evil()})
    said = refused(cifar_config(archive, tmp_path / "evil"))
    assert "cifar-100-python.tar.gz/train asks for" in said and "print" in said and "it is refused. Download the file again" in said
    assert "this must never be printed" not in capfd.readouterr().out.replace(said, "")
    said = refused(cifar_config(write_folder(tmp_path / "pictures"), tmp_path / "folder"))
    assert str(tmp_path / "pictures") in said and "pictures in folders and archives are read by image-folder-data" in said


# Pictures that look wrong and are not.


def test_pictures_of_every_kind_and_size_are_trained_on_and_evaluated(tmp_path: Path) -> None:
    data = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    kinds = {
        "grey.png": Image.fromarray(rng.integers(0, 256, (40, 33), dtype=np.uint8)),
        "palette.gif": Image.fromarray(tiny_pictures(1)[0]).quantize(16),
        "deep.png": Image.fromarray(rng.integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)),
        "alpha.webp": Image.fromarray(rng.integers(0, 256, (9, 70, 4), dtype=np.uint8)),
        "small.bmp": Image.fromarray(rng.integers(0, 256, (3, 5, 3), dtype=np.uint8)),
        "cmyk.jpg": Image.fromarray(rng.integers(0, 256, (20, 20, 4), dtype=np.uint8), mode="CMYK"),
    }
    for part in ("train", "val"):
        (data / part).mkdir(parents=True)
        for name, picture in kinds.items():
            picture.save(data / part / name)
    config = tiny_picture_config(data, tmp_path / "outputs", steps=3)
    config.pipeline.datamanager.train_augmentation = "random-resized-crop"
    run = tiny_runs.run(config)
    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode="inference")
    assert pipeline.get_average_eval_image_metrics()["num_images"] == len(kinds)


@pytest.mark.parametrize("packed", [False, True])
def test_a_single_picture_is_trained_on_and_evaluated(packed: bool, tmp_path: Path) -> None:
    data = tmp_path / "alone.png"
    Image.fromarray(tiny_pictures(1)[0]).save(data)
    if packed:
        data = shutil.move(data, nothing(tmp_path / "folder")) and tmp_path / "folder"
    run = tiny_runs.run(tiny_picture_config(data, tmp_path / "outputs", steps=2))
    ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "m.json", render_output_path=tmp_path / "images").main()
    assert '"alone.png"' in (tmp_path / "images" / "per_image.json").read_text()


def test_a_picture_removed_while_training_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "pictures", trained=4)
    config = tiny_picture_config(data, tmp_path / "outputs", steps=6)
    config.pipeline.datamanager.cache_gigabytes = 0.0
    draw = ImageDataManager.next_train_batch

    def remove_and_draw(self: ImageDataManager, step: int) -> Any:
        if step == 2:
            (data / "train/002.png").unlink()
        return draw(self, step)

    monkeypatch.setattr(ImageDataManager, "next_train_batch", remove_and_draw)
    folder = tiny_runs.run(config)
    said = capfd.readouterr().out
    assert said.count("Training passes over a picture") == 1
    assert f"image {data / 'train/002.png'} does not exist" in said and "restore the file or remove" in said
    assert newest_readable(folder / "nerfstudio_models")[1]["step"] == 5, "it went on to the end"


def test_a_picture_removed_before_evaluation_stops_it(picture_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was listed: by another program, say."""
    evaluate = ImageDataManager.evaluation_images

    def remove_and_evaluate(self: ImageDataManager, max_images: int | None = None) -> Any:
        self.images._paths[2] = str(tmp_path / "val/010.png")
        return evaluate(self, max_images)

    monkeypatch.setattr(ImageDataManager, "evaluation_images", remove_and_evaluate)
    with pytest.raises(SceneError, match=r"val/010\.png does not exist; restore the file"):
        ComputePSNR(load_config=picture_run / "config.yml", output_path=tmp_path / "metrics.json").main()
    assert not list(tmp_path.iterdir())


# Settings.


def test_an_image_size_that_is_not_the_networks(pictures: Path, tmp_path: Path) -> None:
    config = tiny_picture_config(pictures, tmp_path)
    config.pipeline.datamanager.image_height = 48
    said = refused(config, SettingsError)
    assert "takes images of 32x32 pixels: leave --pipeline.datamanager.image-height at 32 and image-width at 32" in said
    assert not list(tmp_path.iterdir())


def test_pictures_of_another_size_where_nothing_may_be_cut(pictures: Path, tmp_path: Path) -> None:
    data = shutil.copytree(pictures, tmp_path / "pictures")
    Image.new("RGB", (20, 30)).save(data / "val/008.png")
    config = tiny_picture_config(data, tmp_path / "outputs")
    config.pipeline.datamanager.evaluation_crop = "none"
    run = tiny_runs.run(config)
    with pytest.raises(SceneError, match=r"val/008\.png has 30 x 20 pixels, the network sees 32 x 32.*evaluation-crop"):
        ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "metrics.json").main()
    assert not (tmp_path / "metrics.json").exists()


def test_training_with_a_perceptual_loss_whose_weights_are_missing(pictures: Path, tmp_path: Path) -> None:
    config = tiny_picture_config(pictures, tmp_path)
    config.pipeline.model.loss = LossWeights()
    said = refused(config, LpipsUnavailable)
    assert "no weights for LPIPS (vgg)" in said and "lpips_vgg.safetensors" in said
    assert said.endswith("name a file with --pipeline.model.lpips-weights, or train without with --pipeline.model.loss.perceptual 0")


# Scenes that are not there.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("--scene val/099.png", "val/099.png is neither a picture of the data nor a file; there are val/008.png, "),
        ("--scene 99", "there is no picture number 99: 5 are evaluated, counted from 0"),
        ("--scene .", ". is a folder, not a picture"),
    ],
)
def test_pictures_that_are_not_there(picture_run: Path, text: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFSTUDIO_TOKENS", text)
    with pytest.raises(SceneError) as error:
        eval_setup(picture_run / "config.yml", test_mode="inference")
    assert sentence in str(error.value)


def test_other_data_without_pictures(picture_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Command) -> None:
    empty = nothing(tmp_path / "empty")
    said = refusal("export", "--load-config", picture_run, "--output", tmp_path / "tokens.svg", "--data", empty)
    assert f"{empty} holds no pictures" in said and 'NERFSTUDIO_TOKENS="--data FOLDER"' in said
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_what_is_said_of_scenes_is_refused_of_pictures(
    picture_run: Path, pictures: Path, tmp_path: Path, refusal: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal("reconstruct", "--load-config", picture_run, "--data", pictures, "--output-dir", tmp_path / "out")
    assert f"--data {pictures} holds 5 scenes (val/008.png, " in said and "name one of them" in said
    untuned = "GaussianTokenModel has no test-time tuning: leave --tuning-steps out, or set it to 0"
    assert untuned in refusal("export", "--load-config", picture_run, "--output", tmp_path / "tokens.ply", "--tuning-steps", 5)
    monkeypatch.setenv("NERFSTUDIO_TOKENS", "--tuning-steps 5")
    with pytest.raises(SettingsError, match=untuned):
        eval_setup(picture_run / "config.yml", test_mode="inference")
    assert not list(tmp_path.iterdir())
