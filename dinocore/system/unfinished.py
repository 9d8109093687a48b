"""Mark unfinished output, so that leftovers of a killed process can be distinguished from output still being written.

The mark is a file that the process keeps locked while it works; the system releases the lock however the process ends.
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
    with suppress(NotImplementedError, OSError):  # no locks on this file system: nothing counts as abandoned
        lock.acquire(timeout=0)
    try:
        yield
    finally:
        lock.release()
        (folder / MARK).unlink(missing_ok=True)


def is_abandoned(folder: Path) -> bool:
    """Whether a folder was left unfinished by a process that is no longer running."""
    if not (folder / MARK).is_file():
        return False
    lock = FileLock(folder / MARK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return False
    lock.release()
    (folder / MARK).touch()  # some platforms remove the file when the lock is released
    return True


@contextmanager
def folder_beside(file: Path) -> Iterator[Path]:
    """A temporary hidden folder next to a file; also removes those left by killed processes."""
    prefix = f".{file.name}."
    for folder in file.parent.glob(f"{glob.escape(prefix)}*"):
        if is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=file.parent) as name, marked(Path(name)):
        yield Path(name)


def check_fillable(option: str, path: Path, parts: Collection[str]) -> None:
    """Check before any work that `filling` can use a folder.

    Raises:
        ConfigError: it has other content than an interrupted command's, is not a folder, or is named like a file.
        EnvironmentFault: it is not writable.
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
    """Create the content of a folder within the block; on an error it is removed, as are leftovers of a killed process.

    Args:
        parts: names of the files and folders that the block creates.

    Raises:
        EnvironmentFault: the folder cannot be created.
    """
    is_new = not folder.exists()
    if is_abandoned(folder):
        _remove(folder, parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        with marked(folder):
            yield
    except BaseException:  # including signals
        _remove(folder, parts)
        if is_new:
            with suppress(OSError):  # not empty: another process has written to it
                folder.rmdir()
        raise


def _remove(folder: Path, parts: Collection[str]) -> None:
    for path in (folder / part for part in parts):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
