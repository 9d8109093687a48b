"""Looks at every picture of a split, in parallel: its header, or, decoded, also its pixels."""

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
from ..findings import Findings, Place
from ..images import MIN_ROWS, glance, read_image, share_of_rows

THUMB = 16  # side of the grey picture that is kept of each
DARK, DARK_SHARE = 32, 0.99  # brightness of 255 that so many pixels stay below in a picture that is nearly black
BLANK = 4  # levels of brightness, at most, of a picture of one colour
ODD_SIDE, ODD_ASPECT = 32, 8
AT_ONCE = 16  # pictures that a worker takes
FEW, FEW_HEADERS = 64, 2000  # pictures for which workers are not worth it


class Facts(NamedTuple):
    """What was seen of a picture."""

    index: int
    size: tuple[int, int] = (0, 0)  # width and height, upright
    frames: int = 1
    rows: float = 1.0  # the share of a JPEG's rows that are there
    problem: str = ""  # why it cannot be read
    code: str = ""  # of the problem
    brightness: float = 0.0  # mean, of 255
    dark: bool = False
    blank: bool = False
    thumb: bytes = b""  # THUMB x THUMB grey levels; none where it was not decoded


class Looking(NamedTuple):
    """How pictures are looked at."""

    annotations: Annotations
    config: DataConfig
    decode: bool

    def at(self, index: int) -> Facts:
        """Facts of one picture; damage behind the header is found only with `decode`."""
        path = self.annotations.path(index)
        try:
            size, frames = glance(path, self.config)
            facts = Facts(index, size, frames, share_of_rows(path, self.config))
            if facts.rows < MIN_ROWS and not self.decode:
                what = f"{path} is damaged: {facts.rows:.0%} of its rows are there"
                return facts._replace(problem=what, code="DATA-IMAGE-DAMAGED")
            return _with_pixels(facts, read_image(path, self.config)) if self.decode else facts
        except DataError as error:
            return Facts(index, problem=error.what, code=error.code)


def look_at(
    annotations: Annotations, config: DataConfig, decode: bool, indices: Sequence[int] | None = None
) -> Iterator[Facts]:
    """Facts of every picture, or of some, in order.

    Raises:
        EnvironmentFault: a process that looks at pictures was killed.
    """
    looking = Looking(annotations, config, decode)
    chosen = range(len(annotations.image_ids)) if indices is None else indices
    if len(chosen) < (FEW if decode else FEW_HEADERS):
        yield from map(looking.at, chosen)
        return
    workers = ProcessPoolExecutor(min(8, os.cpu_count() or 1), initializer=_begin, initargs=(looking,))
    try:
        yield from workers.map(_look, chosen, chunksize=AT_ONCE)
    except BrokenProcessPool as error:
        what = "a process that looks at pictures was killed, as by a system that is out of memory"
        raise EnvironmentFault(what, fix="close other programs, or take very large pictures out") from error
    finally:
        workers.shutdown(cancel_futures=True)


_of_this_worker: list[Looking] = []


def _begin(looking: Looking) -> None:
    leave_signals_to_the_parent()
    _of_this_worker[:] = [looking]


def _look(index: int) -> Facts:
    return _of_this_worker[0].at(index)


def _with_pixels(facts: Facts, image: Image.Image) -> Facts:
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


def check_pictures(annotations: Annotations, facts: Sequence[Facts], findings: Findings) -> None:
    """Findings about files that cannot be read, are not as annotated, or are odd."""

    def places(chosen: Sequence[tuple[Facts, str]]) -> list[Place]:
        return [_place(annotations, f, text) for f, text in chosen]

    for code in sorted({f.code for f in facts if f.code}):
        broken = [(f, f.problem) for f in facts if f.code == code]
        findings.add(code, f"{counted(len(broken), 'picture')} cannot be read", places(broken))
    check_sizes(annotations, facts, findings)
    check_cut(annotations, facts, findings)
    whole = [f for f in facts if not f.problem]
    named = [(f, annotations.path(f.index).name) for f in whole]
    odd = [(f, f"{name}: {f.size[0]} x {f.size[1]}") for f, name in named
           if min(f.size) < ODD_SIDE or max(f.size) > ODD_ASPECT * min(f.size)]  # fmt: skip
    findings.add(
        "DATA-IMAGE-ODD", f"{counted(len(odd), 'picture')} smaller than {ODD_SIDE} pixels or very long", places(odd)
    )
    frames = [(f, f"{name}: {f.frames} frames") for f, name in named if f.frames > 1]
    findings.add(
        "DATA-IMAGE-FRAMES", f"{counted(len(frames), 'file')} of several pictures, the first counts", places(frames)
    )
    dark = [(f, f"{name}: mean brightness {f.brightness:.0f} of 255") for f, name in named if f.dark and not f.blank]
    findings.add("DATA-IMAGE-DARK", f"{counted(len(dark), 'picture')} nearly black", places(dark))
    blank = [(f, f"{name}: brightness {f.brightness:.0f} of 255") for f, name in named if f.blank]
    findings.add("DATA-IMAGE-BLANK", f"{counted(len(blank), 'picture')} of one colour", places(blank))


def check_cut(annotations: Annotations, facts: Sequence[Facts], findings: Findings) -> None:
    """Findings about JPEGs that lack their last bytes and are used for what is there."""
    cut = [f for f in facts if not f.problem and f.rows < 1]
    places = [_place(annotations, f, f"{annotations.path(f.index).name}: {f.rows:.0%} of its rows") for f in cut]
    findings.add("DATA-IMAGE-CUT", f"{counted(len(cut), 'image')} without the last bytes of the file", places)


def check_sizes(annotations: Annotations, facts: Sequence[Facts], findings: Findings) -> None:
    """Findings about pictures that are not as large as annotated: their boxes are of another picture, or turned."""
    other = [f for f in facts if not f.problem and f.size != tuple(annotations.sizes[f.index].tolist())]
    places = [_place(annotations, f, _other_size(annotations, f)) for f in other]
    findings.add("DATA-IMAGE-SIZE", f"{counted(len(other), 'picture')} of another size than annotated", places)


def _place(annotations: Annotations, facts: Facts, text: str) -> Place:
    boxes = annotations.boxes[annotations.objects(facts.index)].tolist()
    return Place(text, annotations.path(facts.index), boxes)


def _other_size(annotations: Annotations, facts: Facts) -> str:
    said = tuple(annotations.sizes[facts.index].tolist())
    turned = ", the same turned, as by an EXIF orientation" if said == facts.size[::-1] else ""
    name: Path = annotations.path(facts.index)
    return f"{name.name} has {facts.size[0]} x {facts.size[1]} pixels, {said[0]} x {said[1]} are annotated{turned}"
