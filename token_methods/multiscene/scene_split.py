"""Which scenes are trained on, and which are held out."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.transforms_file import read_json


@dataclass(frozen=True)
class SceneSplit:
    """Names of the scenes to train on and of those to evaluate on; no scene is in both."""

    train: tuple[str, ...]
    evaluation: tuple[str, ...]


def decide_split(
    names: Sequence[str],
    fraction: float,
    seed: int,
    train: Sequence[str] | None = None,
    evaluation: Sequence[str] | None = None,
    split_file: Path | None = None,
    indexed: Sequence[str] = (),
    must_exist: bool = True,
) -> SceneSplit:
    """The split by lists or a file of lists; else the scenes of an evaluation index are held out; else a share of all.

    Raises:
        SceneError: the lists contradict each other or name scenes that are not there.
    """
    if split_file is not None:
        if train or evaluation:
            raise SceneError("give --scene-split or --train-scenes / --eval-scenes, not both")
        train, evaluation = read_split_file(split_file)
    if train is not None or evaluation is not None:
        return split_by_lists(names, train, evaluation, must_exist)
    if indexed:
        return split_by_lists(names, None, indexed, must_exist)
    return split_by_fraction(names, fraction, seed)


def split_by_fraction(names: Sequence[str], fraction: float, seed: int) -> SceneSplit:
    """Hold out a share of the scenes: at least one of two, none of one (unless all are asked for).

    The choice goes by a hash of seed and name, so a scene added later hardly moves the others.
    """
    held_out = round(fraction * len(names))
    if 0 < fraction < 1:
        held_out = min(max(held_out, 1), len(names) - 1)
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    evaluation = set(ranked[:held_out])
    return SceneSplit(tuple(n for n in names if n not in evaluation), tuple(n for n in names if n in evaluation))


def split_by_lists(
    names: Sequence[str], train: Sequence[str] | None, evaluation: Sequence[str] | None, must_exist: bool = True
) -> SceneSplit:
    """Take the lists as given; a list that is not given holds the scenes that the other one does not.

    Raises:
        SceneError: a scene is in both lists, or is not there (unless `must_exist` is False, which leaves it out).
    """
    for name in [*(train or ()), *(evaluation or ())]:
        if name not in names and must_exist:
            close = difflib.get_close_matches(name, names, n=3)
            raise SceneError(f"no scene {name!r} in the data; there are {', '.join(close or list(names)[:8])}{'' if close else ' ...'}")
    both = set(train or ()) & set(evaluation or ())
    if both:
        raise SceneError(f"scenes {sorted(both)} are in both the training and the evaluation list; take them out of one")
    if train is None:
        train = [name for name in names if name not in set(evaluation or ())]
    if evaluation is None:
        evaluation = [name for name in names if name not in set(train)]
    return SceneSplit(tuple(n for n in names if n in set(train)), tuple(n for n in names if n in set(evaluation)))


def read_split_file(path: Path) -> tuple[list[str] | None, list[str] | None]:
    """Training and evaluation lists of a JSON file `{"train": [...], "test": [...]}` ("eval" and "val" mean the same as "test").

    Raises:
        SceneError: not JSON, or not of this form.
    """
    content = read_json(path)
    lists: list[list[str] | None] = []
    for keys in (("train",), ("test", "eval", "val")):
        value = next((content[key] for key in keys if key in content), None) if isinstance(content, dict) else None
        if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise SceneError(f"{path}: {keys[0]!r} must be a list of scene names")
        lists.append(value)
    if lists == [None, None]:
        raise SceneError(f'{path} must hold {{"train": [...], "test": [...]}} with scene names')
    return lists[0], lists[1]
