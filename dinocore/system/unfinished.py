"""What is not finished yet is marked as such, so that what a killed process left can be told from another one's work.

The mark is a file that a process keeps locked while it works; the system unlocks it however the process ends.
"""

import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

MARK = ".unfinished"


@contextmanager
def marked(folder: Path) -> Iterator[None]:
    """Keep the mark in a folder within the block."""
    lock = FileLock(folder / MARK)
    with suppress(NotImplementedError):  # a file system without locks, where nothing counts as abandoned
        lock.acquire(timeout=0)
    try:
        yield
    finally:
        lock.release()
        (folder / MARK).unlink(missing_ok=True)


def is_abandoned(folder: Path) -> bool:
    """Whether a process that has ended left a folder unfinished."""
    if not (folder / MARK).is_file():
        return False
    lock = FileLock(folder / MARK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return False
    lock.release()
    return True


@contextmanager
def folder_beside(file: Path) -> Iterator[Path]:
    """A hidden folder beside a file for what becomes that file; those that killed processes left there are removed."""
    prefix = f".{file.name}."
    for folder in file.parent.glob(f"{glob.escape(prefix)}*"):
        if is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=file.parent) as name, marked(Path(name)):
        yield Path(name)
