"""Draw labelled boxes on an image."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .fonts import Font, load_font, shortened

# colours by Okabe and Ito, which colour-blind readers can distinguish, without yellow and black
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

MAX_LEGEND_SIZE = 24  # of a legend's font, in pixels
LONGEST = 0.3  # largest width of a label, as a fraction of the image's width
MAX_ASPECT = 2.5  # long side / short side; in longer images, lines and fonts are as large as at this ratio

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class Box(NamedTuple):
    """One box to draw."""

    xyxy: Sequence[float]  # in pixels
    color: str
    label: str = ""


def class_color(label: int) -> str:
    """The colour of a class, the same in every image; beyond the palette, hues that repeat late."""
    if label < len(PALETTE):
        return PALETTE[label]
    red, green, blue = colorsys.hls_to_rgb(label * 0.618034 % 1, 0.42, 0.85)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


class LabelMemory:
    """Where labels were placed in a video's last frame; they stay there if possible, so that they don't flicker."""

    SAME = 0.5  # IoU from which two boxes of one colour in consecutive frames are the same object

    def __init__(self):
        # for each colour, the last frame's boxes (L, 4) xyxy and the ranks of their labels' positions
        self.last: dict[str, tuple[np.ndarray, list[int]]] = {}

    def recall(self, boxes: Sequence[Box]) -> list[int | None]:
        """The rank of each label's position in the last frame; None for new boxes."""
        pairs: list[tuple[float, int, int]] = []  # IoU, box, box in the last frame
        for n, box in enumerate(boxes):
            if box.color in self.last:
                overlap = _iou(np.array(box.xyxy), self.last[box.color][0])  # (L,)
                pairs += [(overlap[old], n, old) for old in np.flatnonzero(overlap >= self.SAME).tolist()]
        recalled: list[int | None] = [None] * len(boxes)
        available = {color: list[int | None](choices) for color, (_, choices) in self.last.items()}
        for _, n, old in sorted(pairs, reverse=True):  # highest IoU first
            choices = available[boxes[n].color]
            if recalled[n] is None:
                recalled[n], choices[old] = choices[old], None
        return recalled

    def keep(self, boxes: Sequence[Box], choices: Sequence[int]) -> None:
        """Store this frame's boxes and choices instead of the last frame's."""
        by_color: dict[str, list[int]] = {}
        for n, box in enumerate(boxes):
            by_color.setdefault(box.color, []).append(n)
        self.last = {
            color: (np.array([boxes[n].xyxy for n in same], dtype=float), [choices[n] for n in same])
            for color, same in by_color.items()
        }


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of one box (4,) with each of `others` (L, 4), (L,)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])  # (L, 2)
    intersection = sides.clip(0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return intersection / np.maximum(areas - intersection, 1e-9)


def draw_boxes(image: Image.Image, boxes: Sequence[Box], memory: LabelMemory | None = None) -> Image.Image:
    """Draw boxes on a copy of an image, the last one on top; lines and fonts scale with the image.

    A label that would cover another one is placed elsewhere at its box, if there is room.

    Args:
        memory: for videos, the same object for all frames: labels keep their positions if there is room.
    """
    drawn = image.convert("RGB").copy()
    canvas = ImageDraw.Draw(drawn, "RGBA")
    side = min(max(drawn.size), MAX_ASPECT * min(drawn.size))
    line = max(1, round(side / 320))
    size = max(10, side / 52)
    for box in boxes:
        x0, y0, x1, y1 = (round(value) for value in box.xyxy)
        canvas.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=box.color, width=line)
    longest = max(LONGEST * drawn.width, 10 * size)  # about 20 characters in a small image
    labelled = [_fitted(box, size, longest) for box in boxes if box.label]
    # labels go on top of all lines
    for (box, font), position in zip(labelled, _place_labels(canvas, labelled, drawn.size, memory), strict=True):
        _draw_label(canvas, box, font, position)
    return drawn


def _fitted(box: Box, size: float, width: float) -> tuple[Box, Font]:
    """The box with its label shortened to a width, and the label's font."""
    font = load_font(size, box.label)
    return box._replace(label=shortened(box.label, font, width)), font


