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


class _SafeConsole(Console):
    """Escapes control characters in file and class names, so that the terminal does not interpret them."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(text.translate(CONTROLS), **options)


class _IgnoreErrors:
    """A text stream that ignores write errors, so that a closed terminal does not end the work."""

    def __init__(self, stream: IO[str]):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()


class _Stderr(_SafeConsole):
    @property
    def file(self) -> Any:
        return _IgnoreErrors(super().file)  # the current sys.stderr


class StdoutFault(OSError):
    """Stdout cannot be written: the disk is full, or the terminal was closed."""


class _CheckedStdout(io.TextIOWrapper):
    """Stdout, raising StdoutFault, because its errors could not be distinguished from those of other files."""

    def write(self, text: str) -> int:
        with _raise_stdout_fault():
            return super().write(text)

    def flush(self) -> None:
        with _raise_stdout_fault():
            super().flush()


@contextmanager
def _raise_stdout_fault() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # `main` then exits silently
        raise
    except OSError as error:
        raise StdoutFault(error.errno, error.strerror) from error


def check_stdout() -> None:
    """Make errors of writing to stdout raise StdoutFault."""
    usual = sys.stdout
    if isinstance(usual, io.TextIOWrapper) and usual is sys.__stdout__:  # otherwise it is captured in this process
        sys.stdout = _CheckedStdout(
            usual.buffer,
            usual.encoding,
            usual.errors,
            line_buffering=usual.line_buffering,
            write_through=usual.write_through,
        )


class _Stdout(_SafeConsole):
    """Leaves broken pipes, such as `| head`, to `main`; Rich would exit with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


stderr = _Stderr(stderr=True, highlight=False, emoji=False, soft_wrap=True)
WIDTH = None if sys.stdout.isatty() else 200  # don't wrap lines in a pipe
stdout = _Stdout(highlight=False, emoji=False, width=WIDTH)


def say(text: str) -> None:
    """Print a message on stderr, on rank 0 only."""
    if _is_main_rank():
        stderr.print(escape(text))


def warn(text: str) -> None:
    """Print a warning on stderr, on rank 0 only."""
    if _is_main_rank():
        stderr.print(f"[yellow]warning:[/] {escape(text)}")


def _is_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def warn_of_letters(names: Iterable[str]) -> None:
    """Warn about class names that images will show as empty boxes, because no font has their characters."""
    from dinocore.draw.fonts import unwritable

    if lost := unwritable(names):
        warn(f"no installed font has {', '.join(lost[:3])}, so images show boxes instead; install one, such as Noto")


def fail(error: DinoError | str, code: str = "INPUTS") -> None:
    """Print an error: one line, or three if it has a location."""
    error = DinoError(error, code=code) if isinstance(error, str) else error
    if error.where and error.where not in error.what:
        lines = [error.what, f"  where: {error.where}", *([f"  fix: {error.fix}"] if error.fix else [])]
    else:
        lines = [str(error)]
    stderr.print(f"[bold red]error\\[{error.code}]:[/] {escape(chr(10).join(lines))}")


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values as a table on stdout; empty values are skipped."""
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(name.replace("_", " "), escape(str(value)))
    stdout.print(table)


def print_json(value: Any) -> None:
    """Print a JSON document on stdout; it must not contain NaN."""
    in_ascii = not is_utf8(sys.stdout)
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=in_ascii, allow_nan=False) + "\n")


def is_utf8(stream: TextIO) -> bool:
    """Whether a stream can encode every character; one without an encoding can."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").replace("_", "") == "utf8"


def escape_unencodable() -> None:
    """Make stdout and stderr escape characters that they cannot encode, where Python would raise an error.

    With UTF-8, these are only bytes of file names that are not valid UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not (is_utf8(stream) and stream.errors == "surrogateescape"):
            stream.reconfigure(errors=ESCAPED)
