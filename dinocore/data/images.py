"""From any image file to upright 8-bit RGB."""

import io
import logging
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..config import DataConfig
from ..errors import DataError
from ..system.extras import install_line
from ..words import typed
from .bands import conversion, has_unknown_band, refusal, refusal_of_unknown
from .cut_jpeg import END_OF_IMAGE, decode_cut

# MPO comes with JPEG; rarely used decoders are where the holes are
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(("AVIF",) if features.check("avif") else ()))
READ = ".jpg .jpeg .jpe .jfif .mpo .png .webp .bmp .tif .tiff .gif .ppm .pgm .heic .heif"
SUFFIXES = frozenset(READ.split() + [".avif"] * ("AVIF" in FORMATS))
IMAGE_SUFFIXES = SUFFIXES | {".avif", ".jp2", ".jxl"}  # including formats that are recognised but not read
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
VIDEOS = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".ogv"),
)
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
BACK = {6: 8, 8: 6}  # the inverse of a rotation; the others are their own inverse
Side = TypeVar("Side", int, float)
MIN_ROWS = 0.95  # fraction of a truncated JPEG's rows that must be there
TAIL = 4096  # bytes that cameras put behind the end of a JPEG, at most
LOGGER = logging.getLogger("dinocore.data")
_warned_of: set[str] = set()  # files already warned about

logging.getLogger("PIL").addHandler(logging.NullHandler())  # otherwise it prints about damaged files itself


