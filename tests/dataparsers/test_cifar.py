"""`cifar-data`: every form of the data set, and files that are damaged or would run code."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from dataparsers.cifar import CifarDataParserConfig, cifar_data
from dataparsers.pickled_arrays import read_pickle

PER_BATCH = 3
PIXELS = np.random.default_rng(0).integers(0, 256, (6 * PER_BATCH, 32, 32, 3), dtype=np.uint8)
LABELS = [number % 10 for number in range(len(PIXELS))]
TEN = "cifar-10-batches-py"


def rows(pixels: np.ndarray) -> np.ndarray:
    """As stored: a plane of red, then green, then blue."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1))


def cifar10(protocol: int = 2) -> dict[str, bytes]:
    """File contents; with protocol 2 as Python 2 wrote them, up to how Python 3 says bytes."""
    files = {}
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(number * PER_BATCH, (number + 1) * PER_BATCH)
        content = {
            b"batch_label": name.encode(),
            b"labels": LABELS[part],
            b"data": rows(PIXELS[part]),
            b"filenames": [b"a.png"] * PER_BATCH,
        }
        files[name] = pickle.dumps(content, protocol=protocol)
    files["batches.meta"] = pickle.dumps({b"label_names": [f"class {i}".encode() for i in range(10)], b"num_vis": 3072}, protocol=protocol)
    return files


