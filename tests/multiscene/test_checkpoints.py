"""Checkpoint files: whole or not there, never executed, and every kind of damage noticed."""

from __future__ import annotations

import contextlib
import random
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from token_methods.multiscene.checkpoints import (
    CheckpointError,
    checkpoint_folder,
    checkpoint_path,
    newest_readable,
    random_states,
    read_checkpoint,
    restore_random_states,
    write_checkpoint,
)


def state(step: int) -> dict:
    return {"step": step, "pipeline": {"weight": torch.full((50_000,), float(step))}, "optimizers": {"group": {"lr": 0.1}}}


@contextlib.contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file can grow beyond this: the write fails half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2 of a run."""
    inner = tmp_path / "run" / "nerfstudio_models"
    write_checkpoint(inner, 1, state(1))
    write_checkpoint(inner, 2, state(2))
    return inner


def damage(path: Path) -> None:
    """Change one byte in the middle of the tensor."""
    with zipfile.ZipFile(path) as archive:
        record = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    content[record.header_offset + record.file_size // 2] ^= 0xFF
    path.write_bytes(content)


def test_what_was_written_is_read(folder: Path) -> None:
    path, found = newest_readable(folder)
    assert path.name == "step-000000002.ckpt"
    assert found["step"] == 2 and found["optimizers"] == {"group": {"lr": 0.1}}
    assert torch.equal(found["pipeline"]["weight"], state(2)["pipeline"]["weight"])


def test_older_ones_are_deleted_after_the_newest_is_there(folder: Path) -> None:
    write_checkpoint(folder, 10, state(10), keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000002.ckpt", "step-000000010.ckpt"]


def test_a_full_disk_leaves_earlier_checkpoints_and_nothing_else(folder: Path) -> None:
    with room_for(100_000), pytest.raises(CheckpointError) as refused:
        write_checkpoint(folder, 3, state(3), keep=1)
    message = str(refused.value)
    assert "step-000000003.ckpt (" in message and "File too large" in message, "torch's own complaint hides the cause"
    assert "make room or name a writable folder with --output-dir" in message
    assert sorted(path.name for path in folder.parent.rglob("*") if path.is_file()) == ["step-000000001.ckpt", "step-000000002.ckpt"]
    assert newest_readable(folder)[1]["step"] == 2


def test_what_a_killed_process_left_unfinished_is_cleared_away(folder: Path) -> None:
    abandoned = folder.parent / ".step-000000003.ckpt.4711.tmp"
    abandoned.write_bytes(b"half")
    write_checkpoint(folder, 4, state(4))
    assert not abandoned.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_newest_checkpoint_gives_way(folder: Path, capsys: pytest.CaptureFixture[str], share: float) -> None:
    newest = checkpoint_path(folder, 2)
    content = newest.read_bytes()
    newest.write_bytes(content[: int(share * len(content))])
    path, found = newest_readable(folder)
    assert (path.name, found["step"]) == ("step-000000001.ckpt", 1)
    said = " ".join(capsys.readouterr().out.split())
    assert "step-000000002.ckpt is truncated" in said and "Falling back to step-000000001.ckpt" in said
    assert newest.exists(), "nothing is moved: the folder may be read-only"


@pytest.mark.parametrize("mapped", [False, True])
def test_a_byte_damaged_in_the_middle_is_noticed(folder: Path, mapped: bool) -> None:
    """torch.load takes such a file without a word."""
    newest = checkpoint_path(folder, 2)
    damage(newest)
    assert not torch.equal(torch.load(newest, weights_only=True)["pipeline"]["weight"], state(2)["pipeline"]["weight"])
    with pytest.raises(CheckpointError, match=r"step-000000002\.ckpt is damaged \(checksum of .*data/0\): use an earlier one"):
        read_checkpoint(newest, mapped)
    assert newest_readable(folder, mapped)[0] == checkpoint_path(folder, 1)


def test_when_none_can_be_read_the_last_reason_is_given(folder: Path) -> None:
    damage(checkpoint_path(folder, 1))
    checkpoint_path(folder, 2).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* can be read; the oldest: .*000001\.ckpt is damaged"):
        newest_readable(folder)


class Pickled:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (exec, ("import builtins; builtins.unpickled = True",))


def test_pickled_objects_are_refused_and_not_executed(tmp_path: Path) -> None:
    import builtins

    path = tmp_path / "step-000000001.ckpt"
    torch.save({"step": 1, "pipeline": {}, "trap": Pickled()}, path)
    for mapped in (False, True):
        with pytest.raises(CheckpointError, match="holds pickled Python objects, which are not executed"):
            read_checkpoint(path, mapped)
    assert not hasattr(builtins, "unpickled")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.zeros(2)}, "lacks 'step' and 'pipeline'"),
        ([1, 2], "lacks 'step' and 'pipeline'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "step-000000001.ckpt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "step-000000001.ckpt")


def test_an_archive_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "step-000000001.ckpt", "w") as archive:
        archive.writestr("photograph.jpg", b"...")
    with pytest.raises(CheckpointError, match=r"step-000000001\.ckpt is no checkpoint"):
        read_checkpoint(tmp_path / "step-000000001.ckpt")


def test_a_run_stands_for_its_checkpoints(folder: Path, tmp_path: Path) -> None:
    assert checkpoint_folder(folder.parent) == checkpoint_folder(folder) == folder
    with pytest.raises(CheckpointError, match="there are no checkpoints in"):
        newest_readable(checkpoint_folder(tmp_path))


def test_random_states_go_through_a_file(tmp_path: Path) -> None:
    """Every generator continues where it stood, also in the middle of numpy's and Python's pairs of normal numbers."""

    def draw() -> list[float]:
        return [torch.rand(1).item(), float(np.random.rand()), float(np.random.randn()), random.random(), random.gauss(0, 1)]

    random.gauss(0, 1), np.random.randn()
    write_checkpoint(tmp_path / "models", 1, {"step": 1, "pipeline": {}, "random_states": [random_states()]})
    expected = draw()
    draw()
    restore_random_states(newest_readable(tmp_path / "models")[1]["random_states"][0])
    assert draw() == expected
