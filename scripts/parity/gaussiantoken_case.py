"""A stored GaussianToken case: its tensors and settings, and the weights that a formula makes for it."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scripts.parity.comparison import Comparison, NotACase, out

KEPT = ("grid_size", "scaling_layer.shift", "scaling_layer.scale", "decay")
"""Names that keep their constructor's value under formula weights."""


class GaussianTokenCase:
    """One `.safetensors` file with the settings in its header.

    Raises:
        NotACase: there is no such file, or it is no case.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".safetensors":
            path = path.with_name(f"{path.name.removesuffix('.json')}.safetensors")
        if not path.is_file():
            raise NotACase(f"{path} does not exist: name the .safetensors file of a GaussianToken case")
        try:
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get("meta", "null")
                self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.meta: dict[str, Any] = json.loads(header)
        except (SafetensorError, ValueError, OSError) as error:
            raise NotACase(f"{path} cannot be read as a case ({error})") from None
        if not isinstance(self.meta, dict) or "kind" not in self.meta:
            raise NotACase(f"{path} is no case: its header has no meta entry with a kind")
        self.path = path
        self.kind = str(self.meta["kind"])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise NotACase(f"{self.path} lacks the tensor {name}")
        return self.tensors[name]

    def setting(self, name: str) -> Any:
        """An entry of the settings.

        Raises:
            NotACase: it is missing.
        """
        if name not in self.meta:
            raise NotACase(f"{self.path}: its meta entry lacks {name}")
        return self.meta[name]

    def compare(self, name: str, value: Tensor, kind: str = "out", prefix: str = "") -> Comparison:
        """A tensor beside the stored `prefix + name`, with the case's own tolerance of that kind.

        Integers must be equal. A tolerance is `atol` + `rtol` * |reference| per element, or a share of the largest reference.
        """
        expected = self[prefix + name]
        label = prefix + name
        value = value.detach().cpu()
        if value.shape != expected.shape:
            return out(label, f"shape {list(value.shape)} instead of {list(expected.shape)}")
        if not expected.is_floating_point():
            wrong = int((value.to(expected.dtype) != expected).sum())
            return Comparison(label, float(wrong), 0.0, wrong == 0, "entries that differ" if wrong else "exact")
        given = self.setting("tolerance")
        limits = given.get(kind, given if "atol" in given or "atol_rel_to_max" in given else {"atol": 0.0})
        difference = (value.double() - expected.double()).abs()
        if not expected.numel():
            return Comparison(label, 0.0, 0.0, True)
        if "atol_rel_to_max" in limits:
            # A gradient that is zero everywhere has no size of its own.
            scale = max(expected.abs().max().item(), 1e-12)
            error = difference.max().item() / scale
            return Comparison(label, error, limits["atol_rel_to_max"], error <= limits["atol_rel_to_max"], "of the largest")
        allowed = limits.get("atol", 0.0) + limits.get("rtol", 0.0) * expected.abs().double()
        worst = int((difference - allowed).argmax())
        passed = bool((difference <= allowed).all())
        return Comparison(label, difference.flatten()[worst].item(), allowed.flatten()[worst].item(), passed)


def formula_tensor(key: str, shape: Iterable[int], seed: int) -> Tensor:
    """The reproducible value that cases give to a published state-dict key, float32."""
    shape = tuple(shape)
    normal = _normal(key, shape, seed)
    last = key.rsplit(".", 1)[-1]
    match last:
        case "num_batches_tracked" | "num_updates":
            value = 0 * normal
        case "initted":
            value = 0 * normal + 1
        case "current_range_max":
            value = 0 * normal + 3.5
        case "running_var":
            value = 1 + 0.1 * np.abs(normal)
        case "cluster_size":
            value = 4 + 0.1 * np.abs(normal)
        case "running_mean":
            value = 0.1 * normal
        case "embed":
            value = 0.7 * normal
        case "anchor" | "fixed_offsets":
            value = normal
        case "instance_feature":
            value = 0.5 * normal
        case _ if last == "scale" or (len(shape) == 1 and last == "weight"):
            value = 1 + 0.1 * normal
        case _ if key.endswith("sampling_offsets.bias"):
            value = normal
        case _ if len(shape) <= 1:
            value = 0.05 * normal
        case _:
            fan = float(np.prod(shape[1:]))
            if ".lin" in f".{key}" and key.endswith(".model.1.weight"):
                value = np.abs(normal) / math.sqrt(fan)
            else:
                value = normal * math.sqrt((2.0 if "perceptual_loss.net" in key else 1.0) / fan)
    return torch.from_numpy(np.asarray(value)).float()


def formula_image(key: str, shape: Iterable[int], seed: int) -> Tensor:
    """The reproducible image of a key, in -1..1, float32."""
    return torch.from_numpy(np.clip(0.5 * _normal(key, tuple(shape), seed), -1, 1)).float()


def _normal(key: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    generator = np.random.RandomState((zlib.crc32(key.encode()) + 2654435761 * seed) % 2**32)
    return generator.standard_normal(math.prod(shape)).reshape(shape)


def formula_weights(state: Mapping[str, Tensor], seed: int, prefix: str = "") -> dict[str, Tensor]:
    """Formula values for the published keys of a state dict, dtypes kept; `prefix` completes local keys to published ones."""
    values: dict[str, Tensor] = {}
    for key, tensor in state.items():
        full = prefix + key
        if full.endswith(KEPT) or "model_ema." in full:
            values[key] = tensor
        else:
            values[key] = formula_tensor(full, tensor.shape, seed).to(tensor.dtype)
    for key in [key for key in values if key.endswith("embed_avg")]:
        stem = key.removesuffix("embed_avg")
        values[key] = values[f"{stem}embed"] * values[f"{stem}cluster_size"][..., None]
    return values
