"""One HTML file about a data set: numbers, findings, and pictures of each finding. It asks the network for nothing."""

import base64
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from PIL import Image

from ..config import DataConfig
from ..data.check import Checked
from ..data.findings import Finding, Place
from ..data.images import read_image
from ..errors import DataError
from .draw import Box, class_color, draw_boxes

MOST_BYTES = 4_500_000  # of pictures, as text
EACH = 6  # pictures of a finding
SIDE = 360  # pixels, at most
MARGIN = 3.0  # a small object is shown with so many times its size around it
MAX_PIXELS = 50_000_000

TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ folder }}: data check</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem .2rem 0; text-align: left }
td.n, th.n { text-align: right } tr { border-bottom: 1px solid #e3e6ea } code { font-size: .9em }
figure { display: inline-block; margin: 0 .8rem .8rem 0; vertical-align: top; max-width: 22.5rem }
figcaption { font-size: .8rem; color: #57606a; overflow-wrap: anywhere } img { max-width: 100% }
.error { color: #b42318 } .warning { color: #9a6700 } .note { color: #0550ae } section { margin-top: 2rem }
@media (prefers-color-scheme: dark) { body { background: #14171a; color: #e6e8ea } tr { border-color: #30363d }
  .error { color: #ff8a80 } .warning { color: #e3b341 } .note { color: #79c0ff } figcaption { color: #9aa4ae } }
</style>
<h1>{{ folder }}</h1>
<p>{{ layout }} layout. {{ counts }}. Pictures were {{ "all" if decoded else "not" }} decoded.</p>
{% for name, numbers in splits.items() %}
<section><h2>{{ name }}: {{ numbers.images }} pictures, {{ numbers.objects }} objects</h2>
<p>{{ numbers.empty_images }} pictures without objects, {{ numbers.crowds }} crowd regions.
{% for title, share in numbers.shares.items() %}{{ "%.0f"|format(share * 100) }} % {{ title }}
{{- ", " if not loop.last }}{% endfor %} objects.</p>
<table><tr><th></th>{% for c in columns %}<th class="n">{{ c }}</th>{% endfor %}</tr>
{% for title, key in spreads.items() if numbers[key] %}
<tr><td>{{ title }}</td>
{% for c in columns %}<td class="n">{{ "%.4g"|format(numbers[key][c]) }}</td>{% endfor %}</tr>
{% endfor %}</table>
<table><tr><th>class</th><th class="n">id</th><th class="n">objects</th><th class="n">pictures</th></tr>
{% for kind, row in numbers.classes.items() %}
<tr><td>{{ kind }}</td><td class="n">{{ row.id }}</td><td class="n">{{ row.objects }}</td>
<td class="n">{{ row.images }}</td></tr>
{% endfor %}</table></section>
{% endfor %}
{% for item in findings %}
<section><h3><span class="{{ item.finding.level }}">{{ item.finding.level }} <code>{{ item.finding.code }}</code>
</span>{{ item.split }}</h3><p>{{ item.finding.text }}</p><p>{{ item.finding.fix }}</p>
{% for shown in item.pictures %}
<figure><img src="data:image/jpeg;base64,{{ shown.data }}" alt=""><figcaption>{{ shown.text }}</figcaption></figure>
{% endfor %}</section>
{% endfor %}
</html>
"""
COLUMNS = ("min", "p5", "median", "p95", "max", "mean")
SPREADS = {
    "objects in a picture": "objects_per_image",
    "side of an object in pixels": "object_side_px",
    "width / height of an object": "object_aspect",
    "width of a picture": "image_width",
    "height of a picture": "image_height",
}


class Shown(NamedTuple):
    """A picture of a finding."""

    text: str
    data: str  # a JPEG in base64


def render_report(checked: Checked) -> str:
    """The whole page; names of files and classes are escaped, and pictures stay below MOST_BYTES."""
    left = MOST_BYTES
    config = checked.config.model_copy(update={"max_pixels": min(checked.config.max_pixels, MAX_PIXELS)})
    items: list[dict[str, Any]] = []
    for split, finding in checked.findings():
        pictures = list(_pictures(finding, config, left))
        left -= sum(len(shown.data) for shown in pictures)
        items.append({"split": split, "finding": finding, "pictures": pictures})
    page = Environment(autoescape=True).from_string(TEMPLATE)
    return page.render(
        folder=_printable(str(checked.folder)),
        layout=checked.layout.kind,
        decoded=checked.decoded,
        counts=", ".join(f"{count} {level}" for level, count in checked.counts().items()),
        splits={name: part.numbers for name, part in checked.splits.items() if part.numbers},
        columns=COLUMNS,
        spreads=SPREADS,
        findings=items,
    )


def _pictures(finding: Finding, config: DataConfig, left: int) -> Iterator[Shown]:
    """The first offenders that can be drawn, while there is room."""
    for place in [p for p in finding.places if p.picture is not None][:EACH]:
        for path in (place.picture, place.other):
            if path is None:
                continue
            try:
                shown = Shown(_printable(place.text), _encode(_draw(place, path, config)))
            except DataError:
                continue  # the finding says that it cannot be read
            if len(shown.data) > left:
                return
            left -= len(shown.data)
            yield shown


def _draw(place: Place, path: Path, config: DataConfig) -> Image.Image:
    """The picture with the boxes, or, if they are small in it, what is around them."""
    image = read_image(path, config)
    corners = [(x, y, x + w, y + h) for x, y, w, h in place.boxes]
    region = _around(corners, image.size) if corners else (0, 0, *image.size)
    part = image.crop(region)
    scale = min(1.0 if max(part.size) > SIDE / 2 else 4.0, SIDE / max(part.size))
    size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    boxes = [
        Box([(value - region[k % 2]) * scale for k, value in enumerate(box)], class_color(n))
        for n, box in enumerate(corners)
    ]
    return draw_boxes(part.resize(size, Image.Resampling.LANCZOS), _drawable(boxes, size))


def _around(corners: Sequence[Sequence[float]], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = min(min(c[0], c[2]) for c in corners), min(min(c[1], c[3]) for c in corners)
    right, bottom = max(max(c[0], c[2]) for c in corners), max(max(c[1], c[3]) for c in corners)
    margin = max(MARGIN * max(right - left, bottom - top), 40)
    if right - left > size[0] / 4 or bottom - top > size[1] / 4 or right < 0 or bottom < 0:
        return (0, 0, *size)
    region = (max(0, int(left - margin)), max(0, int(top - margin)),
              min(size[0], int(right + margin)), min(size[1], int(bottom + margin)))  # fmt: skip
    return region if region[0] < region[2] and region[1] < region[3] else (0, 0, *size)


def _drawable(boxes: Sequence[Box], size: tuple[int, int]) -> list[Box]:
    """Boxes cut to a little beyond the picture: wild numbers would draw nothing, or for ever."""
    return [Box([min(max(value, -2), size[k % 2] + 1) for k, value in enumerate(box.xyxy)], box.color) for box in boxes]


def _encode(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return base64.b64encode(buffer.getvalue()).decode()


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
