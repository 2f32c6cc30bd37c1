"""Evaluation index files: which frames of which scene are context and which are targets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.transforms_file import read_json


@dataclass(frozen=True)
class IndexEntry:
    """One evaluation of one scene; numbers are positions in the scene's frame list."""

    key: str
    """As written in the file."""
    context: tuple[int, ...]
    target: tuple[int, ...] | None
    """None: every frame of the scene."""


def read_evaluation_index(path: Path, num_context: int | None = None) -> list[IndexEntry]:
    """Read an index file in any of the forms in use.

    - `{scene: {"context": [...], "target": [...]}}` (pixelSplat, MVSplat, DepthSplat, TokenGS); `null` scenes are left out;
    - `{scene: [entry, entry, ...]}` (SceneTok): every entry is an evaluation of its own;
    - `[{"scene_name": ..., "fold_8_kmeans_16_input": [...], ...}]` (TokenGS): the list with `num_context` frames is the
      context, every frame is a target.

    Raises:
        SceneError: not JSON, or not of one of these forms.
    """
    content = read_json(path)
    entries: list[IndexEntry] = []
    if isinstance(content, dict):
        for key, value in content.items():
            for entry in value if isinstance(value, list) else [value]:
                if entry is not None:
                    entries.append(_entry(path, key, entry))
    elif isinstance(content, list):
        entries = [_listed(path, number, entry, num_context) for number, entry in enumerate(content)]
    else:
        raise SceneError(f"{path} must hold scenes with their context and target frames, it holds a {type(content).__name__}")
    if not entries:
        raise SceneError(f"{path} holds no scene to evaluate")
    return entries


def scene_of_entry(key: str, names: Iterable[str]) -> str | None:
    """The scene that an index key means: its own name, or without a `_1`, `_2` ... suffix that tells entries apart."""
    names = set(names)
    if key in names:
        return key
    stem = re.sub(r"_\d+$", "", key)
    return stem if stem in names else None


def _entry(path: Path, key: str, entry: Any) -> IndexEntry:
    where = f"{path}: scene {key!r}"
    if not isinstance(entry, dict) or not {"context", "target"} <= entry.keys():
        raise SceneError(f"{where} must be {{'context': [...], 'target': [...]}}")
    return IndexEntry(key, _frames(where, "context", entry["context"]), _frames(where, "target", entry["target"]))


def _listed(path: Path, number: int, entry: Any, num_context: int | None) -> IndexEntry:
    if not isinstance(entry, dict) or not isinstance(entry.get("scene_name"), str):
        raise SceneError(f"{path}: entry {number} lacks the key 'scene_name'")
    lists = {key: value for key, value in entry.items() if key.endswith("_input") and isinstance(value, list)}
    fitting = [key for key, value in lists.items() if num_context is None or len(value) == num_context]
    if len(fitting) != 1:
        sizes = {key: len(value) for key, value in lists.items()}
        raise SceneError(
            f"{path}: entry {number} ({entry['scene_name']}) has the context lists {sizes}; ask for one of these numbers of views"
        )
    return IndexEntry(entry["scene_name"], _frames(f"{path}: entry {number}", fitting[0], lists[fitting[0]]), None)


def _frames(where: str, key: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(frame, int) and frame >= 0 for frame in value):
        raise SceneError(f"{where}: {key!r} must be a list of frame numbers, counted from 0")
    return tuple(value)
