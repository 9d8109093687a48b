"""Image files of all kinds are read as upright RGB images, or refused with a one-line error."""

import os
import random
import resource
import shlex
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dinocore.config import DataConfig
from dinocore.data.images import image_size, read_image, read_reduced
from dinocore.errors import DataError

DEFAULT = DataConfig()
TO_UPRIGHT = {  # what a viewer does for each EXIF orientation, on an array (H, W, 3)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def pixels(path, config=DEFAULT):
    image = read_image(path, config)
    assert image.mode == "RGB"
    return np.asarray(image)


def error_message(path, config=DEFAULT):
    with pytest.raises(DataError) as caught:
        read_image(path, config)
    assert caught.value.exit_code == 3 and str(path) in str(caught.value)
    return str(caught.value)


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.fixture
def scene():
    """Four patches, (32, 48, 3), that every rotation and flip changes."""
    array = np.zeros((32, 48, 3), np.uint8)
    array[:16, :24], array[:16, 24:], array[16:, :24] = (250, 20, 20), (20, 250, 20), (20, 20, 250)
    return array


@pytest.fixture
def save_image(tmp_path):
    def save(image, name, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_size(save_image, scene, orientation, suffix):
    path = save_image(Image.fromarray(scene), f"a.{suffix}", exif=exif(orientation), quality=95)
    upright = TO_UPRIGHT[orientation](scene)
    assert pixels(path).shape == upright.shape
    assert np.abs(pixels(path)[4::8, 4::8].astype(int) - upright[4::8, 4::8]).max() < 25  # centers of JPEG blocks
    assert image_size(path, DEFAULT) == (upright.shape[1], upright.shape[0])


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_invalid_orientation_is_ignored(save_image, scene, orientation):
    path = save_image(Image.fromarray(scene), "a.png", exif=exif(orientation))
    assert (pixels(path) == scene).all() and image_size(path, DEFAULT) == (48, 32)


def test_damaged_exif_is_ignored_without_a_warning(save_image, scene):
    """`read_image` and `image_size` give the same size for any EXIF data."""
    path = save_image(Image.fromarray(scene), "a.jpg", exif=exif(6))
    content, rng = path.read_bytes(), random.Random(0)
    start = content.index(b"Exif\0\0") + 6
    length = struct.unpack(">H", content[start - 8 : start - 6])[0] - 8
    for trial in range(60):
        junk = rng.randbytes(length) if trial % 2 else bytearray(content[start : start + length])
        if isinstance(junk, bytearray):
            junk[rng.randrange(length)] = rng.randrange(256)
        path.write_bytes(content[:start] + junk + content[start + length :])
        assert read_image(path, DEFAULT).size == image_size(path, DEFAULT)


def test_grey_and_one_bit_images_get_equal_channels(save_image, scene):
    grey = Image.fromarray(scene[..., 0])
    assert (pixels(save_image(grey, "grey.png")) == scene[..., :1]).all()
    assert set(np.unique(pixels(save_image(grey.convert("1"), "bit.png")))) == {0, 255}


def test_transparency_is_blended_with_white_in_every_mode(save_image):
    red = Image.new("RGBA", (4, 2), (200, 0, 0, 255))
    red.putpixel((0, 0), (9, 9, 9, 0))
    red.putpixel((1, 0), (0, 0, 0, 128))
    actual = pixels(save_image(red, "rgba.png"))
    assert actual[0, 0].tolist() == [255] * 3 and actual[1, 1].tolist() == [200, 0, 0]
    assert actual[0, 1].tolist() == [127] * 3
    grey = pixels(save_image(red.convert("LA"), "la.png"))
    assert grey[0, 0].tolist() == [255] * 3 and 50 < grey[1, 1, 0] < 70
    assert pixels(save_image(red, "a.webp", lossless=True))[0, 0].tolist() == [255] * 3


def test_a_palette_is_converted_to_rgb_and_its_transparent_entry_is_white(save_image):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(save_image(image, "p.png")).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    for name in ("t.png", "t.gif"):
        assert pixels(save_image(image, name, transparency=0)).tolist() == [[[255] * 3, [200, 100, 50]]]
    by_entry = pixels(save_image(image, "bytes.png", transparency=bytes([255, 0])))
    assert by_entry.tolist() == [[[10, 20, 30], [255] * 3]]


def test_cmyk_is_converted_to_rgb(save_image, scene):
    actual = pixels(save_image(Image.fromarray(scene).convert("CMYK"), "a.jpg", quality=95))
    assert np.abs(actual[4::8, 4::8].astype(int) - scene[4::8, 4::8]).max() < 25


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(save_image, name):
    actual = pixels(save_image(Image.fromarray(np.array([[0, 300, 30000, 30100]], np.uint16)), name))
    assert actual[0, :, 0].tolist() == [0, 1, 117, 117]


def test_exif_orientation_is_applied_to_16_bit_images(save_image):
    path = save_image(Image.fromarray(np.array([[0, 30000, 65535]], np.uint16)), "deep.png", exif=exif(6))
    assert pixels(path)[:, 0, 0].tolist() == [0, 117, 255]


def test_sixteen_bits_in_big_endian_order_are_scaled(tmp_path):
    values = struct.pack(">4H", 0, 300, 30000, 65535)
    tags = [(256, 4), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 1), (279, 8)]
    entries = b"".join(struct.pack(">HHLHH", tag, 3, 1, value, 0) for tag, value in tags)
    (tmp_path / "big.tif").write_bytes(b"MM\0*\0\0\0\x08" + struct.pack(">H", 9) + entries + b"\0" * 4 + values)
    with Image.open(tmp_path / "big.tif") as image:
        assert image.mode == "I;16B"
    assert pixels(tmp_path / "big.tif")[0, :, 0].tolist() == [0, 1, 117, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),  # fractions
        ([0, 1000, 2000], [0, 128, 255]),  # other values: from minimum to maximum
        ([-3e38, 0, 3e38], [0, 128, 255]),
        ([np.nan, -np.inf, 0.5, np.inf], [0, 0, 128, 128]),  # NaN and -inf: minimum (at most 0); inf: maximum
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_a_float_image_is_scaled(save_image, values, expected):
    path = save_image(Image.fromarray(np.array([values], np.float32)), "a.tif")
    assert pixels(path)[0, :, 0].tolist() == expected


DEEP = np.array([[[30000, 255, 65535], [0, 128, 600]]], np.uint16)  # (1, 2, 3)


def deep_png(colors):
    """A 16-bit RGB or RGBA PNG, which Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, bands = colors.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[bands], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(colors, order, planes):
    """A 16-bit RGB TIFF with interleaved channels or, if `planes`, one plane per channel."""
    height, width, bands = colors.shape
    parts = [colors[..., k] for k in range(bands)] if planes else [colors]
    data, count = [part.astype(f"{order}u2").tobytes() for part in parts], len(parts)
    bits = 8 + 2 + 10 * 12 + 4
    lists = bits + 2 * bands
    start = lists + 8 * count
    starts = [start + sum(map(len, data[:k])) for k in range(count)]
    lengths = lists + 4 * count if planes else len(data[0])
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 2), (273, lists if planes else start),
            (277, bands), (278, height), (279, lengths), (284, 1 + planes)]  # fmt: skip
    counts = {258: bands, 273: count, 279: count}
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    for tag, value in tags:
        content += struct.pack(f"{order}HHII", tag, 3 if tag == 258 else 4, counts.get(tag, 1), value)
    content += struct.pack(f"{order}I{bands}H", 0, *[16] * bands)
    return content + struct.pack(f"{order}{2 * count}I", *starts, *map(len, data)) + b"".join(data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rgb.png", deep_png(DEEP)),
        ("rgba.png", deep_png(np.concatenate([DEEP, np.full((1, 2, 1), 65535, np.uint16)], 2))),
        ("little.tif", deep_tiff(DEEP, "<", False)),
        ("big.tif", deep_tiff(DEEP, ">", False)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sixteen_bits_of_colour_are_scaled_and_not_clipped(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    actual = pixels(tmp_path / name)[..., :3].astype(float)
    assert np.abs(actual - DEEP / 257).max() <= 1, "Pillow keeps only the high byte"


@pytest.mark.parametrize("order", "<>")
def test_planar_16_bit_colour_is_refused(tmp_path, order):
    (tmp_path / "planes.tif").write_bytes(deep_tiff(DEEP, order, True))
    assert "planar 16-bit colour" in error_message(tmp_path / "planes.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "ppm"])
def test_a_truncated_image_is_refused(save_image, tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    content = save_image(Image.fromarray(noise), f"a.{suffix}").read_bytes()
    for fraction in (0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(content[: int(len(content) * fraction)])
        assert (
            "damaged" in error_message(cut)
            or "not an image" in error_message(cut)
            or "cannot be opened" in error_message(cut)
        )


def test_a_truncated_image_still_has_the_size_in_its_header(save_image, scene):
    for name in ("a.jpg", "a.png"):
        path = save_image(Image.fromarray(scene), name)
        path.write_bytes(path.read_bytes()[:-30])
        error_message(path)
        assert image_size(path, DEFAULT) == (48, 32)


def test_scrambled_bytes_are_read_or_raise_a_data_error(save_image, tmp_path, scene):
    rng, path = random.Random(1), tmp_path / "x"
    for suffix in ("jpg", "png", "gif", "bmp", "webp", "tif", "ppm"):
        original = save_image(Image.fromarray(scene), f"a.{suffix}").read_bytes()
        for _ in range(40):
            content = bytearray(original)
            for _ in range(3):
                content[rng.randrange(min(200, len(content)))] = rng.randrange(256)
            path.write_bytes(content)
            for read in (read_image, image_size):
                try:
                    read(path, DataConfig(max_pixels=1_000_000))
                except DataError as error:
                    assert str(path) in str(error)


@pytest.mark.parametrize("content", [b"", b"<html><body>404</body></html>", b"%PDF-1.7 ...", b"\xff\xd8\xff"])
def test_a_file_that_is_not_an_image_is_refused_despite_its_suffix(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert "is not an image in a known format" in error_message(path)


def test_a_wrong_suffix_is_accepted(save_image, scene):
    assert (pixels(save_image(Image.fromarray(scene), "a.jpg", format="PNG")) == scene).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_very_thin_images_are_read(save_image, size):
    path = save_image(Image.new("RGB", size, (1, 2, 3)), "a.png")
    assert read_image(path, DEFAULT).size == image_size(path, DEFAULT) == size


def test_the_first_of_several_frames_is_read(save_image):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        path = save_image(frames[0], name, save_all=True, append_images=frames[1:])
        assert np.abs(pixels(path).astype(int) - (255, 0, 0)).max() < 5


def bomb(path, side):
    """Write a PNG of side x side black 1-bit pixels."""

    def chunk(kind, body):
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    head = struct.pack(">2L5B", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes((side + 7) // 8 + 1) * side, 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def test_a_decompression_bomb_is_refused_before_memory_is_allocated(tmp_path):
    path = tmp_path / "bomb.png"
    bomb(path, 30_000)
    assert path.stat().st_size < 300_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "900000000 pixels" in error_message(path)
    with pytest.raises(DataError):
        image_size(path, DEFAULT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_the_pixel_limit_can_be_raised_with_the_setting_in_its_error(tmp_path):
    path = tmp_path / "large.png"
    bomb(path, 10_000)  # Pillow would warn about this size
    assert "--set data.max_pixels=N" in error_message(path, DataConfig(max_pixels=99_999_999))
    assert image_size(path, DataConfig(max_pixels=100_000_000)) == (10_000, 10_000)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    assert "no image" in error_message(tmp_path / "none.jpg")
    assert error_message(tmp_path) == f"{tmp_path} is a folder, not an image; give the images in it one by one"
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would block forever
    assert "not a regular file" in error_message(tmp_path / "pipe.jpg")
    assert "cannot be opened" in error_message(tmp_path / "a\0b.jpg")


@pytest.mark.parametrize("name", ["my notes.txt", "my video.mp4", "my scan.jxl"])
def test_file_names_with_spaces_are_quoted_in_suggested_commands(tmp_path, name):
    (tmp_path / name).write_bytes(b"no image")
    command = error_message(tmp_path / name).rpartition(": ")[2].partition(";")[0]
    assert str(tmp_path / name) in shlex.split(command)


@pytest.mark.slow
def test_png_can_be_the_first_image_that_a_process_reads(save_image, scene):
    """Pillow can open only some formats until it has loaded all of its plugins."""
    path = save_image(Image.fromarray(scene), "a.png")
    code = "import sys; from dinocore.data.images import *; print(read_image(Path(sys.argv[1]), DataConfig()).size)"
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "(48, 32)", result.stderr


AS_STORED = DataConfig(exif=False)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_read_as_stored_if_exif_is_off(save_image, scene, orientation, suffix):
    path = save_image(Image.fromarray(scene), f"a.{suffix}", exif=exif(orientation), quality=95)
    actual = pixels(path, AS_STORED)
    assert actual.shape == scene.shape and np.abs(actual[4::8, 4::8].astype(int) - scene[4::8, 4::8]).max() < 25
    assert image_size(path, AS_STORED) == (48, 32)
    reduced = read_reduced(path, AS_STORED, (48, 32))
    assert (np.asarray(reduced.image) == actual).all() and reduced.frame == (0, 0, 48, 32)


@pytest.mark.parametrize("kind", [np.uint16, np.float32, np.int32])
def test_minmax_stretches_grey_values_to_the_full_range(save_image, kind):
    """Without it, a 12-bit image stored with 16 bits is nearly black; 8-bit images are not changed."""
    path = save_image(Image.fromarray(np.array([[1000, 2000, 3000]], kind)), "a.tif")
    assert pixels(path, DataConfig(depth="minmax"))[0, :, 0].tolist() == [0, 128, 255]
    fractions = save_image(Image.fromarray(np.array([[0.25, 0.5]], np.float32)), "b.tif")
    assert pixels(fractions, DataConfig(depth="minmax"))[0, :, 0].tolist() == [0, 255]
    assert pixels(fractions)[0, :, 0].tolist() == [64, 128]
    eight = save_image(Image.fromarray(np.array([[100, 120]], np.uint8)), "c.png")
    assert pixels(eight, DataConfig(depth="minmax"))[0, :, 0].tolist() == [100, 120]


SUFFIXES = ("jpg", "png", "gif", "bmp", "webp", "tif", "ppm")


@pytest.mark.slow
@settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(suffix=st.sampled_from(SUFFIXES), fraction=st.floats(0, 1, exclude_max=True), last=st.integers(0, 40))
def test_an_image_truncated_at_any_byte_is_refused_or_read_correctly(save_image, tmp_path, suffix, fraction, last):
    """If the image is read, all pixels are correct, except in the last rows of a JPEG."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    original = save_image(noise, f"a.{suffix}")
    content = original.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for end in (int(len(content) * fraction), max(0, len(content) - last)):
        cut.write_bytes(content[:end])
        try:
            actual = pixels(cut)
        except DataError as error:
            assert str(cut) in str(error) and len(str(error)) < 1000
        else:
            same = (actual == pixels(original)).all((1, 2))
            assert same.all() or (suffix == "jpg" and same[: int(0.95 * len(same)) - 1].all())


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_jpeg_missing_its_last_bytes_is_read_with_one_warning(save_image, tmp_path, caplog, progressive, reduced):
    rng = np.random.default_rng(4)
    smooth = Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).resize((480, 640))
    content = save_image(smooth, "a.jpg", quality=90, progressive=progressive).read_bytes()

    def read(name, end):
        path = tmp_path / name
        path.write_bytes(content[:end])
        image = read_reduced(path, DataConfig(), (240, 320)).image if reduced else read_image(path, DataConfig())
        return np.asarray(image).astype(int)

    full = read("whole.jpg", len(content))
    for _ in range(2):
        cut = read("cut.jpg", len(content) - 20)
    rows = int(0.95 * len(full))
    assert cut.shape == full.shape and np.abs(cut[:rows] - full[:rows]).mean() < 3
    assert [record.message.split(" is truncated; ")[0] for record in caplog.records] == [str(tmp_path / "cut.jpg")]
    with pytest.raises(DataError, match=r"of its rows are intact|its last scans are missing"):
        read("half.jpg", len(content) // 2)
