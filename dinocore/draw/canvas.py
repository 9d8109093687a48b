"""A drawing as a list of shapes, rendered as PNG or SVG with the same content.

A colour is a pair, for light and for dark mode. PNG is light; SVG follows the reader's preference.
"""

from collections.abc import Sequence
from html import escape
from textwrap import wrap
from typing import NamedTuple

from PIL import Image, ImageDraw

from .fonts import load_font

Color = tuple[str, str]  # light and dark, "#rrggbb"

PAGE, INK, SOFT = ("#FFFFFF", "#16181C"), ("#222222", "#ECECEC"), ("#555555", "#B4B4B4")
FOCUS = ("#D55E00", "#FFB26B")
TIP_SIZE, TIP_COLUMNS = 22, 84  # of a tooltip: font size in pixels, characters per line
STYLE = """
svg.sheet text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; pointer-events: none }
svg.sheet line { pointer-events: none }
svg.sheet .spot { outline: none } svg.sheet .spot .hit { fill-opacity: 0; stroke: none }
svg.sheet .words { display: none; pointer-events: none }
svg.sheet .spot:hover .words, svg.sheet .spot:focus .words { display: inline }
"""
DARK = "@media screen and (prefers-color-scheme: dark) {\nRULES\n}\n"
# selectors and rules: light; dark if the reader prefers it and the page isn't set to light; dark if the page is
MODES = (
    ("svg.sheet", "RULES\n"),
    (':is(svg.sheet:root, :root:not([data-theme="light"]) svg.sheet)', DARK),
    (':root[data-theme="dark"] svg.sheet', "@media screen {\nRULES\n}\n"),
)


class Rect(NamedTuple):
    """A filled rectangle, with its outline inside."""

    x: float
    y: float
    width: float
    height: float
    fill: Color | None
    outline: Color | None = None


class Line(NamedTuple):
    """A straight line."""

    x0: float
    y0: float
    x1: float
    y1: float
    color: Color
    width: int = 1


class Text(NamedTuple):
    """A line of text, anchored left, middle or right (l, m, r) and at the baseline or middle (s, m)."""

    x: float
    y: float
    text: str
    size: int
    color: Color = INK
    anchor: str = "ls"


class Tip(NamedTuple):
    """A tooltip, shown while an area has the pointer or the keyboard focus; a PNG has none."""

    x: float
    y: float
    width: float
    height: float
    words: Sequence[str]


Shape = Rect | Line | Text | Tip


class Sheet(NamedTuple):
    """A finished drawing."""

    width: int
    height: int
    shapes: Sequence[Shape]


def mix(one: Color, other: Color, fraction: float) -> Color:
    """Interpolate from `one` (fraction 0) to `other` (fraction 1)."""
    pairs = zip(*(bytes.fromhex(_name(color)) for color in (one, other)), strict=True)
    mixed = "".join(f"{round(a + fraction * (b - a)):02X}" for a, b in pairs)
    return f"#{mixed[:6]}", f"#{mixed[6:]}"


def to_image(sheet: Sheet) -> Image.Image:
    """Render a drawing as an image, in light colours."""
    image = Image.new("RGB", (sheet.width, sheet.height), PAGE[0])
    draw = ImageDraw.Draw(image)
    for shape in sheet.shapes:
        if isinstance(shape, Rect):
            fill, outline = (color and color[0] for color in (shape.fill, shape.outline))
            corner = (shape.x + shape.width - 1, shape.y + shape.height - 1)
            draw.rectangle((shape.x, shape.y, *corner), fill, outline)
        elif isinstance(shape, Line):
            draw.line((shape.x0, shape.y0, shape.x1, shape.y1), shape.color[0], shape.width)
        elif isinstance(shape, Text):
            font = load_font(shape.size, shape.text)
            draw.text((shape.x, shape.y), shape.text, shape.color[0], font, anchor=shape.anchor)
    return image


def to_svg(sheet: Sheet, title: str) -> str:
    """Render a drawing as SVG, for a file of its own or as part of a page."""
    whole = [Rect(0, 0, sheet.width, sheet.height, PAGE), *sheet.shapes]
    body = "\n".join(_element(shape, number, sheet) for number, shape in enumerate(whole))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sheet" viewBox="0 0 {sheet.width} {sheet.height}" '
        f'role="group" aria-label="{escape(title)}">\n<style>{STYLE}{_colors(whole)}</style>\n{body}\n</svg>\n'
    )


