"""`cifar-data`: CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), read inside their published archives, unpacked, or from arrays.

    cifar-10-python.tar.gz       cifar-10-batches-py/{data_batch_1 .. data_batch_5, test_batch, batches.meta}
    cifar-100-python.tar.gz      cifar-100-python/{train, test, meta}
    FILE.npz                     x_train, y_train, x_test, y_test, classes

The files in the archives are pickles; see `dataparsers/pickled_arrays.py`.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from dataparsers.pickled_arrays import read_pickle
from dataparsers.picture_cameras import picture_outputs

_SIDE = 32
_LABELS = range(100)
_LARGEST = 2**30
"""Bytes of an unpacked archive or file; those of CIFAR have less than 200 MiB."""
_ARRAYS = "x_train [n, height, width, 3] and x_test of uint8, y_train [n] and y_test of integers, classes [c] of text"


@dataclass
class CifarDataParserConfig(DataParserConfig):
    """CIFAR-10 or CIFAR-100, in its published archive, unpacked, or as .npz."""

    _target: type = field(default_factory=lambda: CifarDataParser)
    data: Path = Path("data/cifar")
    """The archive (cifar-10-python.tar.gz, cifar-100-python.tar.gz), the folder unpacked from it, the folder that holds one of these, or
    a .npz file with x_train, y_train, x_test, y_test and classes."""


class CifarDataParser(DataParser):
    """Hands over the pixels themselves: no file is unpacked."""

    config: CifarDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: object) -> DataparserOutputs:
        """The images of a split in the order of the files; `val` and `test` are both the test batch.

        `metadata` has `pixels` (uint8 [n, height, width, 3]), `labels` (int64 [n]; the fine ones of CIFAR-100) and `classes` (their
        names). Image names are virtual: `ARCHIVE/train/00012.png`.

        Raises:
            FileNotFoundError: `data` holds neither of the two, or a batch is missing.
            ValueError: `data` holds both; or a file is damaged, holds something else, or asks for more than data.
        """
        part = "train" if split == "train" else "test"
        source = _find(self.config.data)
        pixels, labels, classes = (_from_arrays if source.suffix == ".npz" else _from_batches)(source, part)
        names = [source / part / f"{number:05d}.png" for number in range(len(pixels))]
        return picture_outputs(names, *pixels.shape[1:3], pixels=pixels, labels=labels, classes=classes)


@dataclass(frozen=True)
class _Edition:
    """How one of the two data sets is laid out."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    classes: str


_EDITIONS = (
    _Edition(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        labels="labels",
        classes="label_names",
    ),
    _Edition("cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", "meta", "fine_labels", "fine_label_names"),
)
_Part = tuple[UInt8[np.ndarray, "n height width 3"], Int[np.ndarray, " n"], tuple[str, ...]]


def _find(data: Path) -> Path:
    """The one folder, archive or .npz file that `data` means."""
    wanted = " or ".join(f"{edition.folder}/ or {edition.archive}" for edition in _EDITIONS)
    if not data.exists():
        raise FileNotFoundError(f"cifar-data: {data} does not exist. Give --data the folder that holds {wanted}, or a .npz file.")
    if data.is_file():
        if not data.name.endswith((".npz", ".tar.gz", ".tgz", ".tar")):
            raise ValueError(f"cifar-data: {data} is neither a .tar.gz archive of CIFAR nor a .npz file. Give --data one of these.")
        return data
    if any((data / edition.meta).is_file() or data.name == edition.folder for edition in _EDITIONS):
        return data
    # An archive beside what was unpacked from it is one data set.
    found = [
        next(path for path in (data / edition.folder, data / edition.archive) if path.exists())
        for edition in _EDITIONS
        if (data / edition.folder).exists() or (data / edition.archive).exists()
    ]
    if not found:
        raise FileNotFoundError(f"cifar-data: {data} does not hold {wanted}. For pictures of your own there is image-folder-data.")
    if len(found) > 1:
        raise ValueError(f"cifar-data: {data} holds both {found[0].name} and {found[1].name}. Give --data the one that is meant.")
    return found[0]


