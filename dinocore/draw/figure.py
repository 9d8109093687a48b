"""Panels of a figure: a part of an image, faded so that marks stand out, with readable text on top."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from .boxes import LONGEST, first_free
from .fonts import load_font, shortened

UPSCALE = 2  # panels are drawn this many times larger and then reduced, for smooth lines
INK, PAPER, GREY = "#222222", "#FFFFFF", "#8A8A8A"
OUTSIDE = "#CFCFCF"  # the area beyond the image

Corners = tuple[float, float, float, float]


class Panel(NamedTuple):
    """A drawing over a region of an image; coordinates are in the image's pixels."""

    image: Image.Image  # UPSCALE times larger than the finished panel
    canvas: ImageDraw.ImageDraw
    region: Corners
    scale: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The coordinates in the panel of a point of the image."""
        return (x - self.region[0]) * self.scale, (y - self.region[1]) * self.scale

    def box(self, xyxy: Sequence[float], color: str, width: float = 2, halo: bool = False) -> None:
        """Draw the outline of a box, with a white edge if `halo`."""
        (x0, y0), (x1, y1) = self.at(*xyxy[:2]), self.at(*xyxy[2:])
        # denoising noise may swap corners
        (x0, x1), (y0, y1), line = sorted((x0, x1)), sorted((y0, y1)), round(width * UPSCALE)
        if halo:
            edge = (x0 - UPSCALE, y0 - UPSCALE, x1 + UPSCALE, y1 + UPSCALE)
            self.canvas.rectangle(edge, outline=PAPER, width=line + 2 * UPSCALE)
        self.canvas.rectangle((x0, y0, x1, y1), outline=color, width=line)

    def dot(self, x: float, y: float, radius: float, color: str, opacity: float) -> None:
        """Draw a disc with a thin white edge; radius in pixels of the finished panel, opacity from 0 to 1."""
        (x, y), r = self.at(x, y), radius * UPSCALE
        if -2 * r < x < self.image.width + 2 * r and -2 * r < y < self.image.height + 2 * r:
            alpha = round(255 * opacity)
            shape = (x - r, y - r, x + r, y + r)
            self.canvas.ellipse(shape, fill=f"{color}{alpha:02x}", outline=f"#FFFFFF{alpha:02x}", width=UPSCALE // 2)

    def finished(self) -> Image.Image:
        """The panel, reduced to its final size."""
        return self.image.reduce(UPSCALE)


def open_panel(image: Image.Image, region: Corners, size: tuple[int, int], fade: float = 0.35) -> Panel:
    """A panel of `size` (width, height) that shows a region of an image, which may extend beyond it.

    Args:
        fade: how much to blend the image with white and to reduce its saturation, from 0 to 1.
    """
    width, height = (UPSCALE * side for side in size)
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


def whole_panel(image: Image.Image, max_size: tuple[int, int], fade: float = 0.35) -> Panel:
    """A panel that shows a whole image, as large as fits into `max_size` (width, height)."""
    scale = min(max_size[0] / image.width, max_size[1] / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return open_panel(image, (0, 0, image.width, image.height), size, fade)


class Tag(NamedTuple):
    """A text on a coloured background, such as the name of a box at its corner."""

    text: str
    x: float
    y: float
    color: str


def put_tags(
    canvas: ImageDraw.ImageDraw, area: tuple[int, int], tags: Sequence[Tag], size: int, ink: str = "white",
    outline: str | None = None,
) -> None:  # fmt: skip
    """Draw tags with a font of this size, moved into the area (width, height) if necessary.

    A tag that would cover another one is moved by one or two lines, or skipped if that does not help. Long texts are
    shortened in the middle.
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
        positions = [(left, row, left + width, row + height) for row in tops]
        if (free := first_free(positions, taken)) is None:
            continue
        position = taken[n] = positions[free]
        canvas.rectangle(position, fill=color, outline=outline)
        canvas.text((left + edge, position[1] + height / 2), text, fill=ink, font=font, anchor="lm")


def write(
    canvas: ImageDraw.ImageDraw, x: float, y: float, text: str, size: float = 18, color: str = INK, anchor: str = "lm",
    room: float = math.inf,
) -> int:  # fmt: skip
    """Draw a line of text; returns the x coordinate of its end, if it is anchored on the left.

    Args:
        anchor: as in Pillow.
        room: width in pixels; a longer text is shortened in the middle.
    """
    font = load_font(size, text)
    text = shortened(text, font, room)
    canvas.text((x, y), text, fill=color, font=font, anchor=anchor)
    return round(x + font.getlength(text))


def legend(
    sheet: ImageDraw.ImageDraw, left: int, top: int, entries: Sequence[tuple[str, str]], size: int = 18
) -> int:  # fmt: skip
    """Draw a legend of (text, colour) pairs in one row from (left, top); returns the x coordinate of its end."""
    for text, color in entries:
        sheet.rectangle((left, top + 3, left + size - 4, top + size - 1), fill=color)
        left = write(sheet, left + size + 2, top + size / 2 + 1, text, size) + size + 6
    return left
