"""Panels of a figure: a part of an image, faded so that marks stand out, with readable text on top."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from .boxes import LONGEST, first_free
from .fonts import load_font, shortened

FINE = 2  # panels are drawn this many times larger and then reduced, for smooth lines
INK, PAPER, GREY = "#222222", "#FFFFFF", "#8A8A8A"
OUTSIDE = "#CFCFCF"  # what is not in the image

Corners = tuple[float, float, float, float]


class Panel(NamedTuple):
    """A drawing of a region of an image; places are given in the image's pixels."""

    image: Image.Image  # FINE times as large as it will be
    canvas: ImageDraw.ImageDraw
    region: Corners
    scale: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the image lies in the panel."""
        return (x - self.region[0]) * self.scale, (y - self.region[1]) * self.scale

    def box(self, xyxy: Sequence[float], color: str, width: float = 2, halo: bool = False) -> None:
        """Outline a box, if asked with a white edge."""
        (x0, y0), (x1, y1) = self.at(*xyxy[:2]), self.at(*xyxy[2:])
        (x0, x1), (y0, y1), line = sorted((x0, x1)), sorted((y0, y1)), round(width * FINE)  # noise may swap corners
        if halo:
            edge = (x0 - FINE, y0 - FINE, x1 + FINE, y1 + FINE)
            self.canvas.rectangle(edge, outline=PAPER, width=line + 2 * FINE)
        self.canvas.rectangle((x0, y0, x1, y1), outline=color, width=line)

    def dot(self, x: float, y: float, radius: float, color: str, opacity: float) -> None:
        """A disc with a thin white edge; radius in pixels of the figure, opacity from 0 to 1."""
        (x, y), r = self.at(x, y), radius * FINE
        if -2 * r < x < self.image.width + 2 * r and -2 * r < y < self.image.height + 2 * r:
            alpha = round(255 * opacity)
            shape = (x - r, y - r, x + r, y + r)
            self.canvas.ellipse(shape, fill=f"{color}{alpha:02x}", outline=f"#FFFFFF{alpha:02x}", width=FINE // 2)

    def finished(self) -> Image.Image:
        """The panel in its own size."""
        return self.image.reduce(FINE)


def open_panel(image: Image.Image, region: Corners, size: tuple[int, int], fade: float = 0.35) -> Panel:
    """A panel of `size` (width, height) that shows `region` of the image, which may reach beyond it.

    Args:
        fade: how far the image is taken to white; its colours lose as much.
    """
    width, height = (FINE * side for side in size)
    scale = width / (region[2] - region[0])
    whole = Image.new("RGB", (width, height), OUTSIDE)
    inside = (max(0, int(region[0])), max(0, int(region[1])),
              min(image.width, int(region[2]) + 1), min(image.height, int(region[3]) + 1))  # fmt: skip
    if inside[0] < inside[2] and inside[1] < inside[3]:
        part = image.convert("RGB").crop(inside)
        part = ImageEnhance.Color(part).enhance(1 - fade)
        part = Image.blend(part, Image.new("RGB", part.size, PAPER), fade)
        fitted = max(1, round(part.width * scale)), max(1, round(part.height * scale))
        part = part.resize(fitted, Image.Resampling.BICUBIC)
        whole.paste(part, (round((inside[0] - region[0]) * scale), round((inside[1] - region[1]) * scale)))
    return Panel(whole, ImageDraw.Draw(whole, "RGBA"), region, scale)


def whole_panel(image: Image.Image, most: tuple[int, int], fade: float = 0.35) -> Panel:
    """A panel with the whole image, as large as fits into `most` (width, height)."""
    scale = min(most[0] / image.width, most[1] / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return open_panel(image, (0, 0, image.width, image.height), size, fade)


class Tag(NamedTuple):
    """Words in a coloured box, such as the name of a box at its corner."""

    text: str
    x: float
    y: float
    color: str


def put_tags(
    canvas: ImageDraw.ImageDraw, area: tuple[int, int], tags: Sequence[Tag], size: int, ink: str = "white",
    outline: str | None = None,
) -> None:  # fmt: skip
    """Tags with letters of this size, moved into the area (width, height).

    One that would cover another is moved by a line or two, or left out if that does not help. Of a text that is too
    long the middle is left out.
    """
    height, edge = 1.2 * size, size / 5
    longest = max(LONGEST * area[0], 10 * size)
    taken = np.full((len(tags), 4), np.nan)
    for n, (text, x, y, color) in enumerate(tags):
        font = load_font(size, text)
        text = shortened(text, font, longest)
        width = font.getlength(text) + 2 * edge
        left, top = min(max(0, x), area[0] - width), min(max(0, y), area[1] - height)
        tops = [row for lines in (0, 1, -1, 2, -2) if 0 <= (row := top + lines * height) <= area[1] - height]
        places = [(left, row, left + width, row + height) for row in tops]
        if (free := first_free(places, taken)) is None:
            continue
        place = taken[n] = places[free]
        canvas.rectangle(place, fill=color, outline=outline)
        canvas.text((left + edge, place[1] + height / 2), text, fill=ink, font=font, anchor="lm")


def write(
    canvas: ImageDraw.ImageDraw, x: float, y: float, text: str, size: float = 18, color: str = INK, anchor: str = "lm",
    room: float = math.inf,
) -> int:  # fmt: skip
    """A line of text, its `anchor` as Pillow has it; where it ends, if it begins at x.

    Args:
        room: pixels; of a longer text the middle is left out.
    """
    font = load_font(size, text)
    text = shortened(text, font, room)
    canvas.text((x, y), text, fill=color, font=font, anchor=anchor)
    return round(x + font.getlength(text))


def legend(
    sheet: ImageDraw.ImageDraw, left: int, top: int, entries: Sequence[tuple[str, str]], size: int = 18
) -> int:  # fmt: skip
    """Squares of a colour and what they mean, in one row from (left, top); where the row ends."""
    for text, color in entries:
        sheet.rectangle((left, top + 3, left + size - 4, top + size - 1), fill=color)
        left = write(sheet, left + size + 2, top + size / 2 + 1, text, size) + size + 6
    return left
