"""The network of a run, wherever it is stored: a safetensors file, a checkpoint, or a run's folder."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from token_methods.core.weights import WeightsError, read_safetensors
from token_methods.multiscene.checkpoints import checkpoint_folder, newest_readable, read_checkpoint

NETWORK_PREFIX = "_model.network."
"""Where the network's keys begin in a checkpoint of nerfstudio."""
ACCEPTED = "name a run's folder, one of its checkpoints, or a .safetensors file"


def read_network(path: Path) -> dict[str, Tensor]:
    """Tensors of a network under its own names, on the CPU.

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
    elif path.suffix == ".ckpt":
        state = read_checkpoint(path)
    else:
        return read_safetensors(path)
    weights = {key.removeprefix(NETWORK_PREFIX): value for key, value in state["pipeline"].items() if key.startswith(NETWORK_PREFIX)}
    if not weights:
        raise WeightsError(f"{path} holds no network of nerfstudio-tokens: {ACCEPTED}")
    return weights
