"""Published GaussianToken checkpoints and our networks: the same names, compared strictly; reading, choosing and writing.

A checkpoint holds each trained tensor twice: as it is, and as a running average under a name without dots (`shadow_name`). The
averages are what the publication evaluates. It also holds tensors that nothing reads, and the networks of the loss.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from token_methods.core.weights import WeightsError, compare_keys, key_differences, read_safetensors, require_finite, write_safetensors
from token_methods.gaussiantoken.config import PRESETS, GaussianTokenArchitecture
from token_methods.gaussiantoken.embedder import LAYERS_PER_BLOCK
from token_methods.gaussiantoken.network import GaussianTokenNetwork

SHADOW = "model_ema."
"""Where averages are in a checkpoint."""
DISCRIMINATOR = "loss.discriminator."
"""Where the discriminator is."""
RUNNING_MEAN = ".range_scheduler.ema"
"""A buffer that is ours alone: the publication starts it afresh whenever training resumes."""
AVERAGING_DECAY = 0.999
READ_AS_LIGHTNING = (".ckpt", ".pt", ".pth")


class PublishedTensors(NamedTuple):
    """What an architecture reads of a published checkpoint."""

    tensors: Mapping[str, Tensor]
    """By key, as tensors without memory."""
    averaged: frozenset[str]
    """Keys of which there is an average: everything trained. The codebook, the scale range and constants have none."""
    unread: tuple[str, ...]
    """Beginnings of keys that the publication saves too and that no network needs."""


def shadow_name(key: str) -> str:
    """Where the average of a tensor is."""
    return SHADOW + key.replace(".", "")


@lru_cache(maxsize=16)
def published_tensors(architecture: GaussianTokenArchitecture) -> PublishedTensors:
    """Keys and shapes of an architecture's published checkpoint."""
    with torch.device("meta"):
        network = GaussianTokenNetwork(architecture)
    unread = [DISCRIMINATOR, "loss.perceptual_loss."]
    if architecture.embedder is not None:
        # Templates of the blocks; a sparse convolution that no preset runs; and what only the last refinement activates with.
        refinements = range(LAYERS_PER_BLOCK - 1, LAYERS_PER_BLOCK * (architecture.embedder.num_blocks - 1), LAYERS_PER_BLOCK)
        unread += ["gs_embed.op_module_map."]
        unread += [f"gs_embed.layers.{index}.{part}." for index in refinements for part in ("to_features", "range_scheduler")]
    return PublishedTensors(
        tensors=_without_running_mean(network.state_dict()),
        averaged=frozenset(key for key, parameter in network.named_parameters() if parameter.requires_grad),
        unread=(*unread, *(shadow_name(prefix) for prefix in unread), f"{SHADOW}decay", f"{SHADOW}num_updates"),
    )


def unread_keys(weights: Mapping[str, Tensor], architecture: GaussianTokenArchitecture) -> list[str]:
    """Keys of a checkpoint that are known and that a network does not need; worth a line to the user."""
    unread = published_tensors(architecture).unread
    return [key for key in weights if key.startswith(unread)]


def check_weights(
    weights: Mapping[str, Tensor], architecture: GaussianTokenArchitecture, source: str, averaged: bool = True
) -> dict[str, Tensor]:
    """A network's state dict out of a published checkpoint (or one of ours) that fits an architecture exactly and is finite.

    Args:
        weights: what was read; keys that nothing reads (`unread_keys`) are left out.
        architecture: what they are for.
        source: the file, for messages.
        averaged: take the running averages of what was trained, where the file has any; otherwise the live weights.

    Raises:
        WeightsError: every key that is missing, unexpected or misshapen, and the presets that would fit.
    """
    place, wanted, found = _chosen(weights, architecture, averaged)
    fitting = fit_presets(weights) if key_differences(found, wanted) else []
    fix = f"they fit the preset{'s' * (len(fitting) > 1)} {', '.join(fitting)}" if fitting else "no preset fits either"
    compare_keys(found, wanted, source, fix)
    require_finite(found, source)
    state = {key: found[place[key]] for key in place}
    if architecture.embedder is not None:
        ends = architecture.embedder.smallest_scale, architecture.embedder.initial_largest_scale
        key = f"gs_embed.layers.{LAYERS_PER_BLOCK * architecture.embedder.num_blocks - 1}{RUNNING_MEAN}"
        state[key] = weights.get(key, torch.tensor(sum(ends) / 2))
    return state


