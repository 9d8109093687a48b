"""The denoising mask as a labelled picture. Grey may not attend, as in the notes; positives blue, negatives orange."""

from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .mask import Cell, Fold, MaskView, fold

SIDE, BAND, STRIPE, STRIP = 960, 150, 26, 30  # of the denoising part, of the matching queries, of the marks
MOST_CELLS, MOST_STRIPS = 480, 12
MARGIN, GAP = 56, 14
INK, PALE, BLOCKED, OBJECT = "#222222", "#C8C8C8", "#8F8F8F", "#222222"
STRONG = {"positive": "#0072B2", "negative": "#E69F00", "both": "#CC79A7"}  # Okabe and Ito's
LIGHT = {"positive": "#D3E9F7", "negative": "#FBEBC8", "both": "#F6E3EE", "matching": "#FFFFFF"}


class Frame(NamedTuple):
    """Where the parts of the picture are, in pixels."""

    folded: Fold
    cell: int
    left: int  # of the cells
    top: int
    size: tuple[int, int]  # of the picture

    @property
    def side(self) -> int:
        """Width and height of all cells."""
        return self.cell * len(self.folded.cells)

    @property
    def band(self) -> int:
        """Where the matching queries begin, measured from left and from top."""
        return self.side + GAP if self.side else 0


