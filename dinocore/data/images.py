"""From a picture file to upright 8-bit RGB, whatever the file holds."""

import logging
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import DataError

# MPO comes with JPEG; rarely used decoders are where the holes are
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
DAMAGE = (  # what Pillow's decoders raise
    *(OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError),
    *(EOFError, MemoryError, struct.error, zlib.error),
)
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else it prints about damaged files on its own


def read_image(path: Path, max_pixels: int) -> Image.Image:
    """Decode a picture: first frame, EXIF orientation applied, transparency over white, 16 bits scaled to 8.

    Raises:
        DataError: the file is missing, is not a picture, is damaged, or has more than `max_pixels` pixels.
    """
    with _opened(path, max_pixels) as image:
        try:
            image.load()
            return upright_rgb(image)
        except DAMAGE as error:
            raise DataError(f"{path} is damaged: {error}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turned as its metadata says, in RGB, and without that metadata, so that it is not turned twice."""
    turn = TURNS.get(_orientation(image))
    turned = to_rgb(image if turn is None else image.transpose(turn))
    turned.info = {}
    return turned


def image_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Width and height of the upright picture, from the file's header.

    Raises:
        DataError: as for `read_image`, but damage behind the header goes unnoticed.
    """
    with _opened(path, max_pixels) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """A picture whose header is read, within our limits and without Pillow's warnings about size and metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(path, max_pixels) as image:
            yield image


def _open(path: Path, max_pixels: int) -> Image.Image:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is not a regular file")
        image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise DataError(f"there is no picture {path}") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is not a picture in a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} was not decoded: {error} Scale it down or cut it into parts.") from None
    except DAMAGE as error:
        raise DataError(f"{path} cannot be opened: {error}") from error
    if image.width * image.height > max_pixels:
        image.close()
        raise DataError(
            f"{path} has {image.width} x {image.height} pixels, more than data.max_pixels = {max_pixels}; "
            "raise it with --set data.max_pixels=N if the picture is to be trusted"
        )
    return image


def _orientation(image: Image.Image) -> int:
    """1 to 8 as the EXIF data say; 1, upright, where they say nothing sensible."""
    if image.format == "TIFF":  # Pillow turns these itself, pixels and size
        return 1
    try:
        said = image.getexif().get(ORIENTATION)
    except DAMAGE:
        return 1
    return said if said in TURNS else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB: deep pixels are scaled and not clipped, transparency shows white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_scale_to_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _scale_to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Deep grey to 8 bits: unit floats by 255, 16 bits by 1/257, anything else from its least to its greatest."""
    values = pixels.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = finite.min(initial=0.0), finite.max(initial=0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
