"""Draw the denoising mask with labels: blocked pairs grey, positives blue, negatives orange."""

from collections.abc import Iterator
from itertools import count, groupby, islice, pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...draw.canvas import INK, PAGE, SOFT, Color, Line, Rect, Shape, Sheet, Text, Tip, mix, to_image, to_svg
from ...draw.fonts import load_font
from ...report.page import render_page
from ...report.parts import Drawing, Facts, Page, Part, Section, Table
from ...words import counted
from .explain import explain, explain_cell, to_lines
from .mask import MaskView, SmallMask, blocked_facts, downsample

# sizes in pixels of the denoising part, of the band of matching queries, and of the stripes that mark the kinds
SIDE, BAND, STRIPE = 960, 150, 26
MAX_CELLS = 480
MARGIN, GAP = 56, 14
# colours by Okabe and Ito, for light and dark pages
STRONG: dict[str, Color] = {
    "positive": ("#0072B2", "#3FA3DC"), "negative": ("#E69F00", "#E69F00"), "both": ("#CC79A7", "#CC79A7"),
}  # fmt: skip
ON_STRONG: dict[str, Color] = {"positive": ("#FFFFFF", "#16181C"), "negative": ("#222222", "#16181C")}
STRIP, MAX_STRIPS = 30, 12
DETAIL_SIZE = 10  # smallest cell, in pixels, with crosses on padding and lines between cells
SWATCH = (41, 29)  # width and height of a colour in the legend
PALE, BLOCKED, OBJECT = ("#C8C8C8", "#4A4D52"), ("#8F8F8F", "#8A8D92"), ("#222222", "#ECECEC")
LIGHT: dict[str, Color] = {
    "positive": ("#D3E9F7", "#123F5C"), "negative": ("#FBEBC8", "#5C430B"), "both": ("#F6E3EE", "#57304A"),
    "matching": ("#FFFFFF", "#16181C"),
}  # fmt: skip
HOW_TO_USE = "Point at a row, or select it with the Tab key, for an explanation."
TITLE = "Who may attend to whom: DINO's denoising mask"


class Geometry(NamedTuple):
    """The layout of the drawing, in pixels."""

    small: SmallMask
    cell: int
    left: int  # of the cells
    top: int
    width: int  # of the image

    @property
    def side(self) -> int:
        """Width and height of all cells."""
        return self.cell * len(self.small.cells)

    @property
    def band(self) -> int:
        """Offset of the matching queries from `left` and from `top`."""
        return self.side + GAP if self.side else 0

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Offset and size of every row or column; the matching queries are last."""
        return [*((at * self.cell, self.cell) for at in range(len(self.small.cells))), (self.band, BAND)]

    def line(self, x0: float, y0: float, x1: float, y1: float, color: Color = INK) -> Line:
        """A line, in coordinates relative to the cells' top left corner."""
        return Line(self.left + x0, self.top + y0, self.left + x1, self.top + y1, color)


def draw_image(view: MaskView) -> Image.Image:
    """The mask with its groups, kinds, padding, legend and counts."""
    return to_image(draw_mask(view))


def draw_svg(view: MaskView) -> str:
    """The same as SVG; the row under the pointer or with keyboard focus is explained in words."""
    return to_svg(draw_mask(view), TITLE)


