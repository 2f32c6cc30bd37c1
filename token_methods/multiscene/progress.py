"""Progress bars of work on a single scene."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from token_methods.multiscene import model


@contextmanager
def tuning_progress(steps: int) -> Iterator[model.Progress | None]:
    """What test-time tuning reports to: a bar with the loss. Where there are no steps, a sign that the scene is being encoded."""
    if not CONSOLE.is_interactive:
        yield None
    elif steps <= 0:
        with CONSOLE.status("Encoding the scene"):
            yield None
    else:
        columns = (TextColumn("Tuning on the context views"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
        with Progress(*columns, TimeRemainingColumn(), console=CONSOLE, transient=True) as bar:
            task = bar.add_task("", total=steps, loss=float("nan"))
            yield lambda made, loss: bar.update(task, completed=made, loss=loss)
