"""Checkpoint files: written whole or not at all, read without executing anything, a torn one set aside."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says which and what to do."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """nerfstudio's name for the checkpoint of a step."""
    return folder / f"step-{step:09d}.ckpt"


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Save `state` and delete all but the newest `keep` checkpoints.

    The temporary file lies beside the folder, not in it: nerfstudio reads a step out of every name in there.

    Raises:
        CheckpointError: the file cannot be written; earlier checkpoints are untouched.
    """
    path = checkpoint_path(folder, step)
    temporary = folder.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write checkpoint {path}: {error}. Earlier checkpoints are intact; free space or name a writable "
            "folder with --output-dir, then resume with --load-dir"
        ) from error
    for older in sorted(folder.glob("step-*.ckpt"))[:-keep]:
        older.unlink()
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU, tensors and plain values only.

    Raises:
        CheckpointError: no such file, a truncated one, or one that holds pickled objects.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: check --load-dir / --load-step / --load-checkpoint")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"checkpoint {path} is truncated or no checkpoint at all: use an earlier one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path} holds pickled Python objects, which are not executed: re-save it as tensors only ({_first_line(error)})"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({_first_line(error)}): use an earlier one") from error
    if not isinstance(state, dict) or not {"step", "pipeline"} <= state.keys():
        raise CheckpointError(f"checkpoint {path} lacks 'step' and 'pipeline': it was not written by ns-train")
    return state


def newest_readable(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a folder that can be read; damaged newer ones are moved to `damaged/` beside it.

    Raises:
        CheckpointError: none can be read.
    """
    paths = sorted(folder.glob("step-*.ckpt"), reverse=True) if folder.is_dir() else []
    if not paths:
        raise CheckpointError(f"no checkpoints in {folder}: name the nerfstudio_models folder of a run")
    for path in paths:
        try:
            return path, read_checkpoint(path)
        except CheckpointError as error:
            CONSOLE.print(f"[yellow]{error}[/yellow]")
            set_aside(path)
    raise CheckpointError(f"none of the {len(paths)} checkpoints in {folder} can be read")


def set_aside_torn(folder: Path) -> None:
    """Move truncated checkpoints out of a folder, so that nerfstudio's own loading takes the newest whole one."""
    for path in sorted(folder.glob("step-*.ckpt")) if folder.is_dir() else []:
        if not zipfile.is_zipfile(path):
            set_aside(path)


def set_aside(path: Path) -> None:
    """Move a damaged checkpoint to `damaged/` beside its folder, and say so."""
    target = path.parent.parent / "damaged" / path.name
    try:
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    except OSError:
        CONSOLE.print(f"[yellow]checkpoint {path} is damaged and could not be moved; delete it[/yellow]")
        return
    CONSOLE.print(f"[yellow]checkpoint {path.name} is damaged: moved to {target}; falling back to the one before[/yellow]")


def random_states() -> dict[str, Any]:
    """The states of every random generator in use, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {"name": name, "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)), "position": position, "has_gauss": has_gauss, "gauss": gauss},
        "python": {"version": version, "words": list(words), "gauss_next": gauss_next},
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo whatever was drawn since `random_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    numpy_state, python_state = states["numpy"], states["python"]
    keys = numpy_state["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy_state["name"], keys, numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"]))
    random.setstate((python_state["version"], tuple(python_state["words"]), python_state["gauss_next"]))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
