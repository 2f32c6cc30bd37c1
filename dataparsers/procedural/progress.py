"""A progress bar that only shows itself when the work turns out to be slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PATIENCE = 2.0
"""Seconds."""


@contextmanager
def delayed_progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Yields a function to be called after each of `total` steps. Inside another live display it stays silent."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn())
    progress = Progress(*columns)
    task = progress.add_task(description, total=total)
    started, shown, silent = time.monotonic(), False, False

    def advance() -> None:
        nonlocal shown, silent
        progress.advance(task)
        if not shown and not silent and time.monotonic() - started > _PATIENCE:
            try:
                progress.start()
                shown = True
            except LiveError:
                silent = True

    try:
        yield advance
    finally:
        if shown:
            progress.stop()
