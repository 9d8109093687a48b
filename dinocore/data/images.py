"""From an image file to upright 8-bit RGB, whatever the file holds."""

import io
import logging
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..config import DataConfig
from ..errors import DataError

# MPO comes with JPEG; rarely used decoders are where the holes are
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(("AVIF",) if features.check("avif") else ()))
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
) | ({".avif"} if "AVIF" in FORMATS else set())
IMAGE_SUFFIXES = SUFFIXES | {".avif", ".heic", ".heif", ".jp2", ".jxl"}  # also those that are named and not read
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
DAMAGE = (  # what Pillow's decoders raise
    *(OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError),
    *(EOFError, MemoryError, struct.error, zlib.error),
)
ORIENTATION = 0x0112  # the EXIF tag
BITS, PLANAR = 258, 284  # TIFF's tags
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BACK = {6: 8, 8: 6}  # what undoes a turn; the others undo themselves
Side = TypeVar("Side", int, float)
MIN_ROWS = 0.95  # of a JPEG without its last bytes that must be there
END_OF_IMAGE, TAIL = b"\xff\xd9", 4096  # JPEG's last two bytes; behind them cameras put up to so many of their own
FILLINGS = (b"", *(bytes([byte]) * 64 for byte in (0x00, 0x55, 0xAA, 0xCC, 0x33, 0xFE, 0x0F, 0xF0)))
LOGGER = logging.getLogger("dinocore.data")
_told: set[str] = set()  # files that a warning has named

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else it prints about damaged files on its own


class Decoded(NamedTuple):
    """An upright RGB image in its own size, or smaller where that was enough."""

    image: Image.Image
    size: tuple[int, int]  # width and height of the file's image
    frame: tuple[float, float, float, float]  # where it lies in `image`: left, top, right, bottom; see `read_reduced`


def read_image(path: Path, config: DataConfig) -> Image.Image:
    """Decode an image: first frame, EXIF orientation applied, transparency over white, 16 bits scaled to 8.

    Args:
        config: its max_pixels, exif and depth.

    Raises:
        DataError: the file is missing, is not an image, is damaged, or has more pixels than are allowed.
    """
    with _opened(path, config.max_pixels) as image, _damage_named(path):
        return loaded_rgb(image, config)


