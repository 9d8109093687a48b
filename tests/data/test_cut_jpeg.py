"""`decode_cut` never overestimates the fraction of intact rows in a truncated JPEG."""

import io

import numpy as np
import pytest
from PIL import Image

from dinocore.data.cut_jpeg import decode_cut


def random_image(rng: np.random.Generator) -> Image.Image:
    """Noise, soft blobs, or one colour with a stripe, which compress to many, some, and hardly any bytes."""
    width, height = rng.integers(40, 200), rng.integers(40, 250)
    kind = rng.integers(3)
    shape = (height, width, 3) if kind == 0 else (height // 8, width // 8, 3)
    pixels = rng.integers(0, 255, shape, dtype=np.uint8)
    if kind == 2:
        pixels[:] = pixels[0, 0]
        pixels[rng.integers(len(pixels))] = 255
    image = Image.fromarray(pixels).resize((int(width), int(height)))
    return image if rng.random() < 0.8 else image.convert("L")


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_the_intact_fraction_of_a_truncated_jpeg_is_never_overestimated(progressive, subsampling):
    rng = np.random.default_rng(subsampling)
    fractions = []
    for _ in range(25):
        image, buffer = random_image(rng), io.BytesIO()
        colours = {} if image.mode == "L" else {"subsampling": subsampling}
        restarts = {"restart_marker_rows": 2} if rng.random() < 0.3 else {}
        quality = int(rng.choice([30, 90]))
        image.save(buffer, "JPEG", quality=quality, progressive=progressive, **colours, **restarts)
        content = buffer.getvalue()
        expected = pixels_of(content)
        for num_removed in (int(rng.integers(1, 30)), int(rng.integers(1, len(content) // 4))):
            try:
                decoded, fraction = decode_cut(content[:-num_removed], image.size)
            except OSError:
                continue  # cut in the header, or whole scans are missing
            wrong = (np.asarray(decoded) != expected).reshape(len(expected), -1).any(1)
            actual_fraction = np.flatnonzero(wrong)[0] / len(expected) if wrong.any() else 1.0
            assert fraction <= actual_fraction
            fractions.append(fraction)
    assert len(fractions) > 30 and max(fractions) > 0.8


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    buffer = io.BytesIO()
    Image.effect_noise((160, 120), 60).save(buffer, "JPEG", quality=80, progressive=True)
    content = buffer.getvalue()
    scans = [i for i in range(len(content) - 1) if content[i : i + 2] == b"\xff\xda"]
    with pytest.raises(OSError, match="its last scans are missing"):
        decode_cut(content[: scans[-1]], (160, 120))
    assert decode_cut(content[:-4], (160, 120))[1] > 0.7


@pytest.mark.parametrize("factor", [2, 4])
def test_the_intact_fraction_is_not_overestimated_at_reduced_size(factor):
    buffer = io.BytesIO()
    Image.effect_noise((320, 480), 60).save(buffer, "JPEG", quality=80)
    size = (320 // factor, 480 // factor)
    expected, _ = decode_cut(buffer.getvalue()[:-2], size)
    decoded, fraction = decode_cut(buffer.getvalue()[:-2000], size)
    wrong = (np.asarray(decoded) != np.asarray(expected)).any(1)
    assert 0.8 < fraction <= np.flatnonzero(wrong)[0] / len(wrong)