class Decoded(NamedTuple):
    """An upright RGB image at its own size, or smaller if that is enough."""

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
    """Like `read_image`, from the bytes of a file.

    Raises:
        DataError: as for `read_image`.
    """
    path = Path("the image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = _identified(io.BytesIO(content))
        except UnidentifiedImageError:
            raise _problem(f"it is not an image in a known format ({', '.join(FORMATS)})", "FORMAT", path) from None
        except Image.DecompressionBombError as error:
            raise _problem(f"it could not be decoded: {error}", "LARGE", path) from None
        except DAMAGE as error:
            raise _problem(f"it cannot be opened: {error}", "DAMAGED", path) from error
        with image, _damage_named(path):
            _check_header(image, path, config.max_pixels)
            return loaded_rgb(image, config)


def pillow_rgb(image: Image.Image, config: DataConfig) -> Image.Image:
    """Like `read_image`, of an image that Pillow has opened but may not have decoded yet.

    Raises:
        DataError: it is damaged, or closed.
    """
    with _damage_named(Path(getattr(image, "filename", "") or "the image")):
        return loaded_rgb(image, config)


def read_reduced(path: Path, config: DataConfig, min_decode_size: tuple[int, int]) -> Decoded:
    """Like `read_image`, but a JPEG at 1/2, 1/4 or 1/8 of its size if that is at least `min_decode_size`.

    The decoder turns 1001 pixels at 1/2 into 501: only half of the last one belongs to the image, so the frame
    ends at 500.5 or, if the image was then rotated, starts at 0.5.

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
    """Rotated by its metadata, in RGB, and without that metadata, so that it is not rotated twice."""
    turn = TURNS.get(_orientation(image, config.exif))  # before loading, with which Pillow forgets a TIFF's
    unknown = isinstance(image, TiffImageFile) and has_unknown_band(image)
    image = _loaded(image)
    image = image.convert("RGB") if unknown else image  # and not over white
    turned = to_rgb(image if turn is None else image.transpose(turn), config.depth)
    turned.info = {}
    return turned


def _loaded(image: Image.Image) -> Image.Image:
    """Decode an image; a truncated JPEG is used if at least MIN_ROWS of its rows are there."""
    try:
        image.load()
        return image
    except OSError as error:
        path = getattr(image, "filename", "")
        if not (isinstance(image, JpegImageFile) and path and "truncated" in str(error)):
            raise
        mended, share = decode_cut(Path(path).read_bytes(), image.size)
        if share < MIN_ROWS:
            raise OSError(f"{error}; {share:.0%} of its rows are there") from error
    if path not in _warned_of:
        _warned_of.add(path)
        LOGGER.warning("%s is truncated; %.0f %% of its rows are there and used", path, 100 * share)
    return mended


def fraction_of_rows(path: Path, config: DataConfig) -> float:
    """The fraction of a JPEG's rows that are there: 1 if the file is complete, 0 if it ends in its header.

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
            return decode_cut(path.read_bytes(), image.size)[1]
        except DAMAGE:
            return 0.0


def image_size(path: Path, config: DataConfig) -> tuple[int, int]:
    """Width and height of the image as `read_image` gives it, from the file's header.

    Raises:
        DataError: as for `read_image`, but damage behind the header goes unnoticed.
    """
    return read_header(path, config).size


class Header(NamedTuple):
    """Facts from a file's header."""

    size: tuple[int, int]  # width and height of the upright image
    frames: int  # images in the file
    turned: int  # EXIF's orientation, 1 to 8, if it is applied; 5 and more swap width and height
    conversion: str  # what is done to make RGB of it, in words


def read_header(path: Path, config: DataConfig) -> Header:
    """A file's header, with the size that `read_image` gives.

    Raises:
        DataError: as for `image_size`.
    """
    with _opened(path, config.max_pixels) as image:
        turned = _orientation(image, config.exif)
        size = _swapped(image.size, turned)
        try:
            return Header(size, getattr(image, "n_frames", 1), turned, conversion(image))
        except DAMAGE:  # in a later one
            return Header(size, 1, turned, conversion(image))


def has_several(path: Path) -> bool:
    """Whether a file holds several images: frames or pages. Those that phones put beside a JPEG do not count."""
    try:
        with warnings.catch_warnings(), Image.open(path, formats=("TIFF", "GIF", "WEBP")) as image:
            warnings.simplefilter("ignore")
            return bool(getattr(image, "is_animated", False))
    except DAMAGE:  # or of another format
        return False


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Convert any decoder error to one that names the file."""
    try:
        yield
    except DAMAGE as error:
        raise _problem(f"{path} is damaged: {error}", "DAMAGED", path) from error


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image and read its header, within our limits and without Pillow's warnings about size and metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(path, max_pixels) as image:
            yield image


def _open(path: Path, max_pixels: int) -> Image.Image:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise _problem(f"{path} is a folder, not an image", "FORMAT", path, "give the images in it one by one")
        if not stat.S_ISREG(mode):
            raise _problem(f"{path} is not a regular file", "FORMAT", path, f"check what it is: ls -l {typed(path)}")
        image = _identified(path)
    except FileNotFoundError:
        raise _problem(f"no image {path}", "MISSING", path, "check its name and folder") from None
    except UnidentifiedImageError:
        what, kind, fix = _unidentified(path)
        raise _problem(what, kind, path, fix) from None
    except Image.DecompressionBombError as error:
        raise _problem(f"{path} could not be decoded: {error}", "LARGE", path) from None
    except DAMAGE as error:
        raise _problem(f"{path} cannot be opened: {error}", "DAMAGED", path) from error
    _check_header(image, path, max_pixels)
    return image


def _identified(source: Path | io.BytesIO) -> Image.Image:
    """
    Raises:
        UnidentifiedImageError: it is in no format that we read.
    """
    try:
        return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        if not reads_heif():
            raise
        return Image.open(source, formats=("HEIF",))


@cache
def reads_heif() -> bool:
    """Whether HEIC images can be read; registers pillow-heif with Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _unidentified(path: Path) -> tuple[str, str, str]:
    """Describe an unidentified file: what it is, its error code, and the fix."""
    suffix = path.suffix.lower()
    if bands := refusal_of_unknown(path):
        return bands[0], "BANDS", bands[1]
    if _is_heif(path) and not reads_heif():
        return f"{path} is a HEIC image, which pillow-heif reads", "FORMAT", install_line("heic")
    fix = f"extract frames from the video first: ffmpeg -i {typed(path)} frame-%05d.jpg" if suffix in VIDEOS else ""
    if suffix in IMAGE_SUFFIXES - SUFFIXES:
        fix = f"convert it first: magick {typed(path)} {typed(path.with_suffix('.jpg'))}"
    if suffix == ".txt":
        fix = f"if it is a list of files, one per line: dino predict - < {typed(path)}"
    fix = fix or f"check what it is: file {typed(path)}; save it as JPEG or PNG, or remove it"
    return f"{path} is not an image in a known format ({', '.join(FORMATS)})", "FORMAT", fix


def _is_heif(path: Path) -> bool:
    """Whether the content is HEIF, whatever the name: phones and chats save it as .jpg, too."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS


def _check_header(image: Image.Image, path: Path, max_pixels: int) -> None:
    if isinstance(image, TiffImageFile):
        _check_tiff(image, path)
    if image.width * image.height > max_pixels:
        image.close()
        what = f"{path} has {image.width} x {image.height} pixels, more than data.max_pixels = {max_pixels}"
        trust = "raise it with --set data.max_pixels=N if you trust the image"
        raise _problem(what, "LARGE", path, trust)


def _check_tiff(image: TiffImageFile, path: Path) -> None:
    if bands := refusal(image, path):
        image.close()
        raise _problem(bands[0], "BANDS", path, bands[1])
    if _in_deep_planes(image):
        image.close()
        raise _problem(f"{path} has planar 16-bit colour, which Pillow misreads", "FORMAT", path,
                       "save it with planar configuration 1 (interleaved), or as PNG")  # fmt: skip


def _in_deep_planes(image: TiffImageFile) -> bool:
    """Planar colour with more than 8 bits: Pillow reads each byte as a pixel (12.0)."""
    if image.tag_v2.get(PLANAR) != 2:
        return False
    bits = image.tag_v2.get(BITS, (8,))
    return len(bits) > 1 and max(bits) > 8


def _problem(what: str, kind: str, path: Path, fix: str = "") -> DataError:
    code = f"DATA-IMAGE-{kind}"
    return DataError(what, code=code, where=path, fix=fix)


def _orientation(image: Image.Image, exif: bool) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if it is invalid or ignored."""
    turns_itself = image.format == "TIFF"  # Pillow does, pixels and size
    if exif == turns_itself:
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION)
    except DAMAGE:
        return 1
    orientation = orientation if orientation in TURNS else 1
    return BACK.get(orientation, orientation) if turns_itself else orientation


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
    """Deep grey to 8 bits: unit floats times 255, 16 bits divided by 257; otherwise, or on request, min to max."""
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
