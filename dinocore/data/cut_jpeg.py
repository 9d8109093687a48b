"""Truncated JPEGs, as from an interrupted copy: find out which rows are intact.

Source: ITU-T T.81 (https://www.w3.org/Graphics/JPEG/itu-t81.pdf), annexes B and G for markers and scans.
"""

import io
import re

import numpy as np
from PIL import Image

END_OF_IMAGE = b"\xff\xd9"
FILLINGS = (b"", *(bytes([byte]) * 64 for byte in (0x00, 0x55, 0xAA, 0xCC, 0x33, 0xFE, 0x0F, 0xF0)))
UNSURE = 8  # bytes before the cut that may belong to an incomplete symbol
RESTART_INTERVAL = re.compile(rb"\xff\xdd\x00\x04(?!\x00\x00)")
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # after pixels: not stuffed zeros or restart markers
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers that start a frame; the excluded ones are tables
START_OF_SCAN, RESTART, FILL, COEFFICIENTS = 0xDA, 0xD0, 0xFF, 64


def decode_cut(data: bytes, size: tuple[int, int]) -> tuple[Image.Image, float]:
    """Decode a truncated JPEG to `size` (width, height).

    The file is completed in several ways: with an end marker only, with different bytes before it, and with the last
    bytes removed. The first row in which two of the decoded images differ is the first that the file does not
    determine.

    Returns:
        the image, and the fraction of its rows that are intact, which is never too high.

    Raises:
        OSError: whole scans are missing, so that no row is intact; or, like other errors of Pillow, it cannot be
            decoded.
    """
    data = data.rstrip(b"\xff")
    if not _all_scans_started(data):
        raise OSError("image file is truncated: its last scans are missing")
    shorter = data[:-UNSURE].rstrip(b"\xff") + END_OF_IMAGE
    images = [_decoded(ending, size) for ending in (*_endings(data), shorter)]
    first, *others = (np.asarray(image) for image in images)
    differ = np.flatnonzero(np.any([(first != other).reshape(len(first), -1).any(1) for other in others], axis=0))
    if not len(differ):
        return images[0], 1.0
    # minus 1, because colours are interpolated between rows
    return images[0], max(int(differ[0]) - 1, 0) / len(first)


def _endings(data: bytes) -> list[bytes]:
    """The file with different bytes after the cut.

    If it has restart markers, the bytes are repeated after the next two, because decoders skip to the next marker.
    """
    scan = data[data.rfind(b"\xff\xda") :]
    numbers = [marker[1] - RESTART for marker in re.findall(rb"\xff[\xd0-\xd7]", scan)]
    last = numbers[-1] if numbers else -1
    restarts = [bytes([FILL, RESTART + (last + n) % 8]) for n in (1, 2)] if RESTART_INTERVAL.search(data) else []
    fillings = [filling + b"".join(restart + filling for restart in restarts) for filling in FILLINGS]
    return [data + filling + END_OF_IMAGE for filling in fillings]


def _decoded(data: bytes, size: tuple[int, int]) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.draft(None, size)
    image.load()
    return image


def _all_scans_started(data: bytes) -> bool:
    """Whether the start of every scan is in the file, so that each component's coefficients have their last bits.

    A progressive JPEG has several scans; without the last ones, the image looks complete but is blurred.
    """
    missing: dict[int, set[int]] = {}
    at = 2
    while at + 4 <= len(data) and data[at] == FILL:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at + 4 : at + 2 + length]
        if kind == FILL:
            at += 1
            continue
        at += 2 + length
        if at > len(data):
            return False
        if kind in FRAMES:
            missing = {segment[6 + 3 * n]: set(range(COEFFICIENTS)) for n in range(segment[5])}
        elif kind == START_OF_SCAN:
            _remove_completed(segment, missing)
            following = NEXT_MARKER.search(data, at)
            if following is None:
                break
            at = following.start()
    return bool(missing) and not any(missing.values())


def _remove_completed(segment: bytes, missing: dict[int, set[int]]) -> None:
    """Remove the coefficients whose last bit is in a scan from `missing`."""
    count = segment[0]
    first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
    if bits & 15 == 0:
        for n in range(count):
            missing.get(segment[1 + 2 * n], set()).difference_update(range(first, last + 1))
