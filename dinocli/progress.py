"""What a person sees while weights are fetched: a moving bar where somebody watches, else lines."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dinocore.weights.fetch.watch import Watch

from .console import say, stderr


@contextmanager
def watching() -> Iterator[Watch]:
    """Functions that show what happens on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn(compact=True))  # fmt: skip
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as bars:
        task = bars.add_task("downloading", total=None, visible=False)
        yield Watch(say, lambda done, total: bars.update(task, completed=done, total=total, visible=True))
