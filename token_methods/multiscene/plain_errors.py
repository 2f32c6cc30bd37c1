"""What a user can put right ends a command with one sentence, not with a traceback."""

from __future__ import annotations

import sys
from types import TracebackType

from torch.multiprocessing.spawn import ProcessRaisedException

from token_methods.core.perceptual import LpipsUnavailable
from token_methods.core.weights import WeightsError
from token_methods.multiscene.checkpoints import CheckpointError
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.guard import TrainingCollapsed


class SettingsError(ValueError):
    """Options that contradict each other or the machine; the message says which, and what to give instead."""


PLAIN_ERRORS = (SettingsError, SceneError, WeightsError, CheckpointError, LpipsUnavailable, TrainingCollapsed)
"""Errors whose message says what is wrong, where, and how to put it right."""


def speak_plainly() -> None:
    """From now on an uncaught `PLAIN_ERRORS` ends the program with its message alone; every other error keeps its traceback."""
    if sys.excepthook is not _say:
        global _other_errors
        _other_errors, sys.excepthook = sys.excepthook, _say


_other_errors = sys.excepthook


def _say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    sentence = plain_sentence(error)
    if sentence is None:
        _other_errors(kind, error, traceback)
    else:
        print(f"\nError: {sentence}", file=sys.stderr)


def plain_sentence(error: BaseException) -> str | None:
    """The message for the user, also where one of several training processes raised it; None for errors of the program's own."""
    if isinstance(error, PLAIN_ERRORS):
        return str(error)
    if isinstance(error, ProcessRaisedException):
        # The launcher hands over the text of the process's traceback: its last lines are the exception's name and message.
        for kind in PLAIN_ERRORS:
            _, found, message = str(error).rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
            if found:
                return message.strip()
    return None
