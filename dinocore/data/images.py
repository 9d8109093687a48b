"""Read image files of any format as upright 8-bit RGB."""

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

# MPO comes with JPEG; other decoders are rarely used and more likely to have vulnerabilities
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(("AVIF",) if features.check("avif") else ()))
READ = ".jpg .jpeg .jpe .jfif .mpo .png .webp .bmp .tif .tiff .gif .ppm .pgm .heic .heif"
SUFFIXES = frozenset(READ.split() + [".avif"] * ("AVIF" in FORMATS))
IMAGE_SUFFIXES = SUFFIXES | {".avif", ".jp2", ".jxl"}  # including formats that are recognised but cannot be read
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
VIDEOS = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".ogv"),
)
# exceptions of Pillow's decoders
DAMAGE = (
    *(OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError),
    *(EOFError, MemoryError, struct.error, zlib.error),
)
ORIENTATION = 0x0112  # the EXIF tag
BITS, PLANAR = 258, 284  # TIFF tags
ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
INVERSE = {6: 8, 8: 6}  # inverse rotations; the other orientations are their own inverse
Side = TypeVar("Side", int, float)
MIN_ROWS = 0.95  # minimum fraction of a truncated JPEG's rows that must be intact
TAIL = 4096  # maximum number of bytes that cameras append after the end of a JPEG
LOGGER = logging.getLogger("dinocore.data")
_warned_files: set[str] = set()  # files already warned about

logging.getLogger("PIL").addHandler(logging.NullHandler())  # Pillow prints messages about damaged files otherwise


class Decoded(NamedTuple):
    """An upright RGB image at full size, or smaller if that is enough."""

    image: Image.Image
    size: tuple[int, int]  # width and height of the full-size image
    frame: tuple[float, float, float, float]  # its left, top, right, bottom in `image`; see `read_reduced`


def read_image(path: Path, config: DataConfig) -> Image.Image:
    """Decode an image: first frame, EXIF orientation applied, transparency over white, 16 bits scaled to 8.

    Args:
        config: of which max_pixels, exif and depth are used.

    Raises:
        DataError: the file does not exist, is not an image, is damaged, or has too many pixels.
    """
    with _opened(path, config.max_pixels) as image, _damage_named(path):
        return loaded_rgb(image, config)


def decode_image(content: bytes, config: DataConfig) -> Image.Image:
    """Like `read_image`, from the content of a file.

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
    """Like `read_image`, for an image that was opened with Pillow and may not be decoded yet.

    Raises:
        DataError: it is damaged, or closed.
    """
    with _damage_named(Path(getattr(image, "filename", "") or "the image")):
        return loaded_rgb(image, config)


def read_reduced(path: Path, config: DataConfig, min_decode_size: tuple[int, int]) -> Decoded:
    """Like `read_image`, but decodes a JPEG at 1/2, 1/4 or 1/8 of its size if that is at least `min_decode_size`.

    At 1/2, the decoder turns 1001 pixels into 501. Only half of the last one belongs to the image, so the frame ends
    at 500.5 or, if the image was then rotated, starts at 0.5.

    Args:
        min_decode_size: width and height of the upright image.

    Raises:
        DataError: as for `read_image`.
    """
    with _opened(path, config.max_pixels) as image, _damage_named(path):
        size, orientation = image.size, _orientation(image, config.exif) if isinstance(image, JpegImageFile) else 1
        reduced = image.draft(None, _swapped(min_decode_size, orientation))  # None if it is not a JPEG
        upright = loaded_rgb(image, config)
        if reduced is None:
            return Decoded(upright, upright.size, (0, 0, *upright.size))
        width, height = _swapped(reduced[1][2:], orientation)
        left = upright.width - width if orientation in (2, 3, 6, 7) else 0
        top = upright.height - height if orientation in (3, 4, 7, 8) else 0
        return Decoded(upright, _swapped(size, orientation), (left, top, left + width, top + height))


def loaded_rgb(image: Image.Image, config: DataConfig) -> Image.Image:
    """Decode an image, rotate it as its metadata says, and convert it to RGB.

    The result has no metadata, so that it is not rotated twice.
    """
    rotation = ROTATIONS.get(_orientation(image, config.exif))  # before loading, which loses a TIFF's orientation
    unknown = isinstance(image, TiffImageFile) and has_unknown_band(image)
    image = _loaded(image)
    image = image.convert("RGB") if unknown else image  # instead of using the band as transparency
    upright = to_rgb(image if rotation is None else image.transpose(rotation), config.depth)
    upright.info = {}
    return upright


def _loaded(image: Image.Image) -> Image.Image:
    """Decode an image; a truncated JPEG is used if at least MIN_ROWS of its rows are intact."""
    try:
        image.load()
        return image
    except OSError as error:
        path = getattr(image, "filename", "")
        if not (isinstance(image, JpegImageFile) and path and "truncated" in str(error)):
            raise
        decoded, fraction = decode_cut(Path(path).read_bytes(), image.size)
        if fraction < MIN_ROWS:
            raise OSError(f"{error}; {fraction:.0%} of its rows are intact") from error
    if path not in _warned_files:
        _warned_files.add(path)
        LOGGER.warning("%s is truncated; %.0f %% of its rows are intact and used", path, 100 * fraction)
    return decoded


def fraction_of_rows(path: Path, config: DataConfig) -> float:
    """The fraction of a JPEG's rows that are intact: 1 if the file is complete, 0 if it ends in the header.

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
    """Width and height of the image that `read_image` returns, from the file's header.

    Raises:
        DataError: as for `read_image`, except that damage after the header is not detected.
    """
    return read_header(path, config).size