def cifar100() -> dict[str, bytes]:
    def batch(part: slice) -> bytes:
        labels = {b"fine_labels": LABELS[part], b"coarse_labels": [0] * len(LABELS[part])}
        return pickle.dumps({**labels, b"data": rows(PIXELS[part])}, protocol=2)

    meta = pickle.dumps({b"fine_label_names": [b"apple", b"fish"], b"coarse_label_names": [b"x"]}, protocol=2)
    return {"train": batch(slice(0, 15)), "test": batch(slice(15, 18)), "meta": meta}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, files: dict[str, bytes], folder: str = TEN) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_arrays(path: Path, **changes: Any) -> Path:
    arrays = {"x_train": PIXELS[:15], "y_train": np.array(LABELS[:15]), "x_test": PIXELS[15:], "y_test": np.array(LABELS[15:])}
    arrays = {**arrays, "classes": np.array([f"class {i}" for i in range(10)]), **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def parse(path: Path, split: str = "train") -> Any:
    return CifarDataParserConfig(data=path).setup().get_dataparser_outputs(split)


FORMS: dict[str, Callable[[Path], Path]] = {
    "archive": lambda folder: write_archive(folder / "cifar-10-python.tar.gz", cifar10()),
    "archive in a folder": lambda folder: write_archive(folder / "cifar-10-python.tar.gz", cifar10()).parent,
    "unpacked": lambda folder: write_folder(folder / TEN, cifar10()),
    "folder of the unpacked": lambda folder: write_folder(folder / TEN, cifar10()).parent,
    "both": lambda folder: write_archive(write_folder(folder / TEN, cifar10()).parent / "cifar-10-python.tar.gz", cifar10()).parent,
    "written by Python 3": lambda folder: write_folder(folder / TEN, cifar10(protocol=4)),
    "arrays": lambda folder: write_arrays(folder / "cifar10.npz"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form: str, tmp_path: Path) -> None:
    data = FORMS[form](tmp_path)
    train, test = parse(data), parse(data, "test")
    np.testing.assert_array_equal(train.metadata["pixels"], PIXELS[:15])
    np.testing.assert_array_equal(test.metadata["pixels"], PIXELS[15:])
    np.testing.assert_array_equal(parse(data, "val").metadata["pixels"], PIXELS[15:])
    assert train.metadata["image_set"] is True and train.metadata["classes"][3] == "class 3"
    assert train.metadata["labels"].tolist() == LABELS[:15] and test.metadata["labels"].tolist() == LABELS[15:]
    assert len(train.image_filenames) == 15 and train.image_filenames[12].parts[-2:] == ("train", "00012.png")
    assert test.image_filenames[0].parent.name == "test"


def test_cifar_100_has_its_fine_labels(tmp_path: Path) -> None:
    data = write_archive(tmp_path / "cifar-100-python.tar.gz", cifar100(), "cifar-100-python")
    outputs = parse(data, "test")
    np.testing.assert_array_equal(outputs.metadata["pixels"], PIXELS[15:])
    assert outputs.metadata["labels"].tolist() == LABELS[15:] and outputs.metadata["classes"] == ("apple", "fish")
    write_folder(tmp_path / TEN, cifar10())
    with pytest.raises(ValueError, match=r"holds both cifar-10-batches-py and cifar-100-python\.tar\.gz"):
        parse(tmp_path)


def test_real_images_are_bit_exact(reference: Path, tmp_path: Path) -> None:
    """A mosaic of the first test images of CIFAR-10, through a made archive."""
    from PIL import Image

    mosaic = np.asarray(Image.open(reference / "data/images/cifar10_test1017.webp").convert("RGB"))
    tiles = mosaic.reshape(mosaic.shape[0] // 32, 32, -1, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)[:1017]
    labels = np.load(reference / "data/images/cifar10_labels.npz")["test"].tolist()
    files = {**cifar10(), "test_batch": pickle.dumps({b"labels": labels, b"data": rows(tiles)}, protocol=2)}
    outputs = parse(write_archive(tmp_path / "cifar-10-python.tar.gz", files), "test")
    np.testing.assert_array_equal(outputs.metadata["pixels"], tiles)
    assert outputs.metadata["labels"].tolist() == labels


def test_a_picture_fills_the_view_of_its_nominal_camera(tmp_path: Path) -> None:
    camera = parse(write_arrays(tmp_path / "c.npz")).cameras[0:1]
    assert (int(camera.width), int(camera.height)) == (32, 32)
    rays = camera.generate_rays(camera_indices=0, coords=np_corners(), keep_shape=True)
    distance = -rays.origins[..., 2:] / rays.directions[..., 2:]
    on_plane = rays.origins + distance * rays.directions
    np.testing.assert_allclose(on_plane[..., :2].numpy(), [[-0.5, 0.5], [0.5, -0.5]], atol=1e-6)


def np_corners() -> Any:
    """Upper left and lower right corner, (y, x)."""
    import torch

    return torch.tensor([[0.0, 0.0], [32.0, 32.0]])


# What may be wrong.


class Runs:
    """Pickled, it asks for a command to be run when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def test_pickles_that_would_run_code_are_refused_by_name(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    for content in ({b"data": Runs(f"touch '{mark}'")}, [Runs(f"touch '{mark}'")]):
        files = {**cifar10(), "data_batch_3": pickle.dumps(content, protocol=2)}
        with pytest.raises(ValueError, match=r"data_batch_3 asks for posix\.system, .* refused"):
            parse(write_archive(tmp_path / "cifar-10-python.tar.gz", files))
    assert not mark.exists()
    for name in (b"cbuiltins\neval\n(Vprint(1)\ntR.", b"cnumpy\nload\n(Vx\ntR.", b"ccodecs\ndecode\n(Vx\ntR."):
        with pytest.raises(ValueError, match=r"asks for (builtins\.eval|numpy\.load|codecs\.decode)"):
            read_pickle(name, "file")


def test_a_pickle_cannot_change_what_the_next_one_is_read_with() -> None:
    """BUILD sets attributes of whatever a pickle was given."""
    spoil = b"cnumpy\ndtype\n(Nd(S'__defaults__'\n(I1\ntdtb."
    with pytest.raises(ValueError, match="file"):
        read_pickle(spoil, "file")
    assert read_pickle(cifar10()["test_batch"], "file")["data"].shape == (PER_BATCH, 3072)


def test_a_claim_of_many_objects_takes_no_memory() -> None:
    """An index into the memo of four thousand million."""
    assert read_pickle(b"}r\xff\xff\xff\xff.", "file") == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_batch_2": None}, "lacks data_batch_2"),
        ({"batches.meta": None}, "neither batches.meta"),
        ({"data_batch_1": pickle.dumps([1], protocol=2)}, "data_batch_1 holds a list"),
        ({"data_batch_1": pickle.dumps({b"data": rows(PIXELS[:2]), b"labels": [1]}, protocol=2)}, "one number for each of the 2 images"),
        ({"data_batch_1": pickle.dumps({b"data": rows(PIXELS[:2])[:, :-1], b"labels": [1, 2]}, protocol=2)}, r"must hold data \[n, 3072\]"),
        ({"data_batch_1": pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}, protocol=2)}, "array of f8"),
        (
            {"data_batch_1": pickle.dumps({b"data": rows(PIXELS[:1]), b"labels": [10**30]}, protocol=2)},
            "one number for each of the 1 images",
        ),
        ({"batches.meta": pickle.dumps({b"label_names": 3}, protocol=2)}, "batches.meta must hold label_names"),
        ({"data_batch_4": cifar10()["data_batch_4"][:500]}, "data_batch_4 is truncated"),
    ],
)
def test_a_wrong_file_is_named(change: dict[str, bytes | None], said: str, tmp_path: Path) -> None:
    files = {name: content for name, content in {**cifar10(), **change}.items() if content is not None}
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        parse(write_archive(tmp_path / "cifar-10-python.tar.gz", files))
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        parse(write_folder(tmp_path / TEN, files))


def test_damaged_archives_get_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_archive(tmp_path / "cifar-10-python.tar.gz", cifar10())
    whole = path.read_bytes()
    for content in (
        whole[: len(whole) // 2],
        b"no archive",
        b"",
        gzip.compress(b"no tar" * 500),
        gzip.compress(gzip.decompress(whole)[:9000]),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz is truncated or is no \.tar\.gz archive"):
            parse(path)
    with pytest.raises(ValueError, match="lies outside of the archive"):
        parse(write_archive(path, cifar10(), "../elsewhere"))
    path.write_bytes(whole)
    monkeypatch.setattr("dataparsers.cifar._LARGEST", 2**15)
    with pytest.raises(ValueError, match="unpacks to more than"):
        parse(path)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(-400, 300), byte=st.integers(0, 255))
def test_a_changed_byte_gives_a_dictionary_or_a_sentence(place: int, byte: int) -> None:
    """In the program around the pixels, at the beginning or the end of the file."""
    content = bytearray(cifar10()["test_batch"])
    content[place] = byte
    said = "somewhere "
    try:
        read_pickle(bytes(content), "somewhere")
    except ValueError as error:
        said = str(error)
    assert said.startswith("somewhere ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_train": None}, "lacks x_train"),
        ({"classes": None}, "lacks classes"),
        ({"x_train": PIXELS[:15].astype(np.float32)}, "x_train is float32"),
        ({"x_train": rows(PIXELS[:15])}, r"must be uint8 \[n, height, width, 3\]"),
        ({"y_train": np.arange(3)}, "one integer for each of 15 images"),
        ({"x_train": np.array([object()], dtype=object)}, "cannot be read as arrays"),
    ],
)
def test_wrong_arrays_are_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        parse(write_arrays(tmp_path / "c.npz", **changes))


def test_data_that_are_no_cifar_are_named(tmp_path: Path) -> None:
    for wrong, said in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "does not hold cifar-10-batches-py/")):
        with pytest.raises(FileNotFoundError, match=said):
            parse(wrong)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no zip")
    (tmp_path / "notes.txt").write_text("x")
    for name, said in (("broken.npz", "cannot be read as arrays"), ("notes.txt", "neither a .tar.gz archive")):
        with pytest.raises(ValueError, match=said):
            parse(tmp_path / name)


def test_it_has_flags(tmp_path: Path) -> None:
    assert cifar_data.config == CifarDataParserConfig()
    assert tyro.cli(CifarDataParserConfig, args=["--data", str(tmp_path)]).data == tmp_path