def _colors(shapes: Sequence[Shape]) -> str:
    """CSS classes for the colours that occur, named after them, so that several drawings of a page can share them.

    Each rule has a single selector, because tools that scope rules only prefix the first selector.
    """
    used = {value for shape in shapes for value in shape if isinstance(value, tuple) and len(value) == 2}
    text = ""
    for (where, around), mode in zip(MODES, (0, 1, 1), strict=True):
        rules = []
        for color in sorted(used | {PAGE, INK, FOCUS}):
            rules += [f"f{_name(color)} {{ fill: {color[mode]} }}", f"s{_name(color)} {{ stroke: {color[mode]} }}"]
        selectors = [f"{where} .{rule}" for rule in rules]
        selectors.append(f"{where} :is(.spot:hover, .spot:focus) .hit {{ stroke: {FOCUS[mode]}; stroke-width: 4 }}")
        text += around.replace("RULES", "\n".join(selectors))
    return text


def _name(color: Color) -> str:
    return "".join(color).replace("#", "")


def _element(shape: Shape, number: int, sheet: Sheet) -> str:
    if isinstance(shape, Tip):
        return _tip(shape, number, sheet)
    if isinstance(shape, Line):
        ends = " ".join(f'{name}="{value:g}"' for name, value in zip(("x1", "y1", "x2", "y2"), shape[:4], strict=True))
        return f'<line {ends} class="s{_name(shape.color)}" stroke-width="{shape.width}"/>'
    if isinstance(shape, Text):
        return _text(shape)
    inset = 0.5 if shape.outline else 0
    geometry = (
        f'x="{shape.x + inset:g}" y="{shape.y + inset:g}" '
        f'width="{shape.width - 2 * inset:g}" height="{shape.height - 2 * inset:g}"'
    )
    stroke = f" s{_name(shape.outline)}" if shape.outline else ""
    fill = f'class="f{_name(shape.fill)}{stroke}"' if shape.fill else f'fill="none" class="{stroke.strip()}"'
    return f'<rect {geometry} {fill} shape-rendering="crispEdges"/>'


def _text(text: Text) -> str:
    anchor = {"l": "start", "m": "middle", "r": "end"}[text.anchor[0]]
    y = text.y + (0.35 * text.size if text.anchor[1] == "m" else 0)
    position = f'x="{text.x:g}" y="{y:g}" font-size="{text.size}" text-anchor="{anchor}"'
    return f'<text {position} class="f{_name(text.color)}">{escape(text.text)}</text>'


def _tip(tip: Tip, number: int, sheet: Sheet) -> str:
    """The area, and its tooltip above it, or below if there is no room."""
    lines = [part for words in tip.words for part in wrap(words, TIP_COLUMNS, subsequent_indent="    ")]
    height = round(1.35 * TIP_SIZE * len(lines) + TIP_SIZE)
    width = min(sheet.width - 20, round(0.56 * TIP_SIZE * max(map(len, lines), default=0)) + 40)
    top = tip.y - height - 8 if tip.y - height - 8 >= 0 else min(tip.y + tip.height + 8, sheet.height - height)
    left = min(max(10.0, tip.x), sheet.width - width - 10)
    rows = ""
    for n, line in enumerate(lines, start=1):
        indent = len(line) - len(line.lstrip())
        rows += _text(Text(left + 20 + 11 * indent, top + 1.35 * TIP_SIZE * n, line.strip(), TIP_SIZE))
    return (
        f'<g class="spot" tabindex="0" role="img" aria-labelledby="words{number}">'
        f'<rect class="hit" x="{tip.x:g}" y="{tip.y:g}" width="{tip.width:g}" height="{tip.height:g}"/>'
        f'<g class="words" id="words{number}"><rect x="{left:g}" y="{top:g}" width="{width}" height="{height}" rx="8" '
        f'class="f{_name(PAGE)} s{_name(INK)}" stroke-width="2"/>{rows}</g></g>'
    )
