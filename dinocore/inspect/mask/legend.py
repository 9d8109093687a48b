"""What stands under the drawn mask: which queries are padding, and what the colours say."""

from collections.abc import Iterator

from ...draw.canvas import INK, PAGE, SOFT, Color, Line, Rect, Shape, Text, mix
from .fold import Fold
from .mask import MaskView

STRIP, MOST_STRIPS = 30, 12
ROOMY = 10  # pixels of a cell, from which on lines and crosses are drawn in and between cells
SWATCH = (41, 29)  # width and height, of a colour in the legend
PALE, BLOCKED, OBJECT = ("#C8C8C8", "#4A4D52"), ("#8F8F8F", "#8A8D92"), ("#222222", "#ECECEC")
LIGHT: dict[str, Color] = {
    "positive": ("#D3E9F7", "#123F5C"), "negative": ("#FBEBC8", "#5C430B"), "both": ("#F6E3EE", "#57304A"),
    "matching": ("#FFFFFF", "#16181C"),
}  # fmt: skip


def rows_of_strips(view: MaskView) -> int:
    """Height of the strips, in pixels."""
    if view.real.all():
        return 0
    return 36 + (STRIP + 8) * min(len(view.real), MOST_STRIPS) + 36 * (len(view.real) > MOST_STRIPS) + 26


def strips(view: MaskView, folded: Fold, cell: int, corner: tuple[int, int], band: int) -> Iterator[Shape]:
    """A strip for each image: which denoising queries are padding."""
    left, top = corner
    if view.real.all():
        return
    yield Text(left, top + 22, "which denoising queries of each image are padding", 22, SOFT)
    top += 36
    roomy = cell >= ROOMY
    for image, shares in enumerate(folded.real[:MOST_STRIPS].tolist()):
        middle = top + STRIP / 2
        yield Text(left - 16, middle, f"image {image}", 24, anchor="rm")
        for at, share in enumerate(shares):
            yield from _slot(left + at * cell, top, cell - roomy, STRIP, roomy, share)
        yield Rect(left - 1, top - 1, cell * len(shares) + 2, STRIP + 2, None, INK)
        objects, part = view.num_objects[image], view.taking_part[image]
        text = f"{part:,} of {objects:,}" if part < objects else f"{objects:,} object{'s' * (objects != 1)}"
        yield Text(left + band, middle, text, 24, anchor="lm")
        top += STRIP + 8
    if len(view.real) > MOST_STRIPS:
        yield Text(left, top + 26, f"and {len(view.real) - MOST_STRIPS:,} more images", 24)


def _slot(x: int, y: int, width: int, height: int, crossed: bool, share: float) -> Iterator[Shape]:
    """Dark for objects, white for padding, between for a cell with both; padding is crossed out where it has room."""
    outline = PALE if share == 0 and crossed else None
    yield Rect(x, y, width, height, mix(PAGE, OBJECT, share), outline)
    if outline:
        reach = min(width, height) / 2 - 5
        cx, cy = x + width / 2, y + height / 2
        yield Line(cx - reach, cy - reach, cx + reach, cy + reach, BLOCKED, 2)
        yield Line(cx - reach, cy + reach, cx + reach, cy - reach, BLOCKED, 2)


def legend(view: MaskView, folded: Fold) -> list[tuple[Color | None, str]]:
    """Colours that occur, and what they say; no colour where the words need none."""
    kinds = {cell.kind for cell in folded.cells}
    rows: list[tuple[Color | None, str]] = []
    if view.blocked.any():
        rows.append((BLOCKED, "may NOT attend (the mask is True)"))
    said = {"positive": "a positive (+)", "negative": "a negative (-)", "both": "positives and negatives"}
    rows += [(LIGHT[kind], f"may attend, to {text}") for kind, text in said.items() if kind in kinds]
    rows.append((LIGHT["matching"], f"may attend, to a matching query ({view.num_matching:,} folded into one band)"))
    if folded.queries_per_cell > 1:
        partly = ((folded.blocked > 0) & (folded.blocked < 1)).any()
        text = f"a cell stands for up to {folded.queries_per_cell} x {folded.queries_per_cell} queries"
        between = mix(BLOCKED, LIGHT["both"], 0.5)
        rows.append((between, f"{text}, of which only some may attend") if partly else (None, text))
    if not view.real.all():
        rows += [(OBJECT, "a query of an object"), (PAGE, "a padding slot; the mask does not block it")]
    return rows
