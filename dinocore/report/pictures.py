"""Pictures as text, together no longer than they may be."""

import base64
import math
from collections.abc import Sequence
from io import BytesIO

from PIL import Image

from .parts import Picture

LARGEST, SMALLEST = 2000, 96  # of the longer side, in pixels
PHOTOGRAPH = 1280  # the same, of those that wait for their page
QUALITY = 78


def fit_pictures(images: Sequence[Image.Image], room: int) -> list[str]:
    """Data URIs of JPEGs, all with the same longest side: the largest with which they fit.

    Args:
        room: bytes for all of them; where even the smallest size takes more, that is used.
    """
    side = LARGEST
    while True:
        found = [_encode(image, side) for image in images]
        total = sum(map(len, found))
        if total <= room or side == SMALLEST:
            return found
        largest = min(side, max(max(image.size) for image in images))
        side = max(SMALLEST, min(int(largest * math.sqrt(max(room, 1) / total) * 0.97), largest - 8))


def shrink(picture: Picture, side: int = PHOTOGRAPH) -> Picture:
    """The picture with its boxes, its longer side at most this, so that many of them can wait for their page."""
    scale = side / max(picture.image.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.image.width * scale)), max(1, round(picture.image.height * scale)))
    marks = [mark._replace(xyxy=[value * scale for value in mark.xyxy]) for mark in picture.marks]
    image = picture.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return picture._replace(image=image, marks=marks)


def _encode(image: Image.Image, side: int) -> str:
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