def decode_image(content: bytes, config: DataConfig) -> Image.Image:
    """As `read_image`, from the bytes of a file.

    Raises:
        DataError: as for `read_image`.
    """
    path = Path("the image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            raise _problem(f"it is not an image in a known format ({', '.join(FORMATS)})", "FORMAT", path) from None
        except Image.DecompressionBombError as error:
            raise _problem(f"it was not decoded: {error}", "LARGE", path) from None
        except DAMAGE as error:
            raise _problem(f"it cannot be opened: {error}", "DAMAGED", path) from error
        with image, _damage_named(path):
            _check_header(image, path, config.max_pixels)
            return loaded_rgb(image, config)


def read_reduced(path: Path, config: DataConfig, min_decode_size: tuple[int, int]) -> Decoded:
    """As `read_image`, but a JPEG at 1/2, 1/4 or 1/8 of its size where that is no less than `min_decode_size`.

    The decoder makes 1001 pixels by 1/2 into 501: only half of the last one belongs to the image, so that the frame
    ends at 500.5, or, if the image was then turned, begins at 0.5.

    Args:
        min_decode_size: width and height of the upright image.

    Raises:
        DataError: as for `read_image`.
    """
    with _opened(path, config.max_pixels) as image, _damage_named(path):
        size, orientation = image.size, _orientation(image, config.exif) if isinstance(image, JpegImageFile) else 1
        reduced = image.draft(None, _swapped(min_decode_size, orientation))  # None: not a JPEG
        upright = loaded_rgb(image, config)
        if reduced is None:
            return Decoded(upright, upright.size, (0, 0, *upright.size))
        width, height = _swapped(reduced[1][2:], orientation)
        left = upright.width - width if orientation in (2, 3, 6, 7) else 0
        top = upright.height - height if orientation in (3, 4, 7, 8) else 0
        return Decoded(upright, _swapped(size, orientation), (left, top, left + width, top + height))


def loaded_rgb(image: Image.Image, config: DataConfig) -> Image.Image:
    """Turned as its metadata says, in RGB, and without that metadata, so that it is not turned twice."""
    turn = TURNS.get(_orientation(image, config.exif))  # before loading, with which Pillow forgets a TIFF's
    image = _loaded(image)
    turned = to_rgb(image if turn is None else image.transpose(turn), config.depth)
    turned.info = {}
    return turned


def _loaded(image: Image.Image) -> Image.Image:
    """Decoded; of a JPEG that lacks its last bytes what there is, if that is at least MIN_ROWS of its rows."""
    try:
        image.load()
        return image
    except OSError as error:
        path = getattr(image, "filename", "")
        if not (isinstance(image, JpegImageFile) and path and "truncated" in str(error)):
            raise
        mended, share = _mended(Path(path).read_bytes(), image.size)
        if share < MIN_ROWS:
            raise OSError(f"{error}; {share:.0%} of its rows are there") from error
    if path not in _told:
        _told.add(path)
        LOGGER.warning("%s lacks its last bytes; %.0f %% of its rows are there and used", path, 100 * share)
    return mended


def _mended(data: bytes, size: tuple[int, int]) -> tuple[Image.Image, float]:
    """A cut JPEG, decoded to `size`, and the fraction of its rows that are there.

    It is ended several times: with nothing in between, and with bytes of different meanings. The first row in which any
    two differ is the first one that the file does not determine.
    """
    ended = []
    for filling in FILLINGS:
        image = Image.open(io.BytesIO(data.rstrip(b"\xff") + filling + END_OF_IMAGE), formats=("JPEG",))
        image.draft(None, size)
        image.load()
        ended.append(image)
    first, *others = (np.asarray(image) for image in ended)
    differ = np.flatnonzero(np.any([(first != other).reshape(len(first), -1).any(1) for other in others], axis=0))
    return ended[0], float(differ[0] / len(first)) if len(differ) else 1.0


def share_of_rows(path: Path, config: DataConfig) -> float:
    """The share of a JPEG's rows that are there: 1 if the file ends as it should, and 0 if it ends in its header.

    Raises:
        DataError: as for `image_size`.
    """
    with _opened(path, config.max_pixels) as image:
        if not isinstance(image, JpegImageFile):
            return 1.0
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL))
                if END_OF_IMAGE in file.read():
                    return 1.0
            return _mended(path.read_bytes(), image.size)[1]
        except DAMAGE:
            return 0.0


def image_size(path: Path, config: DataConfig) -> tuple[int, int]:
    """Width and height of the image as `read_image` gives it, from the file's header.

    Raises:
        DataError: as for `read_image`, but damage behind the header goes unnoticed.
    """
    return read_header(path, config).size


class Header(NamedTuple):
    """What a file's header says."""

    size: tuple[int, int]  # width and height of the upright image
    frames: int  # images in the file
    turned: int  # EXIF's orientation, 1 to 8, if it is applied; 5 and more swap width and height


