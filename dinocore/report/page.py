"""Render a page as a single, self-contained HTML file that needs no network. See docs/reports.md."""

import base64
import csv
import hashlib
import json
import math
import re
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..system.files import write_text
from .parts import Cell, Chart, Gallery, MarkedImage, Matrix, Page, Part, Table

DIGITS = 6  # of a score
MAX_BYTES = 4_800_000  # of the file, unless tables and drawings alone take more
MAX_ROWS = 200  # of a table in the page; a longer table is written completely to a CSV file beside the page
HERE = Path(__file__).parent
SCRIPTS = ("page.js", "tables.js", "charts.js", "gallery.js")
KINDS = {"truth": "annotated", "found": "found", "wrong": "wrong", "missed": "missed"}
MAX_SIDE, MIN_SIDE = 2000, 96  # longer side of an image in the page, in pixels
STORED_SIDE = 1280  # longer side of an image kept in memory until its page is rendered, in pixels
QUALITY = 78
UNKNOWN = "\N{EN DASH}"
SURROGATE = re.compile("[\ud800-\udfff]")


def render_page(page: Page) -> str:
    """The HTML of a page. All text is escaped; images are scaled down to stay within MAX_BYTES."""
    galleries = [part for section in page.sections for part in section.parts if isinstance(part, Gallery)]
    images = [image for gallery in galleries for image in gallery.images]
    without_images = _render(page, [""] * len(images))
    if not images:
        return without_images
    room = MAX_BYTES - len(without_images.encode())
    return _render(page, fit_images([image.image for image in images], room))


def write_page(path: Path, page: Page) -> list[Path]:
    """Write the page and, beside it, a CSV file of each table that is too long for it; returns the written files.

    Of a long table, the page shows the first MAX_ROWS rows and names the CSV file; put the most important rows first.
    """
    sections, files = [], []
    for section in page.sections:
        parts = []
        for part in section.parts:
            if isinstance(part, Table) and len(part.rows) > MAX_ROWS:
                title = re.sub(r"[^a-z0-9]+", "-", (part.title or section.title).lower()).strip("-")
                files.append(path.with_name(f"{path.stem}-{title}.csv"))
                write_text(files[-1], _csv(part))
                note = f"The first {MAX_ROWS} of {len(part.rows):,} rows; all are in {files[-1].name}."
                part = part._replace(rows=part.rows[:MAX_ROWS], text=f"{part.text}\n{note}".strip())
            parts.append(part)
        sections.append(section._replace(parts=parts))
    write_text(path, render_page(page._replace(sections=sections)))
    return [path, *files]


def _csv(table: Table) -> str:
    """A table as CSV, with unrounded numbers; text that a spreadsheet would run as a formula is quoted."""
    lines = StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([_without_formula(printable(value)) if isinstance(value, str) else value for value in row])
    return lines.getvalue()


def _without_formula(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _render(page: Page, sources: Sequence[str]) -> str:
    script = "'use strict';\n" + "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
    )
    environment.filters |= {
        "cell": _cell,
        "forms": _forms,
        "number": _is_number,
        "kind": _kind,
        "json": _embedded,
        "shades": _shades,
        "next": next,
    }
    environment.tests["number"] = _is_number
    # the template uses each source once, in the order of the images
    return environment.get_template("page.html.j2").render(
        page=page,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=digest,
        sources=iter(sources),
        kinds=KINDS,
    )


def printable(text: str) -> str:
    """Escape lone surrogates, which occur in file names but are not valid in UTF-8."""
    cleaned = SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return Markup(cleaned) if isinstance(text, Markup) else cleaned


def _kind(part: Part) -> str:
    return type(part).__name__.lower()


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Cell, form: str = "") -> str:
    """The text of a cell: four significant digits, whole numbers in full, a dash for unknown values."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and form:
        return format(value, form)
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 or abs(value) >= 1e15 else f"{value:.0f}"
    return str(value)


def _forms(table: Table) -> list[str]:
    """A number format for each column: the same number of digits if all values are floats between -1 and 1."""
    return [_form([row[n] for row in table.rows if _is_number(row[n])]) for n in range(len(table.columns))]


def _form(known: Sequence[Any]) -> str:
    fractions = all(isinstance(value, float) and abs(value) <= 1 for value in known)
    return ".4f" if fractions and max(map(abs, known), default=0) >= 0.01 else ""


def _embedded(part: Chart | Gallery) -> Markup:
    """The data for the script, as JSON that is safe inside a script element."""
    data = _chart_data(part) if isinstance(part, Chart) else _gallery_data(part)
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _chart_data(chart: Chart) -> dict[str, Any]:
    lines = [
        {"name": printable(line.name), "x": [_finite(x) for x in line.x], "y": [_finite(y) for y in line.y]}
        for line in chart.lines
    ]
    return {"title": printable(chart.title), "x": printable(chart.x_label), "y": printable(chart.y_label)} | {
        "lines": lines
    }


def _gallery_data(gallery: Gallery) -> dict[str, Any]:
    """A gallery's data; sizes and boxes are in pixels of the image as it was read, and labels are given by index."""
    labels: dict[str, int] = {}
    images = []
    for image in gallery.images:
        marks = [
            [
                *(_finite(round(float(value), 1)) or 0 for value in mark.xyxy),
                labels.setdefault(printable(mark.label), len(labels)),
                list(KINDS).index(mark.kind),
                None if mark.score is None else _finite(round(float(mark.score), DIGITS)),
            ]
            for mark in image.marks
        ]
        images.append({"title": printable(image.title), "size": image.image.size, "marks": marks})
    return {
        "labels": list(labels),
        "kinds": list(KINDS),
        "names": list(KINDS.values()),
        # rounded down, because it is often the score of a box, which must be shown
        "threshold": math.floor(gallery.threshold * 10**DIGITS) / 10**DIGITS,
        "images": images,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _shades(matrix: Matrix) -> list[list[float]]:
    """The colour depth of each cell, 0 to 1: the root of value / largest value, so that small ones are visible."""
    known = [value for row in matrix.values for value in row if math.isfinite(value)]
    top = max(known, default=0.0)
    return [
        [round(math.sqrt(value / top), 2) if top > 0 and value > 0 and math.isfinite(value) else 0.0 for value in row]
        for row in matrix.values
    ]


def fit_images(images: Sequence[Image.Image], room: int) -> list[str]:
    """Data URIs of the images as JPEGs, all with the same maximum side, the largest with which they fit.

    Args:
        room: bytes for all of them; MIN_SIDE is used even if it takes more.
    """
    side = MAX_SIDE
    while True:
        encoded = [_encode(image, side) for image in images]
        total = sum(map(len, encoded))
        if total <= room or side == MIN_SIDE:
            return encoded
        largest = min(side, max(max(image.size) for image in images))
        side = max(MIN_SIDE, min(int(largest * math.sqrt(max(room, 1) / total) * 0.97), largest - 8))


def shrink(image: MarkedImage, side: int = STORED_SIDE) -> MarkedImage:
    """Scale an image and its boxes down to a longer side of at most `side`, so that many of them fit into memory."""
    scale = side / max(image.image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.image.width * scale)), max(1, round(image.image.height * scale)))
    marks = [mark._replace(xyxy=[value * scale for value in mark.xyxy]) for mark in image.marks]
    pixels = image.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return image._replace(image=pixels, marks=marks)


def _encode(image: Image.Image, side: int) -> str:
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
