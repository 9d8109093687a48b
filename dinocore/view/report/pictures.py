"""Pictures as text, together no longer than they may be."""

import base64
import math
from collections.abc import Sequence
from io import BytesIO

from PIL import Image

LARGEST, SMALLEST = 1280, 96  # of the longer side, in pixels
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


def _encode(image: Image.Image, side: int) -> str:
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
