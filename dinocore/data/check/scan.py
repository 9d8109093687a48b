"""Scan the images of a split in parallel: only their headers, or also their pixels."""

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
from ..images import MIN_ROWS, fraction_of_rows, read_header, read_image

THUMB = 16  # side of the grey thumbnail of each image
DARK, MIN_DARK = 32, 0.99  # an image is nearly black if this fraction of pixels is below this brightness, of 255
BLANK = 4  # maximum range of brightness in an image of one colour
ODD_SIDE, ODD_ASPECT = 32, 8  # an image is odd below this side, or above this aspect ratio
CHUNK_SIZE = 16  # images per task of a worker
FEW, FEW_HEADERS = 64, 2000  # below these numbers of images, starting workers takes longer than it saves


class ImageInfo(NamedTuple):
    """Results of the scan of an image."""

    index: int
    size: tuple[int, int] = (0, 0)  # width and height, upright
    frames: int = 1
    rows: float = 1.0  # the fraction of a JPEG's rows that the file has
    conversion: str = ""  # how it is converted to RGB, for messages
    problem: str = ""  # why it cannot be read
    code: str = ""  # error code of the problem
    brightness: float = 0.0  # mean, of 255
    dark: bool = False
    blank: bool = False
    thumb: bytes = b""  # THUMB x THUMB grey levels; empty if it was not decoded


class ScanOptions(NamedTuple):
    """What the scan needs for each image."""

    annotations: Annotations
    config: DataConfig
    decode: bool

    def at(self, index: int) -> ImageInfo:
        """Scan an image. Damage after the header is found only with `decode`, except missing rows of JPEGs."""
        path = self.annotations.path(index)
        try:
            header = read_header(path, self.config)
            rows = fraction_of_rows(path, self.config)
            info = ImageInfo(index, header.size, header.frames, rows, header.conversion)
            if info.rows < MIN_ROWS and not self.decode:
                what = f"{path} is damaged: {info.rows:.0%} of its rows are intact"
                return info._replace(problem=what, code="DATA-IMAGE-DAMAGED")
            return _with_pixels(info, read_image(path, self.config)) if self.decode else info
        except DataError as error:
            return ImageInfo(index, problem=error.what, code=error.code)


def scan_images(
    annotations: Annotations, config: DataConfig, decode: bool, indices: Sequence[int] | None = None
) -> Iterator[ImageInfo]:
    """Scan all images, or those with the given indices, in order.

    Raises:
        EnvironmentFault: a worker was killed.
    """
    options = ScanOptions(annotations, config, decode)
    chosen = range(len(annotations.image_ids)) if indices is None else indices
    if len(chosen) < (FEW if decode else FEW_HEADERS):
        yield from map(options.at, chosen)
        return
    workers = ProcessPoolExecutor(min(8, os.cpu_count() or 1), initializer=_init_worker, initargs=(options,))
    try:
        yield from workers.map(_scan_in_worker, chosen, chunksize=CHUNK_SIZE)
    except BrokenProcessPool as error:
        what = "a process that reads images was killed, perhaps because the system ran out of memory"
        raise EnvironmentFault(what, fix="close other programs, or remove very large images") from error
    finally:
        workers.shutdown(cancel_futures=True)


_worker_options: list[ScanOptions] = []


def _init_worker(options: ScanOptions) -> None:
    leave_signals_to_the_parent()
    _worker_options[:] = [options]


def _scan_in_worker(index: int) -> ImageInfo:
    return _worker_options[0].at(index)


def _with_pixels(info: ImageInfo, image: Image.Image) -> ImageInfo:
    grey = image.convert("L")
    low, high = (int(value) for value in grey.getextrema())  # pyright: ignore[reportArgumentType]  one band
    levels = np.array(grey.histogram())
    total = levels.sum()
    return info._replace(
        brightness=float((levels * np.arange(256)).sum() / total),
        dark=bool(levels[:DARK].sum() >= MIN_DARK * total),
        blank=high - low <= BLANK,
        thumb=grey.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes(),
    )


