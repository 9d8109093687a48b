"""Helpers for English messages."""

import difflib
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence

STAGE_NAMES = {"proposals": "first stage"}  # of the loss's stages; others have the names in the log


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: `1 image`, `2 images`; `plural` is for irregular nouns."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def listed(words: Sequence[str]) -> str:
    """Join words: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def whole(numbers: Iterable[float]) -> str:
    """Rounded coordinates for a table: `0 12 640 480`, without `-0`."""
    return " ".join(f"{number:z.0f}" for number in numbers)


def in_bytes(number: float) -> str:
    """A number of bytes in MB or GB."""
    if number >= 1e9:
        return f"{number / 1e9:.1f} GB"
    return f"{number / 1e6:.0f} MB" if number >= 1e7 else f"{number / 1e6:.1f} MB"


def typed(path: object) -> str:
    """A path as typed in a command, quoted for the shell if necessary."""
    text = str(path)
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean `x`?` with the nearest name, ignoring case, spaces and hyphens; empty if none is near."""
    normalised = {re.sub(r"[^a-z0-9]", "", name.casefold()): name for name in known}
    near = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", word.casefold()), normalised, n=1)
    return f"; did you mean `{normalised[near[0]]}`?" if near else ""


def clock(seconds: float) -> str:
    """A duration as `h:mm:ss`."""
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{remainder:02}"


def roughly(seconds: float) -> str:
    """An estimated duration: `2 h 5 min`, `12 min` or `40 s`."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
