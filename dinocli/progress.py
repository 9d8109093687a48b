"""Progress of long work: a progress bar in a terminal, otherwise lines."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dinocore.weights.fetch.watch import Watch
from dinocore.words import roughly

from .console import say, stderr

SECONDS_PER_LINE = 30.0  # seconds between lines where there is no terminal to show a bar


class WorkProgress(Progress):
    """A bar in a terminal, otherwise a line every `SECONDS_PER_LINE` seconds: `evaluating 120/5000, 3 min left`."""

    def __init__(self, hidden: bool = False):
        """
        Args:
            hidden: show nothing, as for a single image or on ranks other than 0.
        """
        super().__init__(console=stderr, disable=hidden or not stderr.is_terminal, transient=True)
        self.speaks = not hidden and not stderr.is_terminal
        self.begun = self.spoke = time.monotonic()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """See `rich.progress.Progress`."""
        super().update(task_id, **fields)
        self._print_line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """See `rich.progress.Progress`."""
        super().advance(task_id, advance)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if not self.speaks or now - self.spoke < SECONDS_PER_LINE or task_id not in self.task_ids:
            return
        self.spoke = now
        task = self.tasks[self.task_ids.index(task_id)]
        done, total = int(task.completed), task.total
        left = f", {roughly((now - self.begun) * (total - done) / done)} left" if total and done else ""
        say(f"{task.description} {done}" + (f"/{int(total)}" if total else "") + left)


@contextmanager
def watching() -> Iterator[Watch]:
    """A callback that shows progress on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn(compact=True))  # fmt: skip
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as bars:
        task = bars.add_task("downloading", total=None, visible=False)
        yield Watch(say, lambda done, total: bars.update(task, completed=done, total=total, visible=True))