def fit_presets(weights: Mapping[str, Tensor]) -> list[str]:
    """The presets whose networks have exactly these keys and shapes; optimiser and data are not in the weights."""
    architectures = {preset.architecture for preset in PRESETS.values()}
    fitting = {architecture for architecture in architectures if not _differs(weights, architecture)}
    return [name for name, preset in PRESETS.items() if preset.architecture in fitting]


def load_weights(network: GaussianTokenNetwork, weights: Mapping[str, Tensor], source: str, averaged: bool = True) -> None:
    """Fill a network, all of it or none.

    Raises:
        WeightsError: see `check_weights`.
    """
    network.load_state_dict(check_weights(weights, network.architecture, source, averaged))


def discriminator_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The discriminator's own state dict out of a published checkpoint, live; empty where there is none."""
    return {key.removeprefix(DISCRIMINATOR): value for key, value in weights.items() if key.startswith(DISCRIMINATOR)}


def published_weights(
    weights: Mapping[str, Tensor],
    architecture: GaussianTokenArchitecture,
    averages: Mapping[str, Tensor] | None = None,
    discriminator: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """A network as the published code loads it, with the averages that it evaluates.

    Args:
        weights: state dict of a network of ours.
        architecture: its architecture.
        averages: state dict of its running average; None: the weights are averages already.
        discriminator: state dict of the discriminator, for training on.

    Raises:
        WeightsError: a state dict of another architecture.
    """
    published = published_tensors(architecture)
    live, average = _without_running_mean(weights), _without_running_mean(averages or weights)
    compare_keys(live, published.tensors, "this network")
    compare_keys(average, published.tensors, "this running average")
    shadows = {shadow_name(key): average[key] for key in published.tensors if key in published.averaged}
    for key, value in (discriminator or {}).items():
        live[DISCRIMINATOR + key] = value
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            shadows[shadow_name(DISCRIMINATOR + key)] = value
    counters = {f"{SHADOW}decay": torch.tensor(AVERAGING_DECAY), f"{SHADOW}num_updates": torch.tensor(-1, dtype=torch.int32)}
    return {**live, **shadows, **counters}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a published checkpoint (Lightning's `.ckpt`, or `.safetensors`), on the CPU. Nothing in it is executed.

    Raises:
        WeightsError: it is not there, is damaged, needs code to be run, or has no `state_dict`.
    """
    path = Path(path)
    if path.suffix not in READ_AS_LIGHTNING:
        return read_safetensors(path)
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: name a .ckpt or .safetensors file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is not None:
            raise WeightsError(
                f"{path} needs {refused[1]} to be opened, which is not opened, since it could run code: "
                "take the original file, or save its state_dict alone where you trust it"
            ) from error
        raise WeightsError(f"{path} is damaged or no checkpoint ({type(error).__name__}): copy or download it again") from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} is no published checkpoint: it has no state_dict of tensors")
    return dict(state)


def write_checkpoint(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write `published_weights` to a `.ckpt` as Lightning has it, or to `.safetensors`; it is there whole or not at all.

    Raises:
        WeightsError: the folder cannot be written or is full.
    """
    path = Path(path)
    if path.suffix not in READ_AS_LIGHTNING:
        write_safetensors(weights, path)
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().cpu().clone() for key, value in weights.items()}
        torch.save({"epoch": 0, "global_step": 0, "state_dict": state}, unfinished)
        unfinished.replace(path)
    except (RuntimeError, OSError) as error:
        raise WeightsError(f"{path} cannot be written ({error}): name another folder or make room") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _without_running_mean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith(RUNNING_MEAN)}


def _differs(weights: Mapping[str, Tensor], architecture: GaussianTokenArchitecture) -> bool:
    _, wanted, found = _chosen(weights, architecture, averaged=True)
    return bool(key_differences(found, wanted))


def _chosen(
    weights: Mapping[str, Tensor], architecture: GaussianTokenArchitecture, averaged: bool
) -> tuple[dict[str, str], dict[str, Tensor], dict[str, Tensor]]:
    """For each key of the network its key in the file; shapes wanted there; and the file without what is known and not wanted."""
    published = published_tensors(architecture)
    averaged = averaged and any(shadow_name(key) in weights for key in published.averaged)
    place = {key: shadow_name(key) if averaged and key in published.averaged else key for key in published.tensors}
    wanted = {place[key]: value for key, value in published.tensors.items()}
    other = {key if averaged else shadow_name(key) for key in published.averaged}
    found = {
        key: value
        for key, value in weights.items()
        if key in wanted or not (key in other or key.startswith(published.unread) or key.endswith(RUNNING_MEAN))
    }
    return place, wanted, found
