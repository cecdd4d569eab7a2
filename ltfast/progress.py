"""Progress bars on a terminal; elsewhere, lines."""

import time
from collections.abc import Callable
from typing import Any

from rich import progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

SECONDS = 30.0  # between two lines


class Progress(progress.Progress):
    """Progress bars, which disappear when they are complete. Off a terminal (a file, a pipe), a line every half minute
    takes their place: what is done, how much of it, and the time left.

    Args:
        console: where they appear.
        note: makes the end of a line, which follows the description, instead of what is done and the time left.
    """

    def __init__(self, console: Console, note: Callable[[], str] | None = None) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.note = note
        self.begun = self.printed = time.monotonic()
        self.before: dict[progress.TaskID, float] = {}  # what was done of each task at first

    def update(self, task_id: progress.TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self.before.setdefault(task_id, self.tasks[task_id].completed)
        self._print(task_id)

    def advance(self, task_id: progress.TaskID, advance: float = 1) -> None:
        self.before.setdefault(task_id, self.tasks[task_id].completed)
        super().advance(task_id, advance)
        self._print(task_id)

    def _print(self, task_id: progress.TaskID) -> None:
        if not self.disable:
            return
        task = self.tasks[task_id]
        before, now = self.before[task_id], time.monotonic()
        if now - self.printed < SECONDS or task.completed == before or task.finished:
            return
        self.printed = now
        if self.note is not None:
            line = f"{task.description}, {self.note()}"
        else:
            total = task.total or 0
            left = time_left(now - self.begun, task.completed - before, total - task.completed)
            line = f"{task.description} {task.completed:,.0f}/{total:,.0f}{left}"
        self.console.print(line, markup=False)


def time_left(seconds: float, done: float, left: float) -> str:
    """The end of a line: the time for what is left, when so much was done in so many seconds. It is empty if nothing
    was done."""
    return f", {in_words(seconds / done * left)} left" if done > 0 else ""


def in_words(seconds: float) -> str:
    """A duration with two units at most, such as `40 s`, `12 min` or `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