def _place_labels(
    canvas: ImageDraw.ImageDraw, labelled: Sequence[tuple[Box, Font]], size: tuple[int, int], memory: LabelMemory | None
) -> list[Rectangle]:
    """The position of each label; boxes known from the last frame choose first, then those drawn on top."""
    boxes = [box for box, _ in labelled]
    recalled: Sequence[int | None] = memory.recall(boxes) if memory else [None] * len(boxes)
    taken = np.full((len(boxes), 4), np.nan)
    choices = [0] * len(boxes)
    for n in sorted(range(len(boxes)), key=lambda n: (recalled[n] is None, -n)):
        choices[n], taken[n] = _place_label(canvas, *labelled[n], size, taken, recalled[n])
    if memory:
        memory.keep(boxes, choices)
    return [tuple(position) for position in taken.tolist()]


def _place_label(
    canvas: ImageDraw.ImageDraw, box: Box, font: Font, size: tuple[int, int], taken: np.ndarray, first: int | None
) -> tuple[int, Rectangle]:
    """The first free position of a label: `first` if given, else above, inside, below, or some lines higher or lower.

    All positions are within the image.

    Returns:
        the position's rank in this order, and the position.
    """
    left, top, right, bottom = canvas.textbbox((0, 0), box.label, font=font)
    width, height = round(right - left) + 6, round(bottom - top) + 4
    x0, y0, x1, y1 = (round(value) for value in box.xyxy)
    lowest = max(0, size[1] - height)
    rows = [y0 - height, y0, y1, y1 - height, *(y0 + k * height for k in (1, -2, 2, -3, 3))]
    columns = [min(max(0, x), max(0, size[0] - width)) for x in (x0, x1 - width)]
    positions: list[Rectangle] = [(x, y, x + width, y + height) for x in columns for y in rows]
    ranks = [rank for rank in range(len(positions)) if 0 <= positions[rank][1] <= lowest]
    if first in ranks:
        ranks = [first, *ranks]
    if not ranks:
        x, y = columns[0], min(max(0, y0), lowest)
        return 0, (x, y, x + width, y + height)
    free = first_free([positions[rank] for rank in ranks], taken)
    rank = ranks[free or 0]
    return rank, positions[rank]


def first_free(candidates: Sequence[Rectangle], taken: np.ndarray) -> int | None:
    """The index of the first candidate that overlaps none of `taken` (T, 4), whose rows may be NaN; None if all do."""
    if not candidates:
        return None
    left, top, right, bottom = np.array(candidates).T[:, :, None]  # (P, 1) each
    x0, y0, x1, y1 = taken.T  # (T,) each
    near = (left.min() < x1) & (x0 < right.max()) & (top.min() < y1) & (y0 < bottom.max())  # (T,)
    x0, y0, x1, y1 = taken[near].T
    covered = (left < x1) & (x0 < right) & (top < y1) & (y0 < bottom)  # (P, T)
    return next((n for n, overlaps in enumerate(covered.any(1)) if not overlaps), None)


def _draw_label(canvas: ImageDraw.ImageDraw, box: Box, font: Font, position: Rectangle) -> None:
    left, top, _, _ = canvas.textbbox((0, 0), box.label, font=font)
    canvas.rectangle(position, fill=f"{box.color}D8")
    canvas.text((position[0] + 3 - left, position[1] + 2 - top), box.label, fill="white", font=font)


def with_legend(image: Image.Image, legend: Sequence[tuple[str, str]]) -> Image.Image:
    """Add a legend of (text, colour) pairs below the image; entries wrap to further rows if it is narrow."""
    size = min(max(11, max(image.size) / 48), MAX_LEGEND_SIZE)
    font = load_font(size)
    row = round(size * 1.9)
    corners, x, y = [], row // 3, 0
    for text, _ in legend:
        width = round(font.getlength(text)) + 2 * row
        if x + width > image.width and x > row // 3:
            x, y = row // 3, y + row
        corners.append((x, y))
        x += width
    strip = Image.new("RGB", (image.width, image.height + y + row), "white")
    strip.paste(image, (0, 0))
    canvas = ImageDraw.Draw(strip)
    for (text, color), (left, top) in zip(legend, corners, strict=True):
        top += image.height + row // 4
        canvas.rectangle((left, top, left + row // 2, top + row // 2), fill=color)
        canvas.text((left + row * 0.7, top + row // 4), text, fill="black", font=font, anchor="lm")
    return strip
