"""Mark unfinished output, so that leftovers of a killed process can be told from a running one's files.

The mark is a file that a process keeps locked while it works; the system unlocks it however the process ends.
"""

import glob
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import ConfigError, EnvironmentFault
from .files import check_new_folder, check_writable

MARK = ".unfinished"


@contextmanager
def marked(folder: Path) -> Iterator[None]:
    """Mark a folder as unfinished within the block."""
    lock = FileLock(folder / MARK)
    with suppress(NotImplementedError, OSError):  # a file system without locks, where nothing counts as abandoned
        lock.acquire(timeout=0)
    try:
        yield
    finally:
        lock.release()
        (folder / MARK).unlink(missing_ok=True)


def is_abandoned(folder: Path) -> bool:
    """Whether a folder was left unfinished by a process that has exited."""
    if not (folder / MARK).is_file():
        return False
    lock = FileLock(folder / MARK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return False
    lock.release()
    (folder / MARK).touch()  # where a lock that is released removes its file
    return True


@contextmanager
def folder_beside(file: Path) -> Iterator[Path]:
    """A hidden folder next to a file for its temporary content; removes those of killed processes."""
    prefix = f".{file.name}."
    for folder in file.parent.glob(f"{glob.escape(prefix)}*"):
        if is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=file.parent) as name, marked(Path(name)):
        yield Path(name)


def check_fillable(option: str, path: Path, parts: Collection[str]) -> None:
    """Refuse, before any work, a folder that `filling` cannot fill.

    Raises:
        ConfigError: it has something in it that an interrupted command did not leave, or is no folder, or is called
            like a file.
        EnvironmentFault: it cannot be written.
    """
    if not is_abandoned(path):
        check_new_folder(option, path)
    elif others := sorted({entry.name for entry in path.iterdir()} - {MARK, *parts}):
        raise ConfigError(
            f"{path} has leftovers of an interrupted command, and also {others[0]}; move that away, or choose "
            "another folder"
        )
    check_writable(path)


@contextmanager
def filling(folder: Path, parts: Collection[str]) -> Iterator[None]:
    """Fill a folder accepted by `check_fillable`, atomically; leftovers of a killed process are removed first.

    Args:
        parts: names that the block writes in the folder.

    Raises:
        EnvironmentFault: the folder cannot be made.
    """
    made = not folder.exists()
    if is_abandoned(folder):
        _remove(folder, parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        with marked(folder):
            yield
    except BaseException:  # signals, too
        _remove(folder, parts)
        if made:
            with suppress(OSError):  # another process has put something there
                folder.rmdir()
        raise


def _remove(folder: Path, parts: Collection[str]) -> None:
    for path in (folder / part for part in parts):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
