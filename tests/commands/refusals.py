"""How training is refused, and a pickle that must never be run."""

from __future__ import annotations

from typing import Any

import pytest

from tests import tiny_runs
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.plain_errors import plain_sentence
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig


def refused(config: FeedForwardTrainerConfig, kind: type[Exception] = SceneError) -> str:
    """The sentence with which `ns-train` ends, before it has trained anything."""
    with pytest.raises(kind) as error:
        tiny_runs.run(config)
    said = plain_sentence(error.value)
    assert said is not None and "\n" not in said
    left = [path.name for path in config.output_dir.rglob("*") if path.is_file()]
    assert set(left) <= {"config.yml"}, "no checkpoint, no events, nothing unfinished"
    return said


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must never be printed",)
