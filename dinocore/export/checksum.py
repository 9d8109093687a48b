"""The checksum at the end of an exported .onnx or .xml file: the CRC-32 of its bytes and, for an .xml, of its .bin.

    .onnx   metadata `dino_crc32`, the last entry     .xml   a comment at its end

The size of the whole file is there, too. Another program that edits the file changes its size, and nothing is checked.
It needs the standard library only, so it can be copied along with `runtime.py`.
"""

import re
import zlib
from pathlib import Path

KEY = b"dino_crc32"
BEFORE_KEY = 4  # bytes of an entry
ENTRY = b"r\x23\n\x0a" + KEY + b"\x12\x15%08x %012d"  # protobuf: field 14 has 35 bytes, a key of 10 and a value of 21
COMMENT = b"<!--" + KEY + b": %08x %012d-->"
CHUNK = 2**20


def add_checksum(path: Path) -> None:
    """Append its checksum to a finished file that has none."""
    entry = COMMENT if _is_xml(path) else ENTRY
    size = path.stat().st_size
    whole = entry % (_crc32(path, size), size + len(entry % (0, 0)))
    with path.open("ab") as file:
        file.write(whole)


def check_checksum(path: Path) -> None:
    """Check that the bytes of a file are still those of `add_checksum`; a file without a checksum is not checked.

    Raises:
        ValueError: they are not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - len(COMMENT % (0, 0))))
        start, end = file.tell(), file.read()
    found = re.search(KEY + rb"..([0-9a-f]{8}) ([0-9]{12})", end, re.DOTALL)
    if found and int(found[2]) == size and int(found[1], 16) != _crc32(path, start + found.start() - BEFORE_KEY):
        beside = " or its .bin" if _is_xml(path) else ""
        raise ValueError(
            f"{path} is damaged: its checksum is wrong, so it{beside} has changed; copy or export it again"
        )


def _is_xml(path: Path) -> bool:
    return path.suffix.lower() == ".xml"


def _crc32(path: Path, size: int) -> int:
    """Of the first `size` bytes of a file and, for an .xml, of all of its .bin."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(min(CHUNK, size - file.tell())):
            value = zlib.crc32(chunk, value)
    if _is_xml(path):
        with path.with_suffix(".bin").open("rb") as file:
            while chunk := file.read(CHUNK):
                value = zlib.crc32(chunk, value)
    return value
