"""A run's log: `metrics.jsonl` is authoritative; other sinks of its lines may fail without harm."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...system.files import to_json, write_text
from ..state import Progress
from .sinks import RowWriter


class MetricsLog(RowWriter):
    """`metrics.jsonl`: one line per step and per evaluation, each once, however often the run was killed."""

    def __init__(self, run: Path, progress: Progress):
        """Take the log up where the checkpoint left it: what was written after it will be written again."""
        self.run = run
        path = run / "metrics.jsonl"
        self._cut(path, progress)
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.end = os.fstat(self.handle).st_size

    def add(self, row: dict[str, Any]) -> None:
        """Append a line, whole or not at all."""
        line = to_json(row).encode() + b"\n"  # null: a gradient that overflowed in fp16 and was skipped
        try:
            if os.write(self.handle, line) < len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            os.ftruncate(self.handle, self.end)
            self.message = self.message or f"metrics.jsonl cannot be written ({error.strerror}); lines will be missing"
        else:
            self.end += len(line)

    def sync(self) -> int:
        """Put all lines on the disk; returns the place reached, in bytes."""
        os.fsync(self.handle)
        return self.end

    def close(self, completed: bool = True) -> None:
        """Nothing more will be written."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def _cut(self, path: Path, progress: Progress) -> None:
        content = path.read_bytes() if path.is_file() else b""
        kept = content[: progress.log_bytes]
        if len(kept) < progress.log_bytes or not (kept == b"" or kept.endswith(b"\n")):  # not the log we knew
            lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
            kept = b"".join(line for line in lines if _step(line) <= progress.step)
        if kept != content:
            write_text(path, kept.decode())


class MetricsLogger:
    """The log, and all others that get its lines. A writer that fails is named once; the run continues."""

    def __init__(self, log: MetricsLog, writers: Sequence[RowWriter] = ()):
        self.log = log
        self.writers: list[RowWriter] = [log, *writers]
        self.reported: set[int] = set()
        self.closed = False

    def add(self, row: dict[str, Any]) -> Iterator[str]:
        """Tell everybody; yields what a user should know."""
        for number, writer in enumerate(self.writers):
            try:
                writer.add(row)
            except Exception as error:  # a bug: hours of training are worth more
                yield from self._once(number, f"{type(writer).__name__} failed ({type(error).__name__}: {error})")
        yield from self.problems()

    def problems(self) -> Iterator[str]:
        """What a user should know, once for each writer."""
        for number, writer in enumerate(self.writers):
            yield from self._once(number, writer.problem())

    def _once(self, number: int, text: str) -> Iterator[str]:
        if text and number not in self.reported:
            self.reported.add(number)
            yield text if self.closed else f"{text}; the run continues"

    def sync(self) -> int:
        """The place reached in the log."""
        return self.log.sync()

    def go_back(self, progress: Progress) -> None:
        """Forget what was written after a checkpoint."""
        self.log.close()
        self.log = self.writers[0] = MetricsLog(self.log.run, progress)

    def close(self, completed: bool = True) -> None:
        """The end of the run, `completed` unless an error or a signal ended it."""
        self.closed = True
        for writer in self.writers:
            writer.close(completed)


class NoLogger:
    """On processes that write nothing."""

    def add(self, row: dict[str, Any]) -> Iterator[str]:
        """Nothing to say."""
        yield from ()

    def problems(self) -> Iterator[str]:
        """None."""
        yield from ()

    def sync(self) -> int:
        """No place."""
        return 0

    def go_back(self, progress: Progress) -> None:
        """Nothing to forget."""

    def close(self, completed: bool = True) -> None:
        """Nothing to do."""


def _step(line: bytes) -> float:
    """The step of a line; a damaged line is none's."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