def read_header(path: Path, config: DataConfig) -> Header:
    """A file's header, with the size that `read_image` gives.

    Raises:
        DataError: as for `image_size`.
    """
    with _opened(path, config.max_pixels) as image:
        turned = _orientation(image, config.exif)
        size = _swapped(image.size, turned)
        try:
            return Header(size, getattr(image, "n_frames", 1), turned)
        except DAMAGE:  # in a later one
            return Header(size, 1, turned)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever a decoder raises, as an error that names the file."""
    try:
        yield
    except DAMAGE as error:
        raise _problem(f"{path} is damaged: {error}", "DAMAGED", path) from error


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose header is read, within our limits and without Pillow's warnings about size and metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(path, max_pixels) as image:
            yield image


def _open(path: Path, max_pixels: int) -> Image.Image:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _problem(f"{path} is not a regular file", "FORMAT", path)
        image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise _problem(f"there is no image {path}", "MISSING", path) from None
    except UnidentifiedImageError:
        known, film = ", ".join(FORMATS), path.suffix.lower() in VIDEOS
        fix = f"make images of a video first: ffmpeg -i {path} frame-%05d.jpg" if film else ""
        if path.suffix.lower() in IMAGE_SUFFIXES - SUFFIXES:
            fix = f"convert it first: magick {path} {path.with_suffix('.jpg')}"
        raise _problem(f"{path} is not an image in a known format ({known})", "FORMAT", path, fix) from None
    except Image.DecompressionBombError as error:
        raise _problem(f"{path} was not decoded: {error}", "LARGE", path) from None
    except DAMAGE as error:
        raise _problem(f"{path} cannot be opened: {error}", "DAMAGED", path) from error
    _check_header(image, path, max_pixels)
    return image


def _check_header(image: Image.Image, path: Path, max_pixels: int) -> None:
    if _in_deep_planes(image):
        image.close()
        raise _problem(f"{path} holds 16-bit colours plane after plane, which Pillow misreads", "FORMAT", path,
                       "save it with its colours together (planar configuration 1), or as PNG")  # fmt: skip
    if image.width * image.height > max_pixels:
        image.close()
        what = f"{path} has {image.width} x {image.height} pixels, more than data.max_pixels = {max_pixels}"
        trust = "raise it with --set data.max_pixels=N if the image is to be trusted"
        raise _problem(what, "LARGE", path, trust)


def _in_deep_planes(image: Image.Image) -> bool:
    """A TIFF with a plane for each colour and more than 8 bits: Pillow takes each byte for a pixel (12.0)."""
    if not isinstance(image, TiffImageFile) or image.tag_v2.get(PLANAR) != 2:
        return False
    bits = image.tag_v2.get(BITS, (8,))
    return len(bits) > 1 and max(bits) > 8


def _problem(what: str, kind: str, path: Path, fix: str = "") -> DataError:
    code = f"DATA-IMAGE-{kind}"
    return DataError(what, code=code, where=path, fix=fix)


def _orientation(image: Image.Image, exif: bool) -> int:
    """1 to 8 as the EXIF data say; 1, upright, where they say nothing sensible or don't count."""
    turns_itself = image.format == "TIFF"  # Pillow does, pixels and size
    if exif == turns_itself:
        return 1
    try:
        said = image.getexif().get(ORIENTATION)
    except DAMAGE:
        return 1
    said = said if said in TURNS else 1
    return BACK.get(said, said) if turns_itself else said


def _swapped(sides: tuple[Side, Side], orientation: int) -> tuple[Side, Side]:
    """Width and height as stored to those of the upright image, or back."""
    return (sides[1], sides[0]) if orientation >= 5 else sides


def to_rgb(image: Image.Image, depth: str = "full") -> Image.Image:
    """Any Pillow mode to RGB: deep pixels are scaled and not clipped, transparency shows white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_scale_to_bytes(np.asarray(image), depth)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _scale_to_bytes(pixels: np.ndarray, depth: str) -> np.ndarray:
    """Deep grey to 8 bits: unit floats by 255, 16 bits by 1/257; else, or if asked to, from least to greatest."""
    values = pixels.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = finite.min(initial=0.0), finite.max(initial=0.0)
    if depth == "minmax":
        low, high = finite.min(initial=high), finite.max(initial=low)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    full = 1.0 if np.issubdtype(pixels.dtype, np.floating) else 65535.0
    if depth == "full" and low >= 0 and high <= full:
        low, high = 0.0, full
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
