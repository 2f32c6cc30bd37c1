"""The network of a run, wherever it is stored: a safetensors file, a checkpoint, or a run's folder."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from token_methods.core.weights import WeightsError, read_safetensors
from token_methods.multiscene.checkpoints import checkpoint_folder, newest_readable, read_checkpoint

MODEL_PREFIX = "_model."
"""Where a model's keys begin in a checkpoint of nerfstudio."""
NETWORK_PREFIX, AVERAGE_PREFIX = "network.", "average.module."
"""Where, behind it, those of the network begin, and those of its running average in methods that keep one."""
ACCEPTED = "name a run's folder, one of its checkpoints, or a .safetensors file"


def read_network(path: Path) -> dict[str, Tensor]:
    """Tensors of a network under its own names, on the CPU; its running average where the checkpoint has one.

    Raises:
        WeightsError: there is no such file, or no network in it.
        CheckpointError: a checkpoint that cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_file() and path.suffix not in (".ckpt", ".yml"):
        return read_safetensors(path)
    state = read_model_state(path)
    prefix = AVERAGE_PREFIX if any(key.startswith(AVERAGE_PREFIX) for key in state) else NETWORK_PREFIX
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def read_model_state(path: Path) -> dict[str, Tensor]:
    """Everything that a checkpoint (of a run: its newest) holds of its model, on the CPU.

    Raises:
        WeightsError: there is no such file, or no network in it.
        CheckpointError: a checkpoint that cannot be read.
    """
    path = Path(path).expanduser()
    if path.name == "config.yml":
        path = path.parent
    if not path.exists():
        raise WeightsError(f"there are no weights at {path}: {ACCEPTED}")
    if path.is_dir():
        path, state = newest_readable(checkpoint_folder(path))
    else:
        state = read_checkpoint(path)
    model = {key.removeprefix(MODEL_PREFIX): value for key, value in state["pipeline"].items() if key.startswith(MODEL_PREFIX)}
    if not any(key.startswith(NETWORK_PREFIX) for key in model):
        raise WeightsError(f"{path} holds no network of nerfstudio-tokens: {ACCEPTED}")
    return model
