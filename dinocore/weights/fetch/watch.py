"""Callbacks to show progress while weights are downloaded."""

from collections.abc import Callable
from typing import NamedTuple


class Watch(NamedTuple):
    """Two functions that are told what happens."""

    say: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int | None], None] = lambda done, total: None  # bytes; None where it is not known


UNWATCHED = Watch()
