"""What the user can put right is one sentence at the end of a command; faults of the program keep their traceback."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.multiprocessing as mp

from token_methods.core.weights import WeightsError
from token_methods.multiscene.checkpoints import CheckpointError
from token_methods.multiscene.errors import ImageError
from token_methods.multiscene.guard import TrainingCollapsed
from token_methods.multiscene.plain_errors import SettingsError, plain_sentence, speak_plainly


@pytest.mark.parametrize("kind", [SettingsError, WeightsError, CheckpointError, ImageError, TrainingCollapsed])
def test_the_sentence_is_the_message(kind: type[Exception]) -> None:
    assert plain_sentence(kind("take another one")) == "take another one"


def test_other_errors_are_faults_of_the_program() -> None:
    assert plain_sentence(ValueError("unforeseen")) is None
    assert plain_sentence(KeyError("unforeseen")) is None


def _raise(rank: int) -> None:
    raise WeightsError("take another one")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the process is forked, which CUDA does not survive")
def test_the_sentence_comes_through_from_another_process() -> None:
    """The launcher of several processes hands over a traceback as text."""
    with pytest.raises(mp.ProcessRaisedException) as raised:
        mp.start_processes(_raise, nprocs=1, start_method="fork")
    assert plain_sentence(raised.value) == "take another one"


def test_uncaught_errors_are_said_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    passed_on = []
    monkeypatch.setattr(sys, "excepthook", lambda *arguments: passed_on.append(arguments))
    speak_plainly()
    speak_plainly()  # every command may say so again
    for error in (SettingsError("take another one"), KeyError("unforeseen")):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == "\nError: take another one\n"
    assert [kind for kind, _, _ in passed_on] == [KeyError]
