"""Callbacks to show progress while weights are downloaded."""

from collections.abc import Callable
from typing import NamedTuple


class Watch(NamedTuple):
    """Callbacks for messages and for progress."""

    say: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int | None], None] = lambda done, total: None  # bytes; None if unknown


UNWATCHED = Watch()