def draw_mask(view: MaskView) -> Sheet:
    """The drawing for PNG, SVG and HTML."""
    small = downsample(view, MAX_CELLS)
    cell = min(96, SIDE // max(1, len(small.cells)))
    left, needed = MARGIN + 210, cell * len(small.cells) + GAP + BAND + MARGIN
    width = max(left + needed, 1280)
    frame = Geometry(small, cell, left + (width - left - needed) // 2, MARGIN + 250, width)
    total, kinds = len(view.blocked), view.kinds_of_group
    made = f" = {counted(view.num_groups, 'group')} x ({kinds})" if kinds else ""
    pairs = f"{view.blocked_fraction:.1%} of {total:,} x {total:,} pairs are blocked"
    shapes: list[Shape] = [
        Text(MARGIN, MARGIN + 36, TITLE, 40),
        Text(MARGIN, MARGIN + 82, f"{view.num_denoising:,} denoising queries{made}", 25, SOFT),
        Text(MARGIN, MARGIN + 118, f"{view.num_matching:,} matching queries; {pairs}", 25, SOFT),
    ]
    shapes += [*_cells(frame), *_kinds(frame), *_groups(frame), *_matching(view, frame)]
    top = frame.top + frame.band + BAND + 28
    if not view.valid.all():
        shapes += _strips(view, frame, top)
        more = len(view.valid) > MAX_STRIPS
        top += 62 + (STRIP + 8) * min(len(view.valid), MAX_STRIPS) + 36 * more
    left = max(MARGIN, min(frame.left, frame.width - MARGIN - 980))
    rows = legend(view, small)
    for row, (mark, text) in enumerate(rows):
        y = top + 44 * row
        if isinstance(mark, float):
            shapes += [*_slot(left, y, *SWATCH, cell >= DETAIL_SIZE, mark)]
            shapes.append(Rect(left - 1, y - 1, SWATCH[0] + 2, SWATCH[1] + 2, None, INK))
        elif isinstance(mark, tuple):
            shapes.append(Rect(left, y, *SWATCH, mark, INK))
        shapes.append(Text(left + 58, y + 15, text, 24, anchor="lm"))
    shapes += _tips(view, frame)
    return Sheet(width, top + 44 * len(rows) - 16 + MARGIN, shapes)


def _cells(frame: Geometry) -> Iterator[Shape]:
    """The cells, from their column's light colour to grey by the fraction of blocked pairs; equal neighbours merge."""
    kinds = [*(cell.kind for cell in frame.small.cells), "matching"]
    numbers = np.array([list(LIGHT).index(kind) for kind in kinds])
    for (top, height), blocked in zip(frame.spans, frame.small.blocked.numpy(), strict=True):
        key = np.where(blocked == 1, -1, numbers + blocked / 2)  # equal for equal colours
        starts = np.flatnonzero(np.diff(key, prepend=np.nan, append=np.nan)).tolist()
        starts = sorted({*starts, len(kinds) - 1})  # do not merge across the gap before the matching queries
        for first, end in pairwise(starts):
            left, right = frame.spans[first][0], sum(frame.spans[end - 1])
            color = mix(LIGHT[kinds[first]], BLOCKED, float(blocked[first]))
            yield Rect(frame.left + left, frame.top + top, right - left, height, color)
    parts = [(0, frame.side)] * bool(frame.side) + [(frame.band, BAND)]
    for at in range(1, len(frame.small.cells)) if frame.cell >= DETAIL_SIZE else ():
        edge = at * frame.cell
        for start, length in parts:
            yield frame.line(edge, start, edge, start + length - 1, PAGE)
            yield frame.line(start, edge, start + length - 1, edge, PAGE)
    for top, height in parts:
        for left, width in parts:
            yield Rect(frame.left + left - 1, frame.top + top - 1, width + 2, height + 2, None, INK)


def _tips(view: MaskView, frame: Geometry) -> Iterator[Tip]:
    """The explanation of every row, as a tooltip."""
    tips = [explain_cell(view, cell) for cell in frame.small.cells] + [to_lines(explain(view, view.num_denoising))]
    if view.num_matching > 1:
        each = tips[-1][0].split(": ")[1]
        tips[-1][0] = f"the {view.num_matching:,} matching queries, merged into one row; each is {each}"
    left = frame.left - STRIPE - 6 if frame.side else frame.left
    width = frame.left + frame.band + BAND - left
    for (top, height), lines in zip(frame.spans, tips, strict=True):
        yield Tip(left, frame.top + top, width, height, lines)


def _kinds(frame: Geometry) -> Iterator[Shape]:
    """Stripes above the columns and left of the rows that show positives and negatives, with signs where they fit."""
    x, y, middle = frame.left, frame.top, 6 + STRIPE // 2
    stop = 0
    for (kind, _), cells in groupby(frame.small.cells, key=lambda cell: (cell.kind, cell.first_group)):
        low, stop = stop, stop + frame.cell * len(list(cells))
        high = stop - (frame.cell >= DETAIL_SIZE)
        yield Rect(x + low, y - STRIPE - 6, high - low, STRIPE, STRONG[kind])
        yield Rect(x - STRIPE - 6, y + low, STRIPE, high - low, STRONG[kind])
        if high - low < 18 or kind == "both":
            continue
        at = (low + high) // 2
        # drawn as rectangles, because the font's signs are not centred
        for cx, cy in ((x + at, y - middle), (x - middle, y + at)):
            yield Rect(cx - 6, cy - 1, 12, 2, ON_STRONG[kind])
            if kind == "positive":
                yield Rect(cx - 1, cy - 6, 2, 12, ON_STRONG[kind])


def _groups(frame: Geometry) -> Iterator[Shape]:
    """Names of the groups, as many as fit, and lines between the groups."""
    starts = frame.small.group_starts
    edges = [at * frame.cell for at in [*starts, len(frame.small.cells)]]
    wide = max((high - low for low, high in pairwise(edges)), default=1)
    names = [f"group {frame.small.cells[at].first_group}" for at in starts]
    font = load_font(24 * 1.15)  # text is slightly wider in browsers
    fits = all(font.getlength(name) + 12 <= wide for name in names)
    shorts = names if fits else [name.split()[1] for name in names]
    every_column = _step(max((font.getlength(short) for short in shorts), default=0) + 14, wide)
    every_row = _step(30, wide)
    for number, (low, high) in enumerate(pairwise(edges)):
        middle = (low + high) / 2
        if number % every_column == 0:
            yield Text(frame.left + middle, frame.top - STRIPE - 14, shorts[number], 24, anchor="ms")
        if number % every_row == 0:
            yield Text(frame.left - STRIPE - 16, frame.top + middle, names[number], 24, anchor="rm")
        if low and high - low >= 16:
            yield frame.line(low, 0, low, frame.side - 1)
            yield frame.line(0, low, frame.side - 1, low)


def _step(needed: float, wide: float) -> int:
    """Label every n-th group, so that labels of this size fit: n is 1, 2, 5, 10, 20, 50, ..."""
    steps = (digit * 10**power for power in count() for digit in (1, 2, 5))
    return next(step for step in steps if step * wide >= needed)


def _matching(view: MaskView, frame: Geometry) -> Iterator[Text]:
    """Labels of the band of matching queries and of the axes."""
    x, y, middle = frame.left, frame.top, frame.band + BAND / 2
    number = f"{view.num_matching:,}"
    yield Text(x + middle, y - 42, number, 24, anchor="ms")
    yield Text(x + middle, y - 14, "matching", 24, anchor="ms")
    yield Text(x - 16, y + middle - 15, number, 24, anchor="rm")
    yield Text(x - 16, y + middle + 15, "matching", 24, anchor="rm")
    yield Text(x, y - 78, "columns: the query attended to", 22, SOFT)
    yield Text(x - 16, y - 52, "rows: the query", 22, SOFT, "rs")
    yield Text(x - 16, y - 25, "that looks", 22, SOFT, "rs")


def _strips(view: MaskView, frame: Geometry, top: int) -> Iterator[Shape]:
    """A strip per image that shows which denoising queries are padding."""
    left, detailed = frame.left, frame.cell >= DETAIL_SIZE
    yield Text(left, top + 22, "which denoising queries of each image are padding", 22, SOFT)
    top += 36
    counts = zip(view.num_objects, view.taking_part, frame.small.valid.tolist(), strict=True)
    for image, (objects, part, fractions) in enumerate(islice(counts, MAX_STRIPS)):
        middle = top + STRIP / 2
        yield Text(left - 16, middle, f"image {image}", 24, anchor="rm")
        for at, valid in enumerate(fractions):
            yield from _slot(left + at * frame.cell, top, frame.cell - detailed, STRIP, detailed, valid)
        yield Rect(left - 1, top - 1, frame.side + 2, STRIP + 2, None, INK)
        text = f"{part:,} of {objects:,}" if part < objects else f"{objects:,} object{'s' * (objects != 1)}"
        yield Text(left + frame.band, middle, text, 24, anchor="lm")
        top += STRIP + 8
    if len(view.valid) > MAX_STRIPS:
        yield Text(left, top + 26, f"and {len(view.valid) - MAX_STRIPS:,} more images", 24)


def _slot(x: int, y: int, width: int, height: int, crossed: bool, valid: float) -> Iterator[Shape]:
    """A cell of a strip: dark for objects, white for padding, grey for both; padding is crossed out if `crossed`.

    Args:
        valid: fraction of the cell's queries that is not padding.
    """
    outline = PALE if valid == 0 and crossed else None
    yield Rect(x, y, width, height, mix(PAGE, OBJECT, valid), outline)
    if outline:
        reach = min(width, height) / 2 - 5
        cx, cy = x + width / 2, y + height / 2
        yield Line(cx - reach, cy - reach, cx + reach, cy + reach, BLOCKED, 2)
        yield Line(cx - reach, cy + reach, cx + reach, cy - reach, BLOCKED, 2)


def legend(view: MaskView, small: SmallMask) -> list[tuple[Color | float | None, str]]:
    """The colours that occur and their meaning.

    A float stands for a slot of a strip with that fraction of objects, None for a line without a colour.
    """
    kinds = {cell.kind for cell in small.cells}
    rows: list[tuple[Color | float | None, str]] = []
    if view.blocked.any():
        rows.append((BLOCKED, "may NOT attend (the mask is True)"))
    attended = {"positive": "a positive (+)", "negative": "a negative (-)", "both": "positives and negatives"}
    rows += [(LIGHT[kind], f"may attend, to {text}") for kind, text in attended.items() if kind in kinds]
    rows.append((LIGHT["matching"], f"may attend, to a matching query ({view.num_matching:,} merged into one band)"))
    if small.queries_per_cell > 1:
        partly = ((small.blocked > 0) & (small.blocked < 1)).any()
        text = f"each cell stands for up to {small.queries_per_cell} x {small.queries_per_cell} queries"
        between = mix(BLOCKED, LIGHT["both"], 0.5)
        rows.append((between, f"{text}, only some of which may attend") if partly else (None, text))
    if not view.valid.all():
        rows += [(1.0, "a query of an object"), (0.0, "a padding slot; the mask does not block it")]
    return rows


def render_mask(view: MaskView) -> str:
    """The HTML page: the drawing, the counts, and the images if they are known."""
    parts: list[Part] = [Drawing("", draw_svg(view), HOW_TO_USE), Facts("Counts", blocked_facts(view))]
    if view.files:
        rows = list(zip(view.files, view.num_objects, view.taking_part, strict=True))
        parts.append(Table("Images", ("file", "objects", "objects that take part"), rows))
    groups = counted(view.num_groups, "group")
    subtitle = f"{groups}, {view.num_denoising:,} denoising and {view.num_matching:,} matching queries"
    return render_page(Page(TITLE, subtitle, [Section("The mask", parts)]))