def draw_image(view: MaskView) -> Image.Image:
    """The mask with its groups, kinds, padding, legend and counts."""
    frame = _frame(view)
    picture = Image.new("RGB", frame.size, "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), "Who may attend to whom: DINO's denoising mask", INK, _font(40))
    for line, text in enumerate(_summary(view)):
        draw.text((MARGIN, MARGIN + 58 + 36 * line), text, "#555555", _font(25))
    _draw_mask(picture, draw, frame)
    _draw_kinds(draw, frame)
    _draw_groups(draw, frame)
    _draw_matching(draw, view, frame)
    bottom = _draw_strips(draw, view, frame)
    bottom = _draw_legend(draw, view, frame, bottom)
    return picture.crop((0, 0, picture.width, bottom + MARGIN))


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _frame(view: MaskView) -> Frame:
    folded = fold(view, MOST_CELLS)
    cell = min(96, SIDE // max(1, len(folded.cells)))
    side = cell * len(folded.cells)
    strips = 0 if view.real.all() else (STRIP + 8) * (min(len(view.real), MOST_STRIPS) + 1) + 70
    left, top = MARGIN + 210, MARGIN + 250
    width = max(left + side + GAP + BAND + MARGIN, 1280)
    height = top + side + GAP + BAND + strips + 44 * len(_legend(view, folded)) + 2 * MARGIN  # at most
    left += (width - left - side - GAP - BAND - MARGIN) // 2
    return Frame(folded, cell, left, top, (width, height))


def _summary(view: MaskView) -> tuple[str, str]:
    total, slots = len(view.blocked), int(view.slots.sum())
    kinds = f"{slots} positive + {slots} negative" if view.negative.any() else f"{slots} positive"
    groups = f"{view.num_groups} group{'s' * (view.num_groups != 1)}"
    made = f" = {groups} x ({kinds})" if slots else ""
    return (
        f"{view.num_denoising:,} denoising queries{made}",
        f"{view.num_matching:,} matching queries; {view.blocked_share:.1%} of {total:,} x {total:,} pairs are blocked",
    )


def _draw_mask(picture: Image.Image, draw: ImageDraw.ImageDraw, frame: Frame) -> None:
    """Each cell between the light colour of its column's kind and grey, by the share that is blocked."""
    cells, blocked = frame.folded.cells, frame.folded.blocked.numpy()[..., None]  # (cells + 1, cells + 1, 1)
    light = np.array([_rgb(LIGHT[cell.kind]) for cell in cells] + [_rgb(LIGHT["matching"])])
    colors = np.round(light + blocked * (np.array(_rgb(BLOCKED)) - light)).astype(np.uint8)
    image = Image.fromarray(colors)
    size, side, band = len(cells), frame.side, frame.band
    spans = [(0, size, 0, side)] * (size > 0) + [(size, size + 1, band, band + BAND)]
    for first_row, last_row, top, bottom in spans:
        for first, last, left, right in spans:
            box = (frame.left + left, frame.top + top, frame.left + right, frame.top + bottom)
            part = image.crop((first, first_row, last, last_row))
            picture.paste(part.resize((right - left, bottom - top), Image.Resampling.NEAREST), box[:2])
            draw.rectangle((box[0] - 1, box[1] - 1, box[2], box[3]), outline=INK, width=1)
    if frame.cell >= 10:
        for at in range(1, size):
            place = at * frame.cell
            for start, stop in ((0, side), (band, band + BAND)):
                draw.line((frame.left + place, frame.top + start, frame.left + place, frame.top + stop - 1), "white")
                draw.line((frame.left + start, frame.top + place, frame.left + stop - 1, frame.top + place), "white")


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def _draw_kinds(draw: ImageDraw.ImageDraw, frame: Frame) -> None:
    """A stripe over the columns and one left of the rows: positive or negative."""
    for start, stop, kind in _runs(frame.folded.cells):
        low, high = start * frame.cell, stop * frame.cell - (1 if frame.cell >= 10 else 0)
        x, y = frame.left, frame.top
        draw.rectangle((x + low, y - STRIPE - 6, x + high - 1, y - 7), STRONG[kind])
        draw.rectangle((x - STRIPE - 6, y + low, x - 7, y + high - 1), STRONG[kind])
        if high - low >= 18 and kind != "both":
            color = "white" if kind == "positive" else INK
            _sign(draw, (x + (low + high) / 2, y - 6 - STRIPE / 2), kind, color)
            _sign(draw, (x - 6 - STRIPE / 2, y + (low + high) / 2), kind, color)


def _sign(draw: ImageDraw.ImageDraw, center: tuple[float, float], kind: str, color: str) -> None:
    """A plus or a minus, drawn: the letters of the font sit off the middle."""
    x, y = center
    draw.rectangle((x - 6, y - 1, x + 5, y), color)
    if kind == "positive":
        draw.rectangle((x - 1, y - 6, x, y + 5), color)


def _runs(cells: Sequence[Cell]) -> Iterator[tuple[int, int, str]]:
    """Neighbours of one kind and group, as [start, stop) of cells."""
    start = 0
    for at in range(1, len(cells) + 1):
        if at == len(cells) or (cells[at].kind, cells[at].first_group) != (cells[start].kind, cells[start].last_group):
            yield start, at, cells[start].kind
            start = at


def _draw_groups(draw: ImageDraw.ImageDraw, frame: Frame) -> None:
    """Names of the groups, as many as have room, and lines between them."""
    cells = frame.folded.cells
    starts = [at for at, cell in enumerate(cells) if at == 0 or cells[at - 1].last_group < cell.first_group]
    edges = [at * frame.cell for at in [*starts, len(cells)]]
    font, wide = _font(24), max((high - low for low, high in pairwise(edges)), default=1)
    names = [f"group {cells[at].first_group}" for at in starts]
    fits = all(draw.textlength(name, font) + 12 <= wide for name in names)
    shorts = names if fits else [name.split()[1] for name in names]
    every_column = _step(max((draw.textlength(short, font) for short in shorts), default=0) + 14, wide)
    every_row = _step(30, wide)
    for number, (low, high) in enumerate(pairwise(edges)):
        middle = (low + high) / 2
        if number % every_column == 0:
            draw.text((frame.left + middle, frame.top - STRIPE - 14), shorts[number], INK, font, anchor="ms")
        if number % every_row == 0:
            draw.text((frame.left - STRIPE - 16, frame.top + middle), names[number], INK, font, anchor="rm")
        if low and high - low >= 16:
            draw.line((frame.left + low, frame.top, frame.left + low, frame.top + frame.side - 1), INK)
            draw.line((frame.left, frame.top + low, frame.left + frame.side - 1, frame.top + low), INK)


def _step(needed: float, wide: float) -> int:
    """Every how many groups a label has room: 1, 2, 5, 10, 20, 50, ..."""
    steps = (digit * 10**power for power in count() for digit in (1, 2, 5))
    return next(step for step in steps if step * wide >= needed)


def _draw_matching(draw: ImageDraw.ImageDraw, view: MaskView, frame: Frame) -> None:
    """Names of the folded band and of the axes."""
    x, y, middle = frame.left, frame.top, frame.band + BAND / 2
    number, font = f"{view.num_matching:,}", _font(24)
    draw.text((x + middle, y - 42), number, INK, font, anchor="ms")
    draw.text((x + middle, y - 14), "matching", INK, font, anchor="ms")
    draw.text((x - 16, y + middle - 15), number, INK, font, anchor="rm")
    draw.text((x - 16, y + middle + 15), "matching", INK, font, anchor="rm")
    draw.text((x, y - 78), "columns: the query that is looked at", "#555555", _font(22), anchor="ls")
    draw.text((x - 16, y - 52), "rows: the query", "#555555", _font(22), anchor="rs")
    draw.text((x - 16, y - 25), "that looks", "#555555", _font(22), anchor="rs")


def _draw_strips(draw: ImageDraw.ImageDraw, view: MaskView, frame: Frame) -> int:
    """A strip for each image: which denoising queries are padding. Returns where it ends."""
    top = frame.top + frame.band + BAND + 28
    if view.real.all():
        return top
    draw.text(
        (frame.left, top + 22), "which denoising queries of each image are padding", "#555555", _font(22), anchor="ls"
    )
    top += 36
    for image, shares in enumerate(frame.folded.real[:MOST_STRIPS].tolist()):
        middle = top + STRIP / 2
        draw.text((frame.left - 16, middle), f"image {image}", INK, _font(24), anchor="rm")
        for at, share in enumerate(shares):
            _draw_slot(draw, (frame.left + at * frame.cell, top), frame.cell, share)
        draw.rectangle((frame.left - 1, top - 1, frame.left + frame.side, top + STRIP), outline=INK)
        objects, part = view.num_objects[image], view.taking_part[image]
        text = f"{part:,} of {objects:,}" if part < objects else f"{objects:,} object{'s' * (objects != 1)}"
        draw.text((frame.left + frame.band, middle), text, INK, _font(24), anchor="lm")
        top += STRIP + 8
    if len(view.real) > MOST_STRIPS:
        text = f"and {len(view.real) - MOST_STRIPS:,} more images"
        draw.text((frame.left, top + 26), text, INK, _font(24), anchor="ls")
        top += 36
    return top + 26


def _draw_slot(draw: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, share: float) -> None:
    """Dark for objects, white for padding, between for a cell with both."""
    x, y = corner
    level = round(255 - share * (255 - 0x22))
    draw.rectangle((x, y, x + cell - (2 if cell >= 10 else 1), y + STRIP - 1), (level, level, level))
    if share == 0 and cell >= 10:
        draw.rectangle((x, y, x + cell - 1, y + STRIP - 1), outline=PALE)
        reach = min(cell, STRIP) / 2 - 5
        cx, cy = x + cell / 2, y + STRIP / 2
        draw.line((cx - reach, cy - reach, cx + reach, cy + reach), BLOCKED, 2)
        draw.line((cx - reach, cy + reach, cx + reach, cy - reach), BLOCKED, 2)


def _legend(view: MaskView, folded: Fold) -> list[tuple[str, str]]:
    """Colours that occur, and what they say; no colour where the words need none."""
    kinds = {cell.kind for cell in folded.cells}
    rows = [(BLOCKED, "may NOT attend (the mask is True)")] if view.blocked.any() else []
    rows += [(LIGHT["positive"], "may attend, to a positive (+)")] if "positive" in kinds else []
    rows += [(LIGHT["negative"], "may attend, to a negative (-)")] if "negative" in kinds else []
    rows += [(LIGHT["both"], "may attend, to positives and negatives")] if "both" in kinds else []
    rows.append((LIGHT["matching"], f"may attend, to a matching query ({view.num_matching:,} folded into one band)"))
    if folded.queries_per_cell > 1:
        partly = ((folded.blocked > 0) & (folded.blocked < 1)).any()
        text = f"a cell stands for up to {folded.queries_per_cell} x {folded.queries_per_cell} queries"
        rows.append((_between(), f"{text}, of which only some may attend") if partly else ("", text))
    if not view.real.all():
        rows += [(OBJECT, "a query of an object"), ("#FFFFFF", "a padding slot; the mask does not block it")]
    return rows


def _between() -> str:
    pairs = zip(_rgb(BLOCKED), _rgb(LIGHT["both"]), strict=True)
    return "#" + "".join(f"{(dark + light) // 2:02x}" for dark, light in pairs)


def _draw_legend(draw: ImageDraw.ImageDraw, view: MaskView, frame: Frame, top: int) -> int:
    """One line a colour. Returns where it ends."""
    left = max(MARGIN, min(frame.left, frame.size[0] - MARGIN - 980))
    for color, text in _legend(view, frame.folded):
        if color:
            draw.rectangle((left, top, left + 40, top + 28), color, INK)
        draw.text((left + 58, top + 15), text, INK, _font(24), anchor="lm")
        top += 44
    return top - 16
