"""The parts of a report page. Fill these with results; `page.render` makes the HTML."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image

Cell = str | int | float | None  # numbers are rounded for display but sorted exactly; None is shown as a dash


class Mark(NamedTuple):
    """A box over an image, redrawn by the page when the score threshold moves."""

    xyxy: Sequence[float]  # in pixels of the image as it was read
    label: str
    kind: str  # "truth", "found", "wrong" (a detection without an object) or "missed" (an object without a detection)
    # of the detection; for "truth", of the detection matched to it, above which the object counts as missed
    score: float | None = None  # None: shown at every threshold


class MarkedImage(NamedTuple):
    """An image with its boxes."""

    title: str
    image: Image.Image  # upright; the page may scale it down
    marks: Sequence[Mark] = ()
    note: str = ""


class Gallery(NamedTuple):
    """Images; if marks have scores, a slider sets the lowest score that is shown."""

    title: str
    images: Sequence[MarkedImage]
    threshold: float = 0.3
    text: str = ""
    columns: int = 4  # at most; fewer in a narrow window


class Table(NamedTuple):
    """Rows that can be sorted by any column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text: str = ""


class Curve(NamedTuple):
    """A curve of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]  # None: a gap


class Chart(NamedTuple):
    """Curves over a common axis; the pointer shows the values."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Curve]
    text: str = ""


class Matrix(NamedTuple):
    """Counts or fractions, coloured by value, such as a confusion matrix."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    row_title: str = ""
    column_title: str = ""
    text: str = ""


class Drawing(NamedTuple):
    """An SVG, which is included as it is: escape all text in it."""

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
    """A report, rendered as one self-contained file."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    headline: str = ""  # the most important result, in one sentence
