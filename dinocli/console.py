"""Results go to stdout, messages to stderr. Without a terminal, there are no colours and no animation."""

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dinocore.errors import DinoError
from dinocore.system.files import ESCAPED

CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


class _Safe(Console):
    """Names of files and classes may hold what a terminal takes for commands; it is shown and not obeyed."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(text.translate(CONTROLS), **options)


class _WhileItLasts:
    """A text stream that is written to as long as it is there: a terminal that goes away ends no work."""

    def __init__(self, stream: IO[str]):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()


class _Stderr(_Safe):
    @property
    def file(self) -> Any:
        return _WhileItLasts(super().file)  # what sys.stderr is now


class StdoutFault(OSError):
    """Stdout cannot be written: its disk is full, or its terminal has gone."""


class _Results(io.TextIOWrapper):
    """Stdout, whose errors are known from those of files, which look the same and have no name either."""

    def write(self, text: str) -> int:
        with _named_as_stdouts():
            return super().write(text)

    def flush(self) -> None:
        with _named_as_stdouts():
            super().flush()


@contextmanager
def _named_as_stdouts() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # which `main` takes for a quiet end
        raise
    except OSError as error:
        raise StdoutFault(error.errno, error.strerror) from error


def tell_errors_of_stdout() -> None:
    """Let an error of writing to stdout be a StdoutFault."""
    usual = sys.stdout
    if isinstance(usual, io.TextIOWrapper) and usual is sys.__stdout__:  # else somebody reads it in this process
        sys.stdout = _Results(
            usual.buffer,
            usual.encoding,
            usual.errors,
            line_buffering=usual.line_buffering,
            write_through=usual.write_through,
        )


class _Stdout(_Safe):
    """Where Rich would end with exit code 1 when a reader such as `head` has gone, `main` decides."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


stderr = _Stderr(stderr=True, highlight=False, emoji=False, soft_wrap=True)
WIDTH = None if sys.stdout.isatty() else 200  # a pipe has no edge to wrap at
stdout = _Stdout(highlight=False, emoji=False, width=WIDTH)


def say(text: str) -> None:
    """A line for people; of several ranks, rank 0 says it."""
    if _speaks():
        stderr.print(escape(text))


def warn(text: str) -> None:
    """A line about something that a user should know; of several ranks, rank 0 says it."""
    if _speaks():
        stderr.print(f"[yellow]warning:[/] {escape(text)}")


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def warn_of_letters(names: Iterable[str]) -> None:
    """A line about names that images will show as boxes, for want of a font."""
    from dinocore.draw.fonts import unwritable

    if lost := unwritable(names):
        warn(f"no installed font has {', '.join(lost[:3])}, so images show boxes instead; install one, such as Noto")


def fail(error: DinoError | str, code: str = "INPUTS") -> None:
    """Why the command ends, or what happened to an input: one line, or three if the error has a location."""
    error = DinoError(error, code=code) if isinstance(error, str) else error
    if error.where and error.where not in error.what:
        lines = [error.what, f"  where: {error.where}", *([f"  fix: {error.fix}"] if error.fix else [])]
    else:
        lines = [str(error)]
    stderr.print(f"[bold red]error\\[{error.code}]:[/] {escape(chr(10).join(lines))}")


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values side by side on stdout, for people; empty values are skipped."""
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(name.replace("_", " "), escape(str(value)))
    stdout.print(table)


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN is not allowed in it."""
    in_ascii = not is_utf8(sys.stdout)
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=in_ascii, allow_nan=False) + "\n")


def is_utf8(stream: TextIO) -> bool:
    """Whether every character can be written to a stream; one without an encoding takes text as it is."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").replace("_", "") == "utf8"


def escape_what_cannot_be_written() -> None:
    """Let stdout and stderr write a character that their encoding lacks as its code, where Python would raise.

    In UTF-8 that is a byte of a file's name that is no UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not (is_utf8(stream) and stream.errors == "surrogateescape"):
            stream.reconfigure(errors=ESCAPED)