class Header(NamedTuple):
    """What the header of an image file says."""

    size: tuple[int, int]  # width and height of the upright image
    frames: int  # number of images in the file
    orientation: int  # EXIF orientation that is applied, 1 to 8; from 5 on, width and height are swapped
    conversion: str  # how it is converted to RGB, for messages


def read_header(path: Path, config: DataConfig) -> Header:
    """Read a file's header; the size is that of the image that `read_image` returns.

    Raises:
        DataError: as for `image_size`.
    """
    with _opened(path, config.max_pixels) as image:
        orientation = _orientation(image, config.exif)
        size = _swapped(image.size, orientation)
        try:
            return Header(size, getattr(image, "n_frames", 1), orientation, conversion(image))
        except DAMAGE:  # in a later frame
            return Header(size, 1, orientation, conversion(image))


def has_several(path: Path) -> bool:
    """Whether a file has several images: frames or pages. Extra images that phones add to a JPEG do not count."""
    try:
        with warnings.catch_warnings(), Image.open(path, formats=("TIFF", "GIF", "WEBP")) as image:
            warnings.simplefilter("ignore")
            return bool(getattr(image, "is_animated", False))
    except DAMAGE:  # damaged, or another format
        return False


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Convert decoder errors to a DataError with the name of the file."""
    try:
        yield
    except DAMAGE as error:
        raise _problem(f"{path} is damaged: {error}", "DAMAGED", path) from error


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image and read its header, with our limits and without Pillow's warnings about size and metadata."""
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
    """Open an image in one of the supported formats.

    Raises:
        UnidentifiedImageError: it has another format.
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
    """The message, error code and fix for a file that is not a supported image."""
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
    """Whether the content is HEIF, regardless of the name: phones and messengers may save it as .jpg."""
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
    if _has_deep_planes(image):
        image.close()
        raise _problem(f"{path} has planar 16-bit colour, which Pillow misreads", "FORMAT", path,
                       "save it with planar configuration 1 (interleaved), or as PNG")  # fmt: skip


def _has_deep_planes(image: TiffImageFile) -> bool:
    """Whether a TIFF has planar colours with more than 8 bits, of which Pillow 12.0 reads each byte as a pixel."""
    if image.tag_v2.get(PLANAR) != 2:
        return False
    bits = image.tag_v2.get(BITS, (8,))
    return len(bits) > 1 and max(bits) > 8


def _problem(what: str, kind: str, path: Path, fix: str = "") -> DataError:
    code = f"DATA-IMAGE-{kind}"
    return DataError(what, code=code, where=path, fix=fix)


def _orientation(image: Image.Image, exif: bool) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if it is invalid or ignored."""
    rotated_by_pillow = image.format == "TIFF"  # Pillow rotates TIFFs itself
    if exif == rotated_by_pillow:
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION)
    except DAMAGE:
        return 1
    orientation = orientation if orientation in ROTATIONS else 1
    return INVERSE.get(orientation, orientation) if rotated_by_pillow else orientation


def _swapped(sides: tuple[Side, Side], orientation: int) -> tuple[Side, Side]:
    """Convert width and height from the stored to the upright image, or back."""
    return (sides[1], sides[0]) if orientation >= 5 else sides


def to_rgb(image: Image.Image, depth: str = "full") -> Image.Image:
    """Convert any Pillow mode to RGB: deep pixels are scaled instead of clipped, transparency becomes white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_scale_to_bytes(np.asarray(image), depth)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _scale_to_bytes(pixels: np.ndarray, depth: str) -> np.ndarray:
    """Scale deep grey pixels to 8 bits, (H, W) -> (H, W) uint8.

    Floats in [0, 1] are multiplied by 255, 16-bit values are divided by 257. Other values, or all with `minmax`, are
    scaled from their minimum and maximum.
    """
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