def check_images(annotations: Annotations, infos: Sequence[ImageInfo], findings: Findings) -> None:
    """Report files that cannot be read, differ from the annotations, or look suspicious."""

    def places(chosen: Sequence[tuple[ImageInfo, str]]) -> list[Location]:
        return [_place(annotations, info, text) for info, text in chosen]

    check_files(annotations, infos, findings)
    named = [(info, annotations.path(info.index).name) for info in infos if not info.problem]
    odd = [(info, f"{name}: {info.size[0]} x {info.size[1]}") for info, name in named
           if min(info.size) < ODD_SIDE or max(info.size) > ODD_ASPECT * min(info.size)]  # fmt: skip
    what = f"{counted(len(odd), 'image')} smaller than {ODD_SIDE} pixels or very long"
    findings.add("DATA-IMAGE-ODD", what, places(odd))
    frames = [(info, f"{name}: {info.frames} frames") for info, name in named if info.frames > 1]
    what = f"{counted(len(frames), 'file')} with several images; only the first is used"
    findings.add("DATA-IMAGE-FRAMES", what, places(frames))
    dark = [(info, f"{name}: mean brightness {info.brightness:.0f} of 255") for info, name in named
            if info.dark and not info.blank]  # fmt: skip
    findings.add("DATA-IMAGE-DARK", f"{counted(len(dark), 'image')} nearly black", places(dark))
    blank = [(info, f"{name}: brightness {info.brightness:.0f} of 255") for info, name in named if info.blank]
    findings.add("DATA-IMAGE-BLANK", f"{counted(len(blank), 'image')} of one colour", places(blank))


def check_files(annotations: Annotations, infos: Sequence[ImageInfo], findings: Findings) -> None:
    """Report files that cannot be trained on as annotated, or that are used in an unexpected way."""
    for code in sorted({info.code for info in infos if info.code}):  # each kind of problem once
        broken = [info for info in infos if info.code == code]
        places = [_place(annotations, info, info.problem) for info in broken]
        findings.add(code, f"{counted(len(broken), 'image')} cannot be read", places)
    readable = [info for info in infos if not info.problem]
    # the boxes may be those of another image
    other_size = [info for info in readable if info.size != tuple(annotations.sizes[info.index].tolist())]
    places = [_place(annotations, info, _other_size(annotations, info)) for info in other_size]
    what = f"{counted(len(other_size), 'image')} whose size differs from the annotations"
    findings.add("DATA-IMAGE-SIZE", what, places)
    cut = [info for info in readable if info.rows < 1]
    places = [
        _place(annotations, info, f"{annotations.path(info.index).name}: {info.rows:.0%} of its rows") for info in cut
    ]
    findings.add("DATA-IMAGE-CUT", f"{counted(len(cut), 'image')} truncated at the end of the file", places)
    for conversion in sorted({info.conversion for info in infos} - {""}):
        converted = [info for info in readable if info.conversion == conversion]
        places = [_place(annotations, info, annotations.path(info.index).name) for info in converted]
        findings.add("DATA-IMAGE-CHANNELS", f"{len(converted)} of {len(infos)} images {conversion}", places)


def _place(annotations: Annotations, info: ImageInfo, text: str) -> Location:
    boxes = annotations.boxes[annotations.objects(info.index)].tolist()
    return Location(text, annotations.path(info.index), boxes)


def _other_size(annotations: Annotations, info: ImageInfo) -> str:
    annotated = tuple(annotations.sizes[info.index].tolist())
    turned = ", which is the same rotated, as by an EXIF orientation" if annotated == info.size[::-1] else ""
    name: Path = annotations.path(info.index)
    found, stated = (f"{width} x {height}" for width, height in (info.size, annotated))
    return f"{name.name} has {found} pixels, but the annotations say {stated}{turned}"
