"""Boxes with labels over an image. Pure: an image in, an image out."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from .fonts import Font, load_font

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow and black left out.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

LARGEST = 24  # height of a legend's letters, in pixels


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
    """A copy of the image with boxes drawn over it, the last one on top; lines and letters grow with the image."""
    drawn = image.convert("RGB").copy()
    canvas = ImageDraw.Draw(drawn, "RGBA")
    side = max(drawn.size)
    line = max(1, round(side / 320))
    size = max(10, side / 52)
    for box in boxes:
        x0, y0, x1, y1 = (round(value) for value in box.xyxy)
        canvas.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=box.color, width=line)
    for box in boxes:  # over all the lines
        if box.label:
            _draw_label(canvas, box, load_font(size, box.label), drawn.size)
    return drawn


def _draw_label(canvas: ImageDraw.ImageDraw, box: Box, font: Font, size: tuple[int, int]) -> None:
    """Above the box, or inside where there is no room, and never out of the image."""
    left, top, right, bottom = canvas.textbbox((0, 0), box.label, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = min(max(0, round(box.xyxy[0])), max(0, size[0] - width))
    y = round(box.xyxy[1]) - height
    y = y if y >= 0 else min(max(0, round(box.xyxy[1])), max(0, size[1] - height))
    canvas.rectangle((x, y, x + width, y + height), fill=f"{box.color}D8")
    canvas.text((x + 3 - left, y + 2 - top), box.label, fill="white", font=font)


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
