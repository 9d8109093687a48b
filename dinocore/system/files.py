"""Write files atomically: a reader sees either the old or the new content. Also checks of output paths."""

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

ESCAPED = "backslashreplace"  # how to encode the bytes of Linux file names that are not UTF-8
MEGABYTE = 10**6
FULL = {errno.ENOSPC, errno.EDQUOT}  # the disk is full, or the user's quota is used up
FILES = {
    ".txt",
    ".json",
    ".jsonl",
    ".csv",
    ".xml",
    ".html",
    ".zip",
    ".jpg",
    ".jpeg",
    ".png",
}  # suffixes that mean a file


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, sync the file and rename it; missing folders are created.

    If `path` is a device or a pipe, it is written to instead of being replaced.

    Raises:
        EnvironmentFault: the disk is full or the path is not writable. An existing file is left unchanged.
    """
    if is_stream(path):
        _write_through(path, write)
        return
    target = path.resolve()  # replace the target of a link, not the link
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
        with suppress(OSError):  # does not exist after success
            temporary.unlink()


def is_stream(path: Path) -> bool:
    """Whether a path is a device or a pipe, such as /dev/stdout, which must not be replaced by a file."""
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
    """Whether an error means that the disk is full."""
    return isinstance(error, OSError) and error.errno in FULL


def disk_full_error(folder: Path, size: int) -> OSError | None:
    """Try to write `size` bytes in a folder: the error if the disk is full, otherwise None. Leaves no file.

    For libraries whose errors don't say that the disk is full.
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
    """Check before any work that files can be written into a folder, which need not exist yet. Leaves no file.

    Raises:
        EnvironmentFault: they cannot.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror or error}"
        raise EnvironmentFault(what, where=folder, fix="choose another path, or make it writable") from error


def check_file(option: str, path: Path, suffix: str, *others: str) -> None:
    """Check the path of an output file.

    Args:
        option: the command-line option, for messages.
        suffix: the expected suffix, in lower case; `others` are accepted, too.

    Raises:
        ConfigError: it is a folder, or has another suffix.
        EnvironmentFault: its folder is not writable.
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
    """The path with another suffix, for suggestions: `boxes.csv` for both `boxes.csv.gz` and `boxes.txt`."""
    inner = path.with_suffix("")
    return inner if inner.suffix.lower() == suffix else path.with_suffix(suffix)


def check_folder_name(option: str, path: Path) -> None:
    """Check before any work that an output folder is not a file and not named like one.

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
    """Check before any work that an output folder is empty or does not exist.

    Raises:
        ConfigError: it is not empty, is a file, or is named like one.
    """
    check_folder_name(option, path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "is not empty" if path.is_dir() else "is a file"
        raise ConfigError(f"{path} {what}; give a new or empty folder")


def to_json(value: Any, **options: Any) -> str:
    """Standard JSON, with null for NaN and infinities; `options` are passed to `json.dumps`."""
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
    """Write a text file atomically, as UTF-8; bytes of file names that are not UTF-8 are escaped, such as `\\udcff`."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode(errors=ESCAPED))

    write_atomically(path, write)


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot sync folders
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
