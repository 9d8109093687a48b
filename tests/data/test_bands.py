"""Images that are not RGB: conversions are reported, and errors name a command or package that helps."""

import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinocore.config import DataConfig
from dinocore.data import images
from dinocore.data.images import read_header, read_image
from dinocore.errors import DataError
from dinocore.system.extras import install_line


def tiff(pixels: np.ndarray, extra: list[int], photometric: int) -> bytes:
    """A TIFF with one strip of (H, W, bands) uint8 or uint16 pixels; `extra` is its ExtraSamples tag."""
    height, width, bands = pixels.shape
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [8 * pixels.itemsize] * bands), 259: (3, [1]),
            262: (3, [photometric]), 273: (4, [0]), 277: (3, [bands]), 278: (4, [height]), 279: (4, [pixels.nbytes]),
            284: (3, [1])} | ({338: (3, extra)} if extra else {})  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    later, rows = b"", []
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{'HI'[kind == 4]}", *values)
        if len(packed) > 4:
            packed, later = struct.pack("<I", start + len(later)), later + packed
        rows.append([tag, kind, len(values), packed.ljust(4, b"\0")])
    strip_offset = struct.pack("<I", start + len(later))
    entries = [struct.pack("<HHI", *row[:3]) + (strip_offset if row[0] == 273 else row[3]) for row in rows]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + b"\0" * 4 + later + pixels.tobytes()


def make_pixels(bands: int, dtype=np.uint8) -> np.ndarray:
    return np.arange(6 * 5 * bands).reshape(6, 5, bands).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("bands", "extra", "photometric"), [
    (5, [0, 0], 2), (5, [], 1), (8, [0] * 5, 2), (13, [0] * 12, 1), (2, [0], 1), (2, [], 1), (4, [0, 0, 0], 1),
])  # fmt: skip
def test_a_tiff_with_unsupported_bands_is_refused_with_a_conversion_command(tmp_path, bands, extra, photometric, dtype):
    """Pillow reads some of these as 8-bit images and silently drops bands."""
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(make_pixels(bands, dtype), extra, photometric))
    with pytest.raises(DataError, match=rf"a\.tif has {bands} bands.*gdal_translate -b 1 -b 2 -b 3") as caught:
        read_image(path, DataConfig())
    assert caught.value.code == "DATA-IMAGE-BANDS"


@pytest.mark.parametrize("extra", [[], [0]])
def test_a_fourth_band_that_is_not_alpha_is_dropped(tmp_path, extra):
    path = tmp_path / "a.tif"
    pixels = make_pixels(4)
    path.write_bytes(tiff(pixels, extra, 2))
    assert np.array_equal(np.asarray(read_image(path, DataConfig())), pixels[..., :3])
    assert "a fourth band that is not transparency and is dropped" in read_header(path, DataConfig()).conversion


def test_a_fourth_band_that_is_alpha_is_blended_with_white(tmp_path):
    path = tmp_path / "a.tif"
    pixels = make_pixels(4)
    pixels[..., 3] = 0
    path.write_bytes(tiff(pixels, [2], 2))
    assert np.asarray(read_image(path, DataConfig())).min() == 255
    assert "over white" in read_header(path, DataConfig()).conversion


@pytest.mark.parametrize(("mode", "expected"), [("L", "grey"), ("RGBA", "over white"), ("CMYK", "CMYK"), ("RGB", "")])
def test_the_conversion_of_an_image_is_reported(tmp_path, mode, expected):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (9, 7)).save(path)
    conversion = read_header(path, DataConfig()).conversion
    assert expected in conversion and bool(expected) == bool(conversion)


def test_the_command_in_the_error_converts_a_numpy_array_to_an_image(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    pixels = make_pixels(6)
    np.save(path, pixels)
    with pytest.raises(DataError, match=r"a\.npy is a numpy array") as caught:
        read_image(path, DataConfig())
    code = caught.value.fix.split('python -c "', 1)[1].removesuffix('"')
    exec(code, {})
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels[..., :3])


def heic(path: Path) -> Path:
    """A HEIC image stored rotated, with an EXIF orientation; upright, the left half is green and the right half red."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48], pixels[:, 48:] = (0, 255, 0), (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise
    rotated = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    pillow_heif.from_pillow(rotated).save(path, exif=exif.tobytes(), quality=95)
    return path


@pytest.mark.parametrize("name", ["a.heic", "a.jpg"])
def test_heic_is_read_upright_with_any_suffix(tmp_path, name):
    path = heic(tmp_path / name)
    pixels = np.asarray(read_image(path, DataConfig())).astype(int)
    assert pixels.shape == (64, 96, 3) and read_header(path, DataConfig()).size == (96, 64)
    assert pixels[32, 8, 1] > 200 and pixels[32, 88, 0] > 200


def test_heic_without_pillow_heif_is_refused_with_the_install_command(tmp_path, monkeypatch):
    path = heic(tmp_path / "a.heic")
    images.reads_heif.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    try:
        pattern = rf"a HEIC image, which pillow-heif reads.*{re.escape(install_line('heic'))}"
        with pytest.raises(DataError, match=pattern):
            read_image(path, DataConfig())
    finally:
        images.reads_heif.cache_clear()
