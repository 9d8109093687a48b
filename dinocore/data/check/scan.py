"""Scan all images of a split in parallel: only headers, or also decoded pixels."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...config import DataConfig
from ...errors import DataError, EnvironmentFault
from ...system.parent import leave_signals_to_the_parent
from ...words import counted
from ..annotations import Annotations
from ..findings import Findings, Location
from ..images import MIN_ROWS, read_header, read_image, share_of_rows

THUMB = 16  # side of the grey image that is kept of each
DARK, DARK_SHARE = 32, 0.99  # brightness of 255 that so many pixels stay below in an image that is nearly black
BLANK = 4  # levels of brightness, at most, of an image of one colour
ODD_SIDE, ODD_ASPECT = 32, 8
AT_ONCE = 16  # images that a worker takes
FEW, FEW_HEADERS = 64, 2000  # images for which workers are not worth it


class ImageInfo(NamedTuple):
    """What was seen of an image."""

    index: int
    size: tuple[int, int] = (0, 0)  # width and height, upright
    frames: int = 1
    rows: float = 1.0  # the share of a JPEG's rows that are there
    conversion: str = ""  # what is done to make RGB of it
    problem: str = ""  # why it cannot be read
    code: str = ""  # of the problem
    brightness: float = 0.0  # mean, of 255
    dark: bool = False
    blank: bool = False
    thumb: bytes = b""  # THUMB x THUMB grey levels; none where it was not decoded


class ScanOptions(NamedTuple):
    """How images are looked at."""

    annotations: Annotations
    config: DataConfig
    decode: bool

    def at(self, index: int) -> ImageInfo:
        """Facts of one image; damage behind the header is found only with `decode`."""
        path = self.annotations.path(index)
        try:
            header = read_header(path, self.config)
            rows = share_of_rows(path, self.config)
            facts = ImageInfo(index, header.size, header.frames, rows, header.conversion)
            if facts.rows < MIN_ROWS and not self.decode:
                what = f"{path} is damaged: {facts.rows:.0%} of its rows are there"
                return facts._replace(problem=what, code="DATA-IMAGE-DAMAGED")
            return _with_pixels(facts, read_image(path, self.config)) if self.decode else facts
        except DataError as error:
            return ImageInfo(index, problem=error.what, code=error.code)


def scan_images(
    annotations: Annotations, config: DataConfig, decode: bool, indices: Sequence[int] | None = None
) -> Iterator[ImageInfo]:
    """Facts of every image, or of some, in order.

    Raises:
        EnvironmentFault: a process that looks at images was killed.
    """
    looking = ScanOptions(annotations, config, decode)
    chosen = range(len(annotations.image_ids)) if indices is None else indices
    if len(chosen) < (FEW if decode else FEW_HEADERS):
        yield from map(looking.at, chosen)
        return
    workers = ProcessPoolExecutor(min(8, os.cpu_count() or 1), initializer=_begin, initargs=(looking,))
    try:
        yield from workers.map(_look, chosen, chunksize=AT_ONCE)
    except BrokenProcessPool as error:
        what = "a process that reads images was killed, perhaps because the system ran out of memory"
        raise EnvironmentFault(what, fix="close other programs, or remove very large images") from error
    finally:
        workers.shutdown(cancel_futures=True)


_of_this_worker: list[ScanOptions] = []


def _begin(looking: ScanOptions) -> None:
    leave_signals_to_the_parent()
    _of_this_worker[:] = [looking]


def _look(index: int) -> ImageInfo:
    return _of_this_worker[0].at(index)


def _with_pixels(facts: ImageInfo, image: Image.Image) -> ImageInfo:
    grey = image.convert("L")
    low, high = (int(value) for value in grey.getextrema())  # pyright: ignore[reportArgumentType]  one band
    levels = np.array(grey.histogram())
    total = levels.sum()
    return facts._replace(
        brightness=float((levels * np.arange(256)).sum() / total),
        dark=bool(levels[:DARK].sum() >= DARK_SHARE * total),
        blank=high - low <= BLANK,
        thumb=grey.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes(),
    )


def check_images(annotations: Annotations, facts: Sequence[ImageInfo], findings: Findings) -> None:
    """Findings about files that cannot be read, are not as annotated, or are odd."""

    def places(chosen: Sequence[tuple[ImageInfo, str]]) -> list[Location]:
        return [_place(annotations, f, text) for f, text in chosen]

    check_files(annotations, facts, findings)
    whole = [f for f in facts if not f.problem]
    named = [(f, annotations.path(f.index).name) for f in whole]
    odd = [(f, f"{name}: {f.size[0]} x {f.size[1]}") for f, name in named
           if min(f.size) < ODD_SIDE or max(f.size) > ODD_ASPECT * min(f.size)]  # fmt: skip
    findings.add(
        "DATA-IMAGE-ODD", f"{counted(len(odd), 'image')} smaller than {ODD_SIDE} pixels or very long", places(odd)
    )
    frames = [(f, f"{name}: {f.frames} frames") for f, name in named if f.frames > 1]
    findings.add(
        "DATA-IMAGE-FRAMES",
        f"{counted(len(frames), 'file')} with several images; only the first is used",
        places(frames),
    )
    dark = [(f, f"{name}: mean brightness {f.brightness:.0f} of 255") for f, name in named if f.dark and not f.blank]
    findings.add("DATA-IMAGE-DARK", f"{counted(len(dark), 'image')} nearly black", places(dark))
    blank = [(f, f"{name}: brightness {f.brightness:.0f} of 255") for f, name in named if f.blank]
    findings.add("DATA-IMAGE-BLANK", f"{counted(len(blank), 'image')} of one colour", places(blank))


def check_files(annotations: Annotations, facts: Sequence[ImageInfo], findings: Findings) -> None:
    """Findings about files that a training cannot use as they are annotated, or uses otherwise than one may think."""
    for code in sorted({f.code for f in facts if f.code}):  # each kind of problem once
        broken = [f for f in facts if f.code == code]
        places = [_place(annotations, f, f.problem) for f in broken]
        findings.add(code, f"{counted(len(broken), 'image')} cannot be read", places)
    readable = [f for f in facts if not f.problem]
    other = [f for f in readable if f.size != tuple(annotations.sizes[f.index].tolist())]  # boxes of another image?
    places = [_place(annotations, f, _other_size(annotations, f)) for f in other]
    findings.add("DATA-IMAGE-SIZE", f"{counted(len(other), 'image')} whose size differs from the annotations", places)
    cut = [f for f in readable if f.rows < 1]
    places = [_place(annotations, f, f"{annotations.path(f.index).name}: {f.rows:.0%} of its rows") for f in cut]
    findings.add("DATA-IMAGE-CUT", f"{counted(len(cut), 'image')} truncated at the end of the file", places)
    for conversion in sorted({f.conversion for f in facts} - {""}):  # to three bands of colour
        such = [f for f in readable if f.conversion == conversion]
        places = [_place(annotations, f, annotations.path(f.index).name) for f in such]
        findings.add("DATA-IMAGE-CHANNELS", f"{len(such)} of {len(facts)} images {conversion}", places)


def _place(annotations: Annotations, facts: ImageInfo, text: str) -> Location:
    boxes = annotations.boxes[annotations.objects(facts.index)].tolist()
    return Location(text, annotations.path(facts.index), boxes)


def _other_size(annotations: Annotations, facts: ImageInfo) -> str:
    annotated = tuple(annotations.sizes[facts.index].tolist())
    turned = ", which is the same rotated, as by an EXIF orientation" if annotated == facts.size[::-1] else ""
    name: Path = annotations.path(facts.index)
    found, stated = (f"{width} x {height}" for width, height in (facts.size, annotated))
    return f"{name.name} has {found} pixels, but the annotations say {stated}{turned}"
