"""Draw the denoising mask as text for a terminal: lines of spans, whose roles decide their colours."""

from collections.abc import Sequence
from typing import NamedTuple

from .mask import MaskView, SmallMask, blocked_facts, downsample

MAX_STRIPS = 8  # images whose padding is drawn; further ones are only counted


class Span(NamedTuple):
    """A piece of a line."""

    text: str
    role: str = "plain"  # blocked, partly, positive, negative, both, matching, object, padding


class Glyphs(NamedTuple):
    """The characters that a drawing is made of."""

    blocked: str
    allowed: str
    partly: str
    object: str
    padding: str
    some: str  # a cell with objects and padding
    bar: str
    rule: str
    cross: str


UNICODE = Glyphs("█", "·", "▒", "●", "○", "◐", "│", "─", "┼")
ASCII = Glyphs("#", ".", "%", "o", "_", "~", "|", "-", "+")
SIGNS = {"positive": "+", "negative": "-", "both": "*"}

Line = list[Span]


class TextLayout(NamedTuple):
    """The columns of a drawing."""

    small: SmallMask
    cell: int  # characters of a cell
    label: int  # characters left of the cells
    band: int  # characters of the column for the matching queries
    group: str  # prefix of a group's number
    image: str  # prefix of an image's number
    matching: Sequence[str]  # labels of the rows for the matching queries


def draw_text(view: MaskView, glyphs: Glyphs = UNICODE, width: int = 80) -> list[Line]:
    """The mask, the padding of each image, a legend and the counts, in at most `width` columns (at least 80)."""
    layout = _layout(view, max(80, width))
    drawing = [*_header(view, layout), *_rows(layout, glyphs), *_strips(view, layout, glyphs)]
    facts = blocked_facts(view).items()
    counts = [[Span(f"  {name:24}{value}" if " to " in name else f"{name:19}{value}")] for name, value in facts]
    return [*drawing, [], *_legend(view, layout, glyphs), [], *counts]


def _layout(view: MaskView, width: int) -> TextLayout:
    """Square cells with full labels if they fit, else narrow cells, else cells that each stand for several queries."""
    count, last = f"{view.num_matching:,}", str(max(0, view.num_groups - 1))
    whole = max(1, view.num_denoising)
    label, band = len(last) + 9, 8
    for cell in (2, 1):
        if label + cell * whole + 1 + band <= width:
            return TextLayout(downsample(view, whole), cell, label, band, "group ", "image ", (count, "matching"))
    label, band = len(last) + 3, max(3, len(count))
    room = width - label - 1 - band
    cell, cells = (1, whole) if whole <= room else (2, room // 2)
    return TextLayout(downsample(view, cells), cell, label, band, "", "i", ("m",))


def _header(view: MaskView, layout: TextLayout) -> list[Line]:
    """Two lines above the columns: group numbers, as many as fit, and the kind of each column."""
    cells = layout.small.cells
    numbers = [" "] * (layout.cell * len(cells))
    free = 0
    for at in layout.small.group_starts:
        column, text = at * layout.cell, str(cells[at].first_group)
        if free <= column <= len(numbers) - len(text):
            numbers[column : column + len(text)] = text
            free = column + len(text) + 1
    kinds = [Span(SIGNS[cell.kind].ljust(layout.cell), cell.kind) for cell in cells]
    group = (layout.group if cells else "").ljust(layout.label)
    return [
        [Span(f"{group}{''.join(numbers)} {view.num_matching:,}")],
        [Span(" " * layout.label), *kinds, Span(" "), Span(layout.matching[-1], "matching")],
    ]


def _rows(layout: TextLayout, glyphs: Glyphs) -> list[Line]:
    """One line per cell, a rule, and the matching queries: which columns each row must not attend to."""
    cells, starts = layout.small.cells, set(layout.small.group_starts)
    marks = []
    for *fractions, matching in layout.small.blocked.tolist():
        row = [_mark(blocked, cell.kind, layout.cell, glyphs) for blocked, cell in zip(fractions, cells, strict=True)]
        marks.append([*row, Span(glyphs.bar), _mark(matching, "matching", layout.band, glyphs)])
    lines = []
    for at, cell in enumerate(cells):
        number = f"{layout.group}{cell.first_group}" if at in starts else ""
        lines.append([Span(f"{number:{layout.label - 2}}"), Span(f"{SIGNS[cell.kind]} ", cell.kind), *marks[at]])
    if cells:
        across = glyphs.rule * (layout.cell * len(cells))
        lines.append([Span(" " * layout.label + across + glyphs.cross + glyphs.rule * layout.band)])
    return lines + [[Span(text.ljust(layout.label), "matching"), *marks[-1]] for text in layout.matching]


def _mark(blocked: float, kind: str, width: int, glyphs: Glyphs) -> Span:
    """A cell of the mask, by the fraction of its pairs that is blocked."""
    if blocked == 0:
        return Span(glyphs.allowed.ljust(width) if width == 2 else glyphs.allowed * width, kind)
    return Span(glyphs.blocked * width, "blocked") if blocked == 1 else Span(glyphs.partly * width, "partly")


def _strips(view: MaskView, layout: TextLayout, glyphs: Glyphs) -> list[Line]:
    """One line per image: which of the denoising queries in the columns above are padding."""
    if view.valid.all():
        return []
    lines: list[Line] = [[]]
    for image, fractions in enumerate(layout.small.valid[:MAX_STRIPS].tolist()):
        marks = {1.0: Span(glyphs.object, "object"), 0.0: Span(glyphs.padding, "padding")}
        spans = [marks.get(valid, Span(glyphs.some, "partly")) for valid in fractions]
        spans = [span._replace(text=span.text.ljust(layout.cell)) for span in spans]
        lines.append([Span(f"{layout.image}{image}".ljust(layout.label)), *spans])
    if len(view.valid) > MAX_STRIPS:
        lines.append([Span(f"and {len(view.valid) - MAX_STRIPS} more images")])
    return lines


def _legend(view: MaskView, layout: TextLayout, glyphs: Glyphs) -> list[Line]:
    """The meaning of the characters that occur in the drawing."""
    lines = [[Span("row looks at column:  "), Span(glyphs.blocked * 2, "blocked"), Span(" may not attend (True)   "),
              Span(glyphs.allowed), Span(" may attend")]]  # fmt: skip
    small = layout.small
    if small.queries_per_cell > 1:
        size = f"{small.queries_per_cell} x {small.queries_per_cell}"
        lines.append([Span(f"each cell stands for up to {size} queries;  "), Span(glyphs.partly * 2, "partly"),
                      Span(" some of them may attend")])  # fmt: skip
    kinds = {"positive": "+ positive", "negative": "- negative", "both": "* both kinds"}
    shown = [Span(f"{text}   ", kind) for kind, text in kinds.items() if kind in {cell.kind for cell in small.cells}]
    merged = f"{layout.matching[-1]}: the {view.num_matching:,} matching queries, merged"
    lines.append([*shown, Span(merged, "matching")])
    if not view.valid.all():
        some = Span(f"   {glyphs.some} both", "partly")
        lines.append([Span(f"{glyphs.object} object", "object"), Span(f"   {glyphs.padding} padding slot", "padding"),
                      *([some] if ((small.valid > 0) & (small.valid < 1)).any() else [])])  # fmt: skip
        lines.append([Span("the mask is the same for every image of the batch; it does not block padding")])
    return lines
