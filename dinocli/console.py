"""Words go to stderr, data to stdout. Nothing moves or is coloured where nobody watches."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape


class _Stdout(Console):
    """Where Rich would end with exit code 1 when a reader such as `head` has gone, `main` decides."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


words = Console(stderr=True, highlight=False, soft_wrap=True)
data = _Stdout(highlight=False, width=None if sys.stdout.isatty() else 200)  # a pipe has no edge to wrap at


def say(text: str) -> None:
    """A line for people."""
    words.print(escape(text))


def warn(text: str) -> None:
    """A line about something that a user should know."""
    words.print(f"[yellow]warning:[/] {escape(text)}")


def fail(text: str) -> None:
    """Why the command ends."""
    words.print(f"[bold red]error:[/] {escape(text)}")


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN is not allowed in it."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
