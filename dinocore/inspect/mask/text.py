"""The denoising mask in a terminal: lines of text, each piece with a role for its colour."""

from collections.abc import Sequence
from typing import NamedTuple

from .mask import MaskView, SmallMask, blocked_facts, downsample

MOST_STRIPS = 8  # images whose padding is drawn; a larger batch says so in words


class Span(NamedTuple):
    """A piece of a line."""

    text: str
    role: str = "plain"  # blocked, partly, positive, negative, both, matching, object, padding


class Glyphs(NamedTuple):
    """The characters of a drawing."""

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
    """How a drawing fills its width."""

    small: SmallMask
    cell: int  # characters of a cell
    label: int  # characters left of the cells
    band: int  # characters of the matching queries
    group: str  # before a group's number
    image: str  # before an image's number
    matching: Sequence[str]  # beside the rows of the matching queries


def draw_text(view: MaskView, glyphs: Glyphs = UNICODE, width: int = 80) -> list[Line]:
    """The mask, the padding of each image, a legend and the counts, in at most `width` columns (at least 80)."""
    layout = _layout(view, max(80, width))
    drawing = [*_header(view, layout), *_rows(layout, glyphs), *_strips(view, layout, glyphs)]
    facts = blocked_facts(view).items()
    counts = [[Span(f"  {name:24}{value}" if " to " in name else f"{name:19}{value}")] for name, value in facts]
    return [*drawing, [], *_legend(view, layout, glyphs), [], *counts]


def _layout(view: MaskView, width: int) -> TextLayout:
    """Square cells and whole words where they fit, else narrow ones, else square ones for several queries each."""
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
    """What the columns are: group numbers where they have room, and the kinds under them."""
    cells = layout.small.cells
    numbers = [" "] * (layout.cell * len(cells))
    free = 0
    for at in layout.small.group_starts:
        place, text = at * layout.cell, str(cells[at].first_group)
        if free <= place <= len(numbers) - len(text):
            numbers[place : place + len(text)] = text
            free = place + len(text) + 1
    kinds = [Span(SIGNS[cell.kind].ljust(layout.cell), cell.kind) for cell in cells]
    group = (layout.group if cells else "").ljust(layout.label)
    return [
        [Span(f"{group}{''.join(numbers)} {view.num_matching:,}")],
        [Span(" " * layout.label), *kinds, Span(" "), Span(layout.matching[-1], "matching")],
    ]


def _rows(layout: TextLayout, glyphs: Glyphs) -> list[Line]:
    """One line a cell, a rule, and the matching queries: whom each may not look at."""
    cells, starts = layout.small.cells, set(layout.small.group_starts)
    marks = []
    for *shares, matching in layout.small.blocked.tolist():
        row = [_mark(share, cell.kind, layout.cell, glyphs) for share, cell in zip(shares, cells, strict=True)]
        marks.append([*row, Span(glyphs.bar), _mark(matching, "matching", layout.band, glyphs)])
    lines = []
    for at, cell in enumerate(cells):
        number = f"{layout.group}{cell.first_group}" if at in starts else ""
        lines.append([Span(f"{number:{layout.label - 2}}"), Span(f"{SIGNS[cell.kind]} ", cell.kind), *marks[at]])
    if cells:
        across = glyphs.rule * (layout.cell * len(cells))
        lines.append([Span(" " * layout.label + across + glyphs.cross + glyphs.rule * layout.band)])
    return lines + [[Span(text.ljust(layout.label), "matching"), *marks[-1]] for text in layout.matching]


def _mark(share: float, kind: str, width: int, glyphs: Glyphs) -> Span:
    if share == 0:
        return Span(glyphs.allowed.ljust(width) if width == 2 else glyphs.allowed * width, kind)
    return Span(glyphs.blocked * width, "blocked") if share == 1 else Span(glyphs.partly * width, "partly")


def _strips(view: MaskView, layout: TextLayout, glyphs: Glyphs) -> list[Line]:
    """A line for each image: which of the denoising queries above are padding."""
    if view.valid.all():
        return []
    lines: list[Line] = [[]]
    for image, shares in enumerate(layout.small.valid[:MOST_STRIPS].tolist()):
        marks = {1.0: Span(glyphs.object, "object"), 0.0: Span(glyphs.padding, "padding")}
        spans = [marks.get(share, Span(glyphs.some, "partly")) for share in shares]
        spans = [span._replace(text=span.text.ljust(layout.cell)) for span in spans]
        lines.append([Span(f"{layout.image}{image}".ljust(layout.label)), *spans])
    if len(view.valid) > MOST_STRIPS:
        lines.append([Span(f"and {len(view.valid) - MOST_STRIPS} more images")])
    return lines


def _legend(view: MaskView, layout: TextLayout, glyphs: Glyphs) -> list[Line]:
    """What the marks stand for, as far as they occur."""
    lines = [[Span("row looks at column:  "), Span(glyphs.blocked * 2, "blocked"), Span(" may not attend (True)   "),
              Span(glyphs.allowed), Span(" may attend")]]  # fmt: skip
    small = layout.small
    if small.queries_per_cell > 1:
        size = f"{small.queries_per_cell} x {small.queries_per_cell}"
        lines.append([Span(f"each cell stands for up to {size} queries;  "), Span(glyphs.partly * 2, "partly"),
                      Span(" some of them may attend")])  # fmt: skip
    kinds = {"positive": "+ positive", "negative": "- negative", "both": "* both kinds"}
    found = [Span(f"{text}   ", kind) for kind, text in kinds.items() if kind in {cell.kind for cell in small.cells}]
    merged = f"{layout.matching[-1]}: the {view.num_matching:,} matching queries, merged"
    lines.append([*found, Span(merged, "matching")])
    if not view.valid.all():
        some = Span(f"   {glyphs.some} both", "partly")
        lines.append([Span(f"{glyphs.object} object", "object"), Span(f"   {glyphs.padding} padding slot", "padding"),
                      *([some] if ((small.valid > 0) & (small.valid < 1)).any() else [])])  # fmt: skip
        lines.append([Span("the mask is the same for every image of the batch; it does not block padding")])
    return lines
