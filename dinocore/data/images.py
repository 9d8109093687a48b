"""From a picture file to upright 8-bit RGB, whatever the file holds."""

import stat
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import DataError

# MPO comes with JPEG; rarely used decoders are where the holes are
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .mpo .png .webp .bmp .tif .tiff .gif .ppm .pgm".split())


def read_image(path: Path, max_pixels: int) -> Image.Image:
    """Decode a picture: first frame, EXIF orientation applied, transparency over white, 16 bits scaled to 8.

    Raises:
        DataError: the file is missing, is not a picture, is damaged, or has more than `max_pixels` pixels.
    """
    with open_image(path, max_pixels) as image:
        try:
            image.load()
            return to_rgb(_upright(image))
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
            raise DataError(f"{path} is damaged: {error}") from error


def image_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Width and height of the upright picture, from the file's header.

    Raises:
        DataError: as for `read_image`, but damage behind the header goes unnoticed.
    """
    with open_image(path, max_pixels) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
        return (height, width) if turned else (width, height)


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """Read a picture's header only, with our limits.

    Raises:
        DataError: the file is missing, is not a picture, or has more than `max_pixels` pixels.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a limit of our own
            image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise DataError(f"there is no picture {path}") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is not a picture in a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} was not decoded: {error}") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be opened: {error}") from error
    if image.width * image.height > max_pixels:
        image.close()
        raise DataError(
            f"{path} has {image.width} x {image.height} pixels, more than data.max_pixels = {max_pixels}; "
            "raise it with --set data.max_pixels=N if the picture is to be trusted"
        )
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error):  # damaged EXIF says nothing
        return image


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
    values = np.nan_to_num(pixels.astype(np.float64))
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = (0.0, 1.0) if 0 <= low and high <= 1 else (low, high)
    elif 0 <= low and high <= 65535:
        low, high = 0.0, 65535.0
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
