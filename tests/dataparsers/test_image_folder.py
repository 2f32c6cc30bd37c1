"""`image-folder-data`: ImageNet, Mini-ImageNet, folders and archives of pictures, and what may be missing in them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import tyro

from dataparsers.image_folder import ImageFolderDataParserConfig, image_folder_data


def touch(root: Path, *names: str) -> Path:
    """Files with nothing in them: the parser opens none."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def names(data: Path, split: str, **options: Any) -> list[str]:
    outputs = ImageFolderDataParserConfig(data=data, **options).setup().get_dataparser_outputs(split)
    assert outputs.metadata["image_set"] is True and len(outputs.cameras) == len(outputs.image_filenames)
    return [path.relative_to(data).as_posix() for path in outputs.image_filenames]


IMAGENET = ("train/n01/b.JPEG", "train/n01/a.JPEG", "train/n02/c.JPEG", "train/n06/n06596364_9591.JPEG", "filelist.txt")
TRAINED = ["train/n01/a.JPEG", "train/n01/b.JPEG", "train/n02/c.JPEG"]


@pytest.mark.parametrize("validation", [("val/n01/d.JPEG", "val/n02/e.JPEG"), ("val/d.JPEG", "val/e.JPEG")], ids=["classes", "flat"])
@pytest.mark.parametrize("form", ["folder", "archive", "archive with a folder around"])
def test_imagenet(validation: tuple[str, ...], form: str, tmp_path: Path) -> None:
    data = touch(tmp_path / "data" / "imagenet", *IMAGENET, *validation)
    inside = ""
    if form != "folder":
        inside = "imagenet/" if form.endswith("around") else ""
        data = pack(tmp_path / "imagenet.zip", data.parent if inside else data)
    assert names(data, "train") == [inside + name for name in TRAINED]
    assert names(data, "val") == names(data, "test") == [inside + name for name in validation]


def test_a_test_folder_is_the_test_split(tmp_path: Path) -> None:
    data = touch(tmp_path, *IMAGENET, "val/d.JPEG", "test/t.JPEG")
    assert names(data, "val") == ["val/d.JPEG"] and names(data, "test") == ["test/t.JPEG"]


def write_mini(root: Path, **lists: list[str]) -> Path:
    touch(root, *(f"images/{name}" for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg")))
    for split, rows in lists.items():
        (root / f"{split}.csv").write_text("filename,label\n" + "".join(f"{row},n01\n" for row in rows))
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_mini_imagenet(packed: bool, tmp_path: Path) -> None:
    data = write_mini(tmp_path / "mini", train=["b.jpg", "a.jpg"], val=["c.jpg"], test=["d.jpg"])
    data = pack(tmp_path / "mini.zip", data) if packed else data
    found = [names(data, split) for split in ("train", "val", "test")]
    assert found == [["images/a.jpg", "images/b.jpg"], ["images/c.jpg"], ["images/d.jpg"]]


def test_lists_that_cannot_be_followed_are_named(tmp_path: Path) -> None:
    data = write_mini(tmp_path, train=["a.jpg", "x.jpg", "../y.jpg"])
    with pytest.raises(FileNotFoundError, match=r"train\.csv: 2 of the 3 pictures .* missing, first .*images/\.\./y\.jpg"):
        names(data, "train")
    with pytest.raises(FileNotFoundError, match=r"neither val\.csv nor test\.csv"):
        names(data, "val")
    (data / "val.csv").write_text("filename,label\n")
    with pytest.raises(ValueError, match=r"val\.csv lists no picture"):
        names(data, "val")
    (data / "val.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"val\.csv is no list"):
        names(data, "val")


@pytest.mark.parametrize("packed", [False, True])
def test_other_folders_are_split_by_a_seed(packed: bool, tmp_path: Path) -> None:
    files = [f"{folder}{number:02d}.{suffix}" for folder in ("", "sub/deep/") for number, suffix in enumerate(["png", "JPG", "webp"] * 5)]
    data = touch(tmp_path / "p", *files, "notes.txt", ".hidden.png", ".cache/x.png", "._a.png")
    data = pack(tmp_path / "p.zip", data) if packed else data
    if packed:
        files.append(".cache/x.png")  # hidden folders are skipped on disk only
    train, held_out = names(data, "train"), names(data, "val")
    assert sorted([*train, *held_out]) == sorted(files) and len(held_out) == 3 and names(data, "test") == held_out
    assert train == sorted(train) == names(data, "train")
    assert names(data, "val", seed=1) != held_out
    assert len(names(data, "val", eval_fraction=0.5)) in (15, 16)
    assert names(data, "train", eval_fraction=0.0) == sorted(files) == names(data, "val", eval_fraction=1.0)
    assert names(data, "train", eval_fraction=1.0) == names(data, "val", eval_fraction=0.0) == []


def test_a_picture_added_later_hardly_moves_the_others(tmp_path: Path) -> None:
    data = touch(tmp_path, *(f"{number:03d}.png" for number in range(100)))
    before = set(names(data, "val"))
    touch(data, "new.png")
    assert len(before ^ set(names(data, "val"))) <= 2


def test_few_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "b.png")
    for data in (tmp_path, tmp_path / "b.png"):
        found = [ImageFolderDataParserConfig(data=data).setup().get_dataparser_outputs(split).image_filenames for split in ("train", "val")]
        assert found == [[tmp_path / "b.png"]] * 2
    touch(tmp_path, "a.png")
    assert len(names(tmp_path, "train")) == len(names(tmp_path, "val")) == 1


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.png")
    data = touch(tmp_path / "data", "b.png")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "round").symlink_to(data)
    assert sorted([*names(data, "train"), *names(data, "val")]) == ["b.png", "linked/a.png"]


def test_a_real_archive_and_folder_are_listed(reference: Path) -> None:
    images = reference / "data/images"
    assert len(names(images / "imagenet1k_sample_64.zip", "train")) == 900 and len(names(images / "kodak", "val")) == 2


def test_wrong_data_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "sub/more.txt", "broken.zip")
    for data, said in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path, "holds no pictures"),
        (tmp_path / "notes.txt", "neither a picture nor a zip archive"),
        (tmp_path / "broken.zip", "not a complete zip archive"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            names(data, "train")
    with pytest.raises(ValueError, match=r"a share from 0 to 1, not 1\.5"):
        names(touch(tmp_path, "a.png"), "train", eval_fraction=1.5)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../a.png", b"")
    with pytest.raises(ValueError, match="lies outside of the archive"):
        names(tmp_path / "bad.zip", "train")


def test_it_has_flags() -> None:
    assert image_folder_data.config == ImageFolderDataParserConfig()
    assert tyro.cli(ImageFolderDataParserConfig, args=["--eval-fraction", "0.2", "--seed", "3"]).eval_fraction == 0.2
