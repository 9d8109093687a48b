"""Truncated JPEGs, as from an interrupted copy: find which rows are certainly there.

Source: ITU-T T.81 (https://www.w3.org/Graphics/JPEG/itu-t81.pdf), annexes B and G for markers and scans.
"""

import io
import re

import numpy as np
from PIL import Image

END_OF_IMAGE = b"\xff\xd9"
FILLINGS = (b"", *(bytes([byte]) * 64 for byte in (0x00, 0x55, 0xAA, 0xCC, 0x33, 0xFE, 0x0F, 0xF0)))
UNSURE = 8  # bytes before the cut that may be those of a symbol that was not finished
INTERVAL = re.compile(rb"\xff\xdd\x00\x04(?!\x00\x00)")  # of restarts
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # behind pixels: stuffed zeros and restarts are none
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # of these one starts a frame; those between are tables
START_OF_SCAN, RESTART, FILL, COEFFICIENTS = 0xDA, 0xD0, 0xFF, 64


def decode_cut(data: bytes, size: tuple[int, int]) -> tuple[Image.Image, float]:
    """A cut JPEG, decoded to `size` (width, height), and the fraction of its rows that are there, never too high.

    It is ended several times: with nothing in between, with bytes of different meanings, and some bytes earlier. The
    first row in which any two differ is the first that the file does not determine.

    Raises:
        OSError and others of Pillow: it cannot be decoded, or lacks whole scans, so that no row is as it was.
    """
    data = data.rstrip(b"\xff")
    if not _all_scans_begun(data):
        raise OSError("image file is truncated: its last scans are missing")
    shorter = data[:-UNSURE].rstrip(b"\xff") + END_OF_IMAGE
    images = [_decoded(ending, size) for ending in (*_endings(data), shorter)]
    first, *others = (np.asarray(image) for image in images)
    differ = np.flatnonzero(np.any([(first != other).reshape(len(first), -1).any(1) for other in others], axis=0))
    if not len(differ):
        return images[0], 1.0
    return images[0], max(int(differ[0]) - 1, 0) / len(first)  # colours between rows are interpolated from both


def _endings(data: bytes) -> list[bytes]:
    """The file with bytes of different meanings behind the cut; in a file with restart markers they follow the next two
    of these as well, as decoders skip what is left of an interval.
    """
    scan = data[data.rfind(b"\xff\xda") :]
    numbers = [marker[1] - RESTART for marker in re.findall(rb"\xff[\xd0-\xd7]", scan)]
    last = numbers[-1] if numbers else -1
    restarts = [bytes([FILL, RESTART + (last + n) % 8]) for n in (1, 2)] if INTERVAL.search(data) else []
    fillings = [filling + b"".join(restart + filling for restart in restarts) for filling in FILLINGS]
    return [data + filling + END_OF_IMAGE for filling in fillings]


def _decoded(data: bytes, size: tuple[int, int]) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.draft(None, size)
    image.load()
    return image


def _all_scans_begun(data: bytes) -> bool:
    """Whether every coefficient of every component has its last bit in a scan that begins in the file.

    A progressive JPEG comes in several scans; one that lacks the last of them looks whole and is blurred.
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
            _note_scan(segment, missing)
            following = NEXT_MARKER.search(data, at)
            if following is None:
                break
            at = following.start()
    return bool(missing) and not any(missing.values())


def _note_scan(segment: bytes, missing: dict[int, set[int]]) -> None:
    """Take what a scan has the last bit of from what is missing."""
    count = segment[0]
    first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
    if bits & 15 == 0:
        for n in range(count):
            missing.get(segment[1 + 2 * n], set()).difference_update(range(first, last + 1))
