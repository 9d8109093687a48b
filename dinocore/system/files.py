"""Write files atomically: a reader sees the old or the new content, never half of it."""

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigError, EnvironmentFault
from ..words import typed

ESCAPED = "backslashreplace"  # of text that is encoded: what a file's name has beside UTF-8 on Linux
MEGABYTE = 10**6
FULL = {errno.ENOSPC, errno.EDQUOT}  # the disk is full, or what one may use of it
FILES = {".txt", ".json", ".jsonl", ".csv", ".xml", ".html", ".zip", ".jpg", ".jpeg", ".png"}  # no suffixes of folders


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it to disk and rename it; folders are made.

    A device or a pipe is written to and stays what it is.

    Raises:
        EnvironmentFault: the disk is full or the place cannot be written. What was there before stays.
    """
    if is_stream(path):
        _write_through(path, write)
        return
    target = path.resolve()  # a link stays a link, its target is replaced
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # nothing to remove, as after success, or nothing that can be
            temporary.unlink()


def is_stream(path: Path) -> bool:
    """Whether there is a device or a pipe of that name, such as /dev/stdout: it has no content to replace."""
    try:
        return not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode)
    except (OSError, ValueError):
        return False


def _write_through(path: Path, write: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "content"
        try:
            write(temporary)
            with temporary.open("rb") as source, path.open("wb") as stream:
                shutil.copyfileobj(source, stream)
        except OSError as error:
            raise EnvironmentFault(f"{path} cannot be written: {error.strerror or error}") from error


def is_full(error: BaseException) -> bool:
    """Whether an error is that of a disk without room."""
    return isinstance(error, OSError) and error.errno in FULL


def no_room(folder: Path, size: int) -> OSError | None:
    """The error of a folder in which so many bytes cannot be written; None where they can. Nothing is left.

    It is asked after a library has failed to write, where its own error doesn't say why.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(-(-size // MEGABYTE)):
                file.write(bytes(MEGABYTE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error if is_full(error) else None
    return None


def check_writable(folder: Path) -> None:
    """Try out, before the work, whether files can be written into a folder or where it is to be made; leaves nothing.

    Raises:
        EnvironmentFault: they cannot.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror or error}"
        raise EnvironmentFault(what, where=folder, fix="choose another path, or make it writable") from error


def check_file(option: str, path: Path, suffix: str, *others: str) -> None:
    """Refuse a file to write that is a folder, has another suffix, or lies where nothing can be written.

    Args:
        suffix: that of what is written, in lower case; `others` are possible, too.

    Raises:
        ConfigError: it is a folder, or has another suffix.
        EnvironmentFault: its folder cannot be written.
    """
    if path.is_dir():
        example = path / f"{option.strip('-')}{suffix}"
        raise ConfigError(f"{option} {path} is a folder; give a file, such as {example}")
    if path.suffix.lower() not in (suffix, *others):
        if is_stream(path):
            raise ConfigError(f"{option} {path} is not a regular file; give one that ends in {suffix}")
        choice = f"one of {', '.join((suffix, *others))}" if others else suffix
        raise ConfigError(f"{option} {path} must end in {choice}; try {option} {typed(resuffixed(path, suffix))}")
    if not is_stream(path):
        check_writable(path.parent)


def resuffixed(path: Path, suffix: str) -> Path:
    """The name to type instead: `boxes.csv` for `boxes.csv.gz` and for `boxes.txt`, where `.csv` is written."""
    inner = path.with_suffix("")
    return inner if inner.suffix.lower() == suffix else path.with_suffix(suffix)


def check_folder_name(option: str, path: Path) -> None:
    """Refuse, before any work, an output folder that is a file or is named like one.

    Raises:
        ConfigError: it is.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{option} {path} is a file; give a folder")
    if path.suffix.lower() in FILES and not path.is_dir():
        raise ConfigError(
            f"{option} {path} must be a folder of files; drop the suffix {path.suffix}: {path.with_suffix('')}"
        )


def check_new_folder(option: str, path: Path) -> None:
    """Refuse, before any work, an output folder that is not empty or not a folder.

    Raises:
        ConfigError: it has, or is none, or is called like a file.
    """
    check_folder_name(option, path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "is not empty" if path.is_dir() else "is a file"
        raise ConfigError(f"{path} {what}; give a new or empty folder")


def to_json(value: Any, **options: Any) -> str:
    """Standard JSON: null for NaN and infinities; `options` are those of `json.dumps`."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8; what a file's name has beside that as JSON has it, such as `\\udcff`."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode(errors=ESCAPED))

    write_atomically(path, write)


def sync(path: Path) -> None:
    """Sync a file or a folder's entries to disk."""
    if os.name == "nt" and path.is_dir():  # where folders cannot be synced
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
