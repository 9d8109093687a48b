"""A run's log. `metrics.jsonl` is authoritative; other writers get the same rows and may fail without harm."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...system.files import to_json, write_text
from ..state import Progress
from .sinks import RowWriter


class MetricsLog(RowWriter):
    """`metrics.jsonl`: one line per step and per evaluation, without duplicates even if the run was killed."""

    def __init__(self, run: Path, progress: Progress):
        """Open the log and truncate it to the checkpoint's position, since later steps will be logged again."""
        self.run = run
        path = run / "metrics.jsonl"
        self._truncate(path, progress)
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.end = os.fstat(self.handle).st_size

    def add(self, row: dict[str, Any]) -> None:
        """Append a complete line, or nothing."""
        # non-finite values, such as the gradient norm of a skipped fp16 step, become null
        line = to_json(row).encode() + b"\n"
        try:
            if os.write(self.handle, line) < len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            os.ftruncate(self.handle, self.end)
            self.message = self.message or f"metrics.jsonl cannot be written ({error.strerror}); lines will be missing"
        else:
            self.end += len(line)

    def sync(self) -> int:
        """Sync the log to disk; return its size in bytes."""
        os.fsync(self.handle)
        return self.end

    def close(self, completed: bool = True) -> None:
        """Close the file."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def _truncate(self, path: Path, progress: Progress) -> None:
        content = path.read_bytes() if path.is_file() else b""
        kept = content[: progress.log_bytes]
        if len(kept) < progress.log_bytes or not (kept == b"" or kept.endswith(b"\n")):  # the log was changed
            lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
            kept = b"".join(line for line in lines if _step(line) <= progress.step)
        if kept != content:
            write_text(path, kept.decode())


class MetricsLogger:
    """Passes rows to the log and all other writers. A failing writer is reported once; the run continues."""

    def __init__(self, log: MetricsLog, writers: Sequence[RowWriter] = ()):
        self.log = log
        self.writers: list[RowWriter] = [log, *writers]
        self.reported: set[int] = set()
        self.closed = False

    def add(self, row: dict[str, Any]) -> Iterator[str]:
        """Pass a row to all writers; yield warnings for the user."""
        for number, writer in enumerate(self.writers):
            try:
                writer.add(row)
            except Exception as error:  # a bug: hours of training are worth more
                yield from self._once(number, f"{type(writer).__name__} failed ({type(error).__name__}: {error})")
        yield from self.problems()

    def problems(self) -> Iterator[str]:
        """Yield each writer's problem, at most once per writer."""
        for number, writer in enumerate(self.writers):
            yield from self._once(number, writer.problem())

    def _once(self, number: int, message: str) -> Iterator[str]:
        if message and number not in self.reported:
            self.reported.add(number)
            yield message if self.closed else f"{message}; the run continues"

    def sync(self) -> int:
        """Sync the log to disk; return its size in bytes."""
        return self.log.sync()

    def rewind(self, progress: Progress) -> None:
        """Discard the lines logged after a checkpoint."""
        self.log.close()
        self.log = self.writers[0] = MetricsLog(self.log.run, progress)

    def close(self, completed: bool = True) -> None:
        """End the run; `completed` is False if an error or a signal ended it."""
        self.closed = True
        for writer in self.writers:
            writer.close(completed)


class NoLogger:
    """Does nothing: the logger of all ranks except the main one."""

    def add(self, row: dict[str, Any]) -> Iterator[str]:
        """Log nothing."""
        yield from ()

    def problems(self) -> Iterator[str]:
        """Yield nothing."""
        yield from ()

    def sync(self) -> int:
        """Always 0."""
        return 0

    def rewind(self, progress: Progress) -> None:
        """Do nothing."""

    def close(self, completed: bool = True) -> None:
        """Do nothing."""


def _step(line: bytes) -> float:
    """The step of a line; infinity if the line is damaged."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
