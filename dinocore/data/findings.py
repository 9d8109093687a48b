"""Findings about a dataset: errors, warnings and notes, each kind with its code, count and first examples."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ..error_codes import CODES, ERROR
from ..errors import DataError

SHOWN = 5  # examples of each finding in a message
KEPT = 20  # examples of each finding in a report
MAX_ERRORS = 3  # findings in the message that ends a command


class Location(NamedTuple):
    """An example of a finding: its description, and what to draw."""

    text: str
    image: Path | None = None
    boxes: Sequence[Sequence[float]] = ()  # x y width height in pixels of the upright image
    other: Path | None = None  # an image to show next to it


class Finding(NamedTuple):
    """A problem or fact about a file, with the number of occurrences."""

    code: str
    level: str  # error, warning or note
    what: str
    where: Path
    count: int
    places: list[Location]
    advice: str = ""  # overrides the fix of the code

    @property
    def text(self) -> str:
        """The message, with the first examples."""
        shown = [place.text for place in self.places[:SHOWN]]
        if not shown:
            return self.what
        more = f" and {self.count - len(shown)} more" if self.count > len(shown) else ""
        return f"{self.what}: {', '.join(shown)}{more}"

    @property
    def fix(self) -> str:
        """How to fix it."""
        return self.advice or CODES[self.code].fix

    def as_dict(self) -> dict[str, Any]:
        """The finding for JSON."""
        offenders = [place.text for place in self.places]
        facts = {"code": self.code, "level": self.level, "what": self.what, "where": str(self.where)}
        return facts | {"count": self.count, "offenders": offenders, "fix": self.fix or None}


class Findings:
    """Collects the findings of the checks of one file."""

    def __init__(self, file: Path):
        self.file = file
        self.found: list[Finding] = []

    def add(
        self,
        code: str,
        what: str,
        offenders: Iterable[Location | str] = (),
        count: int | None = None,
        level: str = "",
        fix: str = "",
    ) -> None:
        """Add a finding, or add to an existing one with the same text.

        Args:
            count: the number of occurrences, by default the number of offenders; 0 adds nothing.
            level: overrides the level of the code.
            fix: overrides the fix of the code.
        """
        if count is None:
            offenders = list(offenders)
            count = len(offenders)
        if not count:
            return
        kept = [p if isinstance(p, Location) else Location(p) for p in islice(offenders, KEPT)]
        same = next((i for i, f in enumerate(self.found) if (f.code, f.what) == (code, what)), None)
        if same is None:
            self.found.append(Finding(code, level or CODES[code].level, what, self.file, count, kept, fix))
        else:
            before = self.found[same]
            self.found[same] = before._replace(count=before.count + count, places=[*before.places, *kept][:KEPT])

    def of(self, level: str) -> list[Finding]:
        """The findings of a level."""
        return [finding for finding in self.found if finding.level == level]

    def stop(self) -> None:
        """Raise an exception if there are errors.

        Raises:
            DataError: with the first errors.
        """
        if errors := self.of(ERROR):
            more = len(errors) - MAX_ERRORS
            rest = f"; and {more} more kinds, which `dino check-data` lists" if more > 0 else ""
            what = "; ".join(finding.text for finding in errors[:MAX_ERRORS]) + rest
            first = errors[0]
            raise DataError(what, code=first.code, where=self.file, fix=first.fix)

    def fail(self, code: str, what: str) -> NoReturn:
        """Raise a DataError immediately, for an error after which the file cannot be checked further."""
        raise DataError(what, code=code, where=self.file)


def short_box(box: np.ndarray) -> str:
    """A box (x, y, width, height) for messages."""
    return f"[{', '.join(f'{value:.6g}' for value in box)}]"
