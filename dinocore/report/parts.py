"""The parts of a report page. Fill these with results; `page.render` makes the HTML."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image

Cell = str | int | float | None  # a number is shown short and sorted as it is; None is shown as a dash


class Mark(NamedTuple):
    """A box over an image, redrawn by the page when the score threshold moves."""

    xyxy: Sequence[float]  # in pixels of the image as it was read
    label: str
    kind: str  # "truth", "found", "wrong" (found, but no object is there) or "missed" (an object nothing answers for)
    # of what is found; of "truth", that of the box that answers it: the object is missed at thresholds above.
    score: float | None = None  # None: shown as it is at every threshold


class MarkedImage(NamedTuple):
    """An image with its boxes."""

    title: str
    image: Image.Image  # upright; the page keeps it smaller
    marks: Sequence[Mark] = ()
    note: str = ""


class Gallery(NamedTuple):
    """Images; if marks have scores, a slider chooses the lowest one that is shown."""

    title: str
    images: Sequence[MarkedImage]
    threshold: float = 0.3
    text: str = ""
    columns: int = 4  # at most; a narrow window has fewer


class Table(NamedTuple):
    """Rows that can be sorted by any column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text: str = ""


class Curve(NamedTuple):
    """One curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]  # None: a gap


class Chart(NamedTuple):
    """Curves over one axis; hovering tells the values."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Curve]
    text: str = ""


class Matrix(NamedTuple):
    """Counts or shares, coloured by value: a confusion matrix."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    row_title: str = ""
    column_title: str = ""
    text: str = ""


class Drawing(NamedTuple):
    """An SVG of ours; whoever makes it has escaped every text in it."""

    title: str
    svg: str
    text: str = ""


class Facts(NamedTuple):
    """Names and values."""

    title: str
    values: Mapping[str, Cell]
    text: str = ""


Part = Gallery | Table | Chart | Matrix | Drawing | Facts


class Section(NamedTuple):
    """Parts under one heading."""

    title: str
    parts: Sequence[Part]
    text: str = ""


class Page(NamedTuple):
    """One self-contained file."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    headline: str = ""  # what matters most, in one sentence
