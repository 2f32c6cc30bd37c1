"""Checkpoint files: written whole or not at all, read without executing anything; a damaged one gives way to the one before."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE

PATTERN = "step-*.ckpt"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says which and what to do."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """nerfstudio's name for the checkpoint of a step."""
    return folder / f"step-{step:09d}.ckpt"


def checkpoint_folder(run: Path) -> Path:
    """The folder of a run's checkpoints, named by itself or by the run's folder."""
    inner = run / "nerfstudio_models"
    return inner if inner.is_dir() and not any(run.glob(PATTERN)) else run


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 0) -> Path:
    """Save `state`, then delete all but the newest `keep` checkpoints (0 keeps all).

    The unfinished file lies beside the folder, not in it: nerfstudio reads a step out of every name in there.

    Raises:
        CheckpointError: the file cannot be written; earlier checkpoints are untouched.
    """
    path = checkpoint_path(folder, step)
    unfinished = folder.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for abandoned in folder.parent.glob(f".{PATTERN}.*.tmp"):  # by a process that was killed while it wrote
            abandoned.unlink()
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing was
            unfinished.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write checkpoint {path} ({_cause(error)}). Earlier checkpoints are intact: make room or name a writable folder "
            "with --output-dir, then resume with --load-dir"
        ) from error
    for older in sorted(folder.glob(PATTERN))[:-keep] if keep else []:
        older.unlink()
    return path


def read_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """A checkpoint on the CPU: tensors and plain values, nothing is executed, every byte is compared with its checksum.

    Args:
        path: the file.
        mapped: leave the tensors in the file, for a look at whether it can be read at all.

    Raises:
        CheckpointError: no such file, a truncated or damaged one, or one that holds pickled objects.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}: check --load-dir, --load-step or --load-checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at checksums
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is truncated, or no checkpoint at all ({_cause(error)}): use an earlier one") from error
    if damaged is not None:
        raise CheckpointError(f"checkpoint {path} is damaged (checksum of {damaged}): use an earlier one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path} holds pickled Python objects, which are not executed: use one that ns-train or ns-tokens import wrote"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint ({_cause(error)}): use another one") from error
    if not isinstance(state, dict) or not {"step", "pipeline"} <= state.keys():
        raise CheckpointError(f"checkpoint {path} lacks 'step' and 'pipeline': use one that ns-train or ns-tokens import wrote")
    return state


def newest_readable(folder: Path, mapped: bool = False) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that can be read; each newer one that cannot is named. Nothing is moved or deleted.

    Args:
        folder: of checkpoints.
        mapped: see `read_checkpoint`.

    Raises:
        CheckpointError: there are none, or none can be read.
    """
    paths = sorted(folder.glob(PATTERN), reverse=True) if folder.is_dir() else []
    if not paths:
        raise CheckpointError(f"there are no checkpoints in {folder}: name the folder of a run, or its nerfstudio_models")
    for path, before in zip(paths, [*paths[1:], None]):
        try:
            return path, read_checkpoint(path, mapped)
        except CheckpointError as error:
            if before is None:
                raise CheckpointError(f"none of the {len(paths)} checkpoints in {folder} can be read; the oldest: {error}") from error
            CONSOLE.print(f"[bold yellow]{error}. Falling back to {before.name}")
    raise AssertionError("unreachable")


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


def random_states() -> dict[str, Any]:
    """The states of this process's random generators, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "gauss": gauss,
        },
        "python": {"version": version, "words": list(words), "gauss_next": gauss_next},
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo whatever was drawn since `random_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    numpy_state, python_state = states["numpy"], states["python"]
    keys = numpy_state["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy_state["name"], keys, numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"]))
    random.setstate((python_state["version"], tuple(python_state["words"]), python_state["gauss_next"]))


def _cause(error: BaseException) -> str:
    """First line of an error, or of the one behind it: torch follows a full disk with a complaint about its archive."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    text = str(cause).strip()
    return text.splitlines()[0] if text else type(cause).__name__