def _from_batches(source: Path, part: str) -> _Part:
    read, names = _files(source)
    edition = next((edition for edition in _EDITIONS if edition.meta in names), None)
    if edition is None:
        raise FileNotFoundError(f"{source} holds neither batches.meta (CIFAR-10) nor meta (CIFAR-100): it is not CIFAR for Python.")
    wanted = edition.train if part == "train" else (edition.test,)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise FileNotFoundError(f"{source} lacks {', '.join(missing)}. Unpack or download it again.")
    batches = [_batch(read_pickle(read(name), f"{source}/{name}"), edition.labels, f"{source}/{name}") for name in wanted]
    meta = read_pickle(read(edition.meta), f"{source}/{edition.meta}")
    classes = meta.get(edition.classes)
    if not isinstance(classes, list):
        raise ValueError(f"{source}/{edition.meta} must hold {edition.classes}, a list. Download CIFAR again from its source.")
    return np.concatenate([pixels for pixels, _ in batches]), np.concatenate([labels for _, labels in batches]), tuple(map(_text, classes))


def _batch(content: dict[str, Any], key: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of one batch, which stores a row of red, then green, then blue planes for each image."""
    rows, labels = content.get("data"), content.get(key)
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 3 * _SIDE * _SIDE or not len(rows):
        raise ValueError(f"{where} must hold data [n, {3 * _SIDE * _SIDE}] of bytes. Download CIFAR again from its source.")
    if not isinstance(labels, list) or len(labels) != len(rows) or not all(label in _LABELS for label in labels):
        raise ValueError(f"{where} must hold {key}, one number for each of the {len(rows)} images. Download CIFAR again from its source.")
    pixels = rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), np.array(labels, dtype=np.int64)


def _files(source: Path) -> tuple[Callable[[str], bytes], frozenset[str]]:
    """How to read a file of CIFAR by its name, and the names there are."""
    if source.is_dir():
        names = frozenset(path.name for path in source.iterdir() if path.is_file() and path.stat().st_size <= _LARGEST)
        return lambda name: (source / name).read_bytes(), names
    archive = _unpacked(source)
    members: dict[str, tarfile.TarInfo] = {}
    try:
        for member in archive:
            if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
                raise ValueError(f"{source}: the member {member.name[:200]!r} lies outside of the archive. Get it anew from its source.")
            if member.isreg():
                members[PurePosixPath(member.name).name] = member
    except (tarfile.TarError, EOFError) as error:
        raise _broken_archive(source, error) from None

    def read(name: str) -> bytes:
        try:
            stream = archive.extractfile(members[name])
            assert stream is not None
            content = stream.read(_LARGEST)
        except (tarfile.TarError, EOFError) as error:
            raise _broken_archive(source, error) from None
        if len(content) < members[name].size:
            raise _broken_archive(source, f"{name} is cut off")
        return content

    return read, frozenset(members)


def _unpacked(source: Path) -> tarfile.TarFile:
    """The archive in memory, however large it claims to be."""
    try:
        with source.open("rb") if source.suffix == ".tar" else gzip.open(source) as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"{source} unpacks to more than {_LARGEST >> 20} MiB, and CIFAR does not. Do not use this archive.")
        return tarfile.open(fileobj=io.BytesIO(content), mode="r:")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise _broken_archive(source, error) from None


def _broken_archive(source: Path, reason: object) -> ValueError:
    return ValueError(f"{source} is truncated or is no .tar.gz archive ({reason}). Copy or download it again.")


def _from_arrays(source: Path, part: str) -> _Part:
    wanted = (f"x_{part}", f"y_{part}", "classes")
    try:
        with zipfile.ZipFile(source) as archive:
            sizes = sum(member.file_size for member in archive.infolist())
        if sizes > 64 * _LARGEST:
            raise ValueError(f"it would unpack to {sizes >> 30} GiB")
        with np.load(source, allow_pickle=False) as arrays:
            missing = [name for name in wanted if name not in arrays.files]
            pixels, labels, classes = (arrays[name] if name in arrays.files else np.arange(0) for name in wanted)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{source} cannot be read as arrays ({error}). It must hold {_ARRAYS}; write or copy it again.") from None
    if missing:
        raise ValueError(f"{source} lacks {', '.join(missing)}. It must hold {_ARRAYS}.")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not pixels.size:
        raise ValueError(f"{source}: x_{part} is {pixels.dtype} {list(pixels.shape)}. It must be uint8 [n, height, width, 3].")
    if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{source}: y_{part} is {labels.dtype} {list(labels.shape)}. It must be one integer for each of {len(pixels)} images."
        )
    return pixels, labels.astype(np.int64), tuple(_text(name) for name in classes)


def _text(name: object) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)


cifar_data = DataParserSpecification(
    config=CifarDataParserConfig(), description="CIFAR-10 or CIFAR-100: images for tokenizers, from archives, folders or .npz."
)
