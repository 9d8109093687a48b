"""Find duplicate images: identical files, or nearly identical pixels."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...words import counted
from ..findings import Findings, Location
from .scan import THUMB, ImageInfo

HEAD = 4096  # bytes at the start of files that are compared before whole files
MAX_BITS = 7  # of 64, in which the hashes of near-duplicates may differ
MAX_LEVELS = 5.0  # mean difference of grey levels, of 255
MAX_COMPARED = 2000  # images of a group that each image is compared with


class SplitImage(NamedTuple):
    """An image of a split."""

    split: str
    path: Path

    @property
    def text(self) -> str:
        """For messages, such as `train a.jpg`."""
        return f"{self.split} {self.path.name}"


def same_files(images: Iterable[SplitImage]) -> list[list[SplitImage]]:
    """Groups of identical files. Only files of the same size and with the same start are read as a whole."""
    groups = [list(images)]
    steps: tuple[Callable[[Path], Any], ...] = (
        lambda path: path.stat().st_size,
        lambda path: _hash(path, HEAD),
        lambda path: _hash(path, -1),
    )
    for key in steps:
        groups = [part for group in groups for part in _split_by(group, key) if len(part) > 1]
    return groups


def near_pairs(images: list[SplitImage], infos: list[ImageInfo]) -> list[tuple[SplitImage, SplitImage]]:
    """Pairs that differ in at most MAX_BITS of a difference hash, and by at most MAX_LEVELS grey levels on average.

    Each of the 8 x 8 bits of the hash says which of two neighbouring cells is brighter. Hashes that differ in at most
    7 of 64 bits have at least one of their 8 bytes in common, so only images that share a byte are compared.
    """
    usable = [i for i, info in enumerate(infos) if info.thumb and not info.blank]
    if len(usable) < 2:
        return []
    thumbs = np.stack([np.frombuffer(infos[i].thumb, np.uint8) for i in usable]).astype(np.float32)  # (n, THUMB²)
    bits = _hash_bits(thumbs.reshape(-1, THUMB, THUMB))  # (n, 64)
    parts = np.packbits(bits, axis=1)  # (n, 8)
    found: set[tuple[int, int]] = set()
    for part in parts.T:
        order = np.argsort(part, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            found |= _close(np.sort(group), bits, thumbs)
    return [(images[usable[a]], images[usable[b]]) for a, b in sorted(found)]


def check_duplicates(
    same: list[list[SplitImage]], near: list[tuple[SplitImage, SplitImage]], findings: Findings
) -> None:
    """Report identical and nearly identical images, between two splits or within one."""
    splits = [{image.split for image in group} for group in same]
    for code, which, what in (("DATA-LEAK", lambda names: len(names) > 1, "in two splits"),
                              ("DATA-DUPLICATE", lambda names: len(names) == 1, "repeated in a split")):  # fmt: skip
        groups = [group for group, names in zip(same, splits, strict=True) if which(names)]
        places = [Location(" = ".join(s.text for s in group), group[0].path, (), group[1].path) for group in groups]
        findings.add(
            code, f"{counted(len(groups), 'image')} {'is' if len(groups) == 1 else 'are'} {what}, byte for byte", places
        )
    equal = {frozenset((a.path, b.path)) for group in same for a in group for b in group}
    others = [(a, b) for a, b in near if frozenset((a.path, b.path)) not in equal]
    for code, which, what in (("DATA-NEAR-LEAK", lambda a, b: a.split != b.split, "in two splits"),
                              ("DATA-NEAR-DUPLICATE", lambda a, b: a.split == b.split, "in one split")):  # fmt: skip
        pairs = [(a, b) for a, b in others if which(a, b)]
        places = [Location(f"{a.text} ~ {b.text}", a.path, (), b.path) for a, b in pairs]
        findings.add(code, f"{counted(len(pairs), 'pair')} of images {what} that look nearly the same", places)


def _close(group: np.ndarray, bits: np.ndarray, thumbs: np.ndarray) -> set[tuple[int, int]]:
    """Near-duplicate pairs in a group; each image is compared with at most MAX_COMPARED that follow it."""
    found = set()
    for at, first in enumerate(group[:-1].tolist()):
        others = group[at + 1 : at + 1 + MAX_COMPARED]
        others = others[(bits[others] != bits[first]).sum(1) <= MAX_BITS]
        others = others[np.abs(thumbs[others] - thumbs[first]).mean(1) <= MAX_LEVELS]
        found |= {(first, int(other)) for other in others}
    return found


def _hash_bits(thumbs: np.ndarray) -> np.ndarray:
    """Difference hashes, (n, 16, 16) -> (n, 64) bool: 8 x 9 overlapping cells, each against its right neighbour."""
    rows = thumbs.reshape(len(thumbs), 8, THUMB // 8, THUMB).mean(2)  # (n, 8, 16)
    starts = np.linspace(0, THUMB - 2, 9).round().astype(int)
    cells = (rows[:, :, starts] + rows[:, :, starts + 1]) / 2  # (n, 8, 9)
    return (cells[:, :, 1:] > cells[:, :, :-1]).reshape(len(thumbs), 64)


def _split_by(group: list[SplitImage], key: Callable[[Path], Any]) -> list[list[SplitImage]]:
    parts: dict[Any, list[SplitImage]] = defaultdict(list)
    for image in group:
        try:
            parts[key(image.path)].append(image)
        except OSError:
            continue  # reported by the scan
    return list(parts.values())


def _hash(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.sha1(file.read(length), usedforsecurity=False).digest()
