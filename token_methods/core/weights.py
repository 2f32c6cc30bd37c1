"""Network weights in files: read without running code, compared key by key, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MAX_LISTED = 10
"""Keys named per kind of difference; the rest are counted."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file, the keys and what to do."""


@dataclass(frozen=True)
class KeyDifferences:
    """How the tensors that were found differ from those that are wanted."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    """`key [found shape] instead of [wanted shape]`."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "misshapen": self.misshapen}
        return "; ".join(f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in kinds.items() if keys)


def key_differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> KeyDifferences:
    """Compare keys and shapes."""
    return KeyDifferences(
        missing=tuple(key for key in expected if key not in found),
        unexpected=tuple(key for key in found if key not in expected),
        misshapen=tuple(
            f"{key} {list(found[key].shape)} instead of {list(value.shape)}"
            for key, value in expected.items()
            if key in found and found[key].shape != value.shape
        ),
    )


def compare_keys(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, fix: str = "") -> None:
    """Refuse weights that do not fit exactly.

    Args:
        found: what was read.
        expected: what the model has (its `state_dict()`).
        source: the file, for the message.
        fix: what the user can do about it.

    Raises:
        WeightsError: any key is missing, left over or of another shape.
    """
    differences = key_differences(found, expected)
    if differences:
        fix = fix or "choose the method and options that the weights were made with"
        raise WeightsError(f"{source} does not fit this model: {differences}. Nothing was loaded; {fix}.")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        WeightsError: the file is not there, is cut short, or is a pickle (never opened: it could run code).
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: name a .safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            start = file.read(2)
        if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise WeightsError(
                f"{path} is a pickled checkpoint, not safetensors. It is not opened, since it could run code: "
                "convert it with torch.load(..., weights_only=True) and safetensors.torch.save_file"
            ) from error
        raise WeightsError(f"{path} is damaged or no safetensors file ({error}): copy or download it again") from error


def write_safetensors(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a file that is there whole or not at all.

    Raises:
        WeightsError: the folder cannot be written or is full.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}, unfinished)
        unfinished.replace(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be written ({error}): name another folder or make room") from error
    finally:
        if unfinished.exists():
            unfinished.unlink()


def require_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        WeightsError: naming the tensors.
    """
    broken = tuple(key for key, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all())
    if broken:
        raise WeightsError(f"{source} holds NaN or infinity in {len(broken)} tensors: {_listed(broken)}. Take an earlier checkpoint.")


def _listed(keys: Iterable[str]) -> str:
    keys = tuple(keys)
    more = f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else ""
    return ", ".join(keys[:MAX_LISTED]) + more
