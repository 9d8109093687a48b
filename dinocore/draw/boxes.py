"""Boxes with labels over an image. Pure: an image in, an image out."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .fonts import Font, load_font

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow and black left out.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

LARGEST = 24  # height of a legend's letters, in pixels
LONGEST = 0.3  # of a label, by the width of the image
WIDEST = 2.5  # long side by short side; of a longer image, lines and letters are those of one like this

Place = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class Box(NamedTuple):
    """One box to draw."""

    xyxy: Sequence[float]  # in pixels
    color: str
    label: str = ""


def class_color(label: int) -> str:
    """The same colour for the same class in every image; past the palette, hues that repeat late."""
    if label < len(PALETTE):
        return PALETTE[label]
    red, green, blue = colorsys.hls_to_rgb(label * 0.618034 % 1, 0.42, 0.85)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of the image with boxes drawn over it, the last one on top; lines and letters grow with the image.

    A label that would cover another one goes elsewhere at its box, if there is room.
    """
    drawn = image.convert("RGB").copy()
    canvas = ImageDraw.Draw(drawn, "RGBA")
    side = min(max(drawn.size), WIDEST * min(drawn.size))
    line = max(1, round(side / 320))
    size = max(10, side / 52)
    for box in boxes:
        x0, y0, x1, y1 = (round(value) for value in box.xyxy)
        canvas.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=box.color, width=line)
    longest = max(LONGEST * drawn.width, 10 * size)  # some 20 letters in a small image
    labelled = [_fitted(box, load_font(size, box.label), longest) for box in boxes if box.label]
    places = np.full((len(labelled), 4), np.nan)
    for n, (box, font) in reversed(list(enumerate(labelled))):  # what is on top chooses first
        places[n] = _place_label(canvas, box, font, drawn.size, places)
    for (box, font), place in zip(labelled, places.tolist(), strict=True):  # over all the lines
        _draw_label(canvas, box, font, tuple(place))
    return drawn


def _fitted(box: Box, font: Font, width: float) -> tuple[Box, Font]:
    """With the middle of a long label left out: the end may be a score."""
    label = box.label
    if font.getlength(label) <= width:
        return box, font
    end = label[-6:]
    start = next((n for n in range(len(label) - 6, 0, -1) if font.getlength(f"{label[:n]}…{end}") <= width), 1)
    return box._replace(label=f"{label[:start]}…{end}"), font


def _place_label(canvas: ImageDraw.ImageDraw, box: Box, font: Font, size: tuple[int, int], taken: np.ndarray) -> Place:
    """Above the box, or else inside, below, or a line higher or lower; never out of the image."""
    left, top, right, bottom = canvas.textbbox((0, 0), box.label, font=font)
    width, height = round(right - left) + 6, round(bottom - top) + 4
    x0, y0, x1, y1 = (round(value) for value in box.xyxy)
    lowest = max(0, size[1] - height)
    rows = [y0 - height, y0, y1, y1 - height, *(y0 + k * height for k in (1, -2, 2, -3, 3))]
    columns = [min(max(0, x), max(0, size[0] - width)) for x in (x0, x1 - width)]
    places = [(x, y, x + width, y + height) for x in columns for y in rows if 0 <= y <= lowest]
    x, y = columns[0], min(max(0, y0), lowest)
    return first_free(places, taken) or (places[0] if places else (x, y, x + width, y + height))


def first_free(places: Sequence[Place], taken: np.ndarray) -> Place | None:
    """The first of some places that covers none of those in `taken`, (T, 4); rows of NaN are not taken yet."""
    if not places:
        return None
    left, top, right, bottom = np.array(places).T[:, :, None]  # (P, 1) each
    x0, y0, x1, y1 = taken.T  # (T,) each
    covered = (left < x1) & (x0 < right) & (top < y1) & (y0 < bottom)  # (P, T)
    return next((place for place, hit in zip(places, covered.any(1), strict=True) if not hit), None)


def _draw_label(canvas: ImageDraw.ImageDraw, box: Box, font: Font, place: Place) -> None:
    left, top, _, _ = canvas.textbbox((0, 0), box.label, font=font)
    canvas.rectangle(place, fill=f"{box.color}D8")
    canvas.text((place[0] + 3 - left, place[1] + 2 - top), box.label, fill="white", font=font)


def with_legend(image: Image.Image, legend: Sequence[tuple[str, str]]) -> Image.Image:
    """Put a strip with the meaning of the colours under the image; rows wrap where it is narrow."""
    size = min(max(11, max(image.size) / 48), LARGEST)
    font = load_font(size)
    row = round(size * 1.9)
    places, x, y = [], row // 3, 0
    for text, _ in legend:
        width = round(font.getlength(text)) + 2 * row
        if x + width > image.width and x > row // 3:
            x, y = row // 3, y + row
        places.append((x, y))
        x += width
    strip = Image.new("RGB", (image.width, image.height + y + row), "white")
    strip.paste(image, (0, 0))
    canvas = ImageDraw.Draw(strip)
    for (text, color), (left, top) in zip(legend, places, strict=True):
        top += image.height + row // 4
        canvas.rectangle((left, top, left + row // 2, top + row // 2), fill=color)
        canvas.text((left + row * 0.7, top + row // 4), text, fill="black", font=font, anchor="lm")
    return strip
