"""The cache of downloaded and converted weights, with a record next to each file."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from ...errors import EnvironmentFault
from ...system.files import write_text
from .watch import Watch


def cache_folder() -> Path:
    """`DINO_CACHE`, or `dino` in XDG's cache folder; it need not exist.

    Raises:
        EnvironmentFault: there is no home folder.
    """
    if named := os.environ.get("DINO_CACHE"):
        return Path(named).expanduser().absolute()
    standard = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if standard.is_absolute():  # XDG requires ignoring relative paths
        return standard / "dino"
    try:
        return Path.home() / ".cache" / "dino"
    except RuntimeError:
        raise EnvironmentFault("no home folder for downloaded weights; set DINO_CACHE to a writable folder") from None


def file_name(address: str) -> str:
    """The file name of a download in the cache."""
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(urlsplit(address).path)).name)
    return name if name.strip(".") else "weights"


def is_offline() -> bool:
    """Whether `DINO_OFFLINE` disables the network."""
    return os.environ.get("DINO_OFFLINE", "").lower() not in ("", "0", "false", "no", "off")


def record_of(file: Path) -> dict[str, Any] | None:
    """The record written after a file was downloaded and checked; None unless the file exists with that size."""
    try:
        record = json.loads(_record(file).read_text(encoding="utf-8"))
        return record if 0 < file.stat().st_size == record["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(file: Path, facts: dict[str, Any]) -> None:
    """Record facts about a complete file; without a record, a file counts as missing."""
    write_text(_record(file), json.dumps({"bytes": file.stat().st_size, **facts}, indent=1) + "\n")


def forget(file: Path) -> None:
    """Remove a file and its record."""
    with writing(file):
        _record(file).unlink(missing_ok=True)
        file.unlink(missing_ok=True)


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def locked(file: Path, watch: Watch) -> Iterator[None]:
    """Let only one process at a time create this file; others wait, with a message.

    Raises:
        EnvironmentFault: the cache cannot be written.
    """
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            watch.say(f"another dino process is using {file.name}; waiting for it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Turn errors of writing a file into a message with a fix.

    Raises:
        EnvironmentFault: instead of the operating system's error.
    """
    try:
        yield
    except (OSError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise EnvironmentFault(
            f"{file} cannot be written: {why}; set DINO_CACHE to a writable folder with enough space"
        ) from error


def _record(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")
