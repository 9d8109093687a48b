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

HEAD = 4096  # bytes that are compared before whole files are read
MAX_BITS = 7  # of 64 in which the hashes of near-duplicates may differ
MAX_LEVELS = 5.0  # mean difference of grey levels, of 255
MOST_PAIRS = 2000


class Shown(NamedTuple):
    """An image of a split."""

    split: str
    path: Path

    @property
    def text(self) -> str:
        """Such as `train a.jpg`."""
        return f"{self.split} {self.path.name}"


def same_files(images: Iterable[Shown]) -> list[list[Shown]]:
    """Groups of images whose files are equal, byte for byte; only files of one length and one beginning are read."""
    groups = [list(images)]
    steps: tuple[Callable[[Path], Any], ...] = (
        lambda path: path.stat().st_size,
        lambda path: _hash(path, HEAD),
        lambda path: _hash(path, -1),
    )
    for key in steps:
        groups = [part for group in groups for part in _split_by(group, key) if len(part) > 1]
    return groups


def near_pairs(images: list[Shown], facts: list[ImageInfo]) -> list[tuple[Shown, Shown]]:
    """Pairs that differ in at most MAX_BITS of a difference hash, and in few grey levels.

    The hash has a bit for each of 8 x 8 neighbours: which of the two is brighter. Hashes that differ in 7 bits of 64
    have one of 8 bytes in common, so only images that share a byte are compared.
    """
    seen = [i for i, f in enumerate(facts) if f.thumb and not f.blank]
    if len(seen) < 2:
        return []
    thumbs = np.stack([np.frombuffer(facts[i].thumb, np.uint8) for i in seen]).astype(np.float32)  # (n, THUMB²)
    bits = _hash_bits(thumbs.reshape(-1, THUMB, THUMB))  # (n, 64)
    parts = np.packbits(bits, axis=1)  # (n, 8)
    found: set[tuple[int, int]] = set()
    for part in parts.T:
        order = np.argsort(part, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            found |= _close(np.sort(group), bits, thumbs)
    return [(images[seen[a]], images[seen[b]]) for a, b in sorted(found)]


def check_duplicates(same: list[list[Shown]], near: list[tuple[Shown, Shown]], findings: Findings) -> None:
    """Findings about equal images, in two splits or in one."""
    splits = [{shown.split for shown in group} for group in same]
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
    """Pairs of a group that are near-duplicates; of a group too large to compare, neighbours only."""
    found = set()
    for at, first in enumerate(group[:-1].tolist()):
        others = group[at + 1 : at + 1 + MOST_PAIRS]
        others = others[(bits[others] != bits[first]).sum(1) <= MAX_BITS]
        others = others[np.abs(thumbs[others] - thumbs[first]).mean(1) <= MAX_LEVELS]
        found |= {(first, int(other)) for other in others}
    return found


def _hash_bits(thumbs: np.ndarray) -> np.ndarray:
    """(n, 16, 16) -> (n, 64) bool: each of 8 x 8 cells against its right neighbour, of 8 x 9 overlapping cells."""
    rows = thumbs.reshape(len(thumbs), 8, THUMB // 8, THUMB).mean(2)  # (n, 8, 16)
    starts = np.linspace(0, THUMB - 2, 9).round().astype(int)
    cells = (rows[:, :, starts] + rows[:, :, starts + 1]) / 2  # (n, 8, 9)
    return (cells[:, :, 1:] > cells[:, :, :-1]).reshape(len(thumbs), 64)


def _split_by(group: list[Shown], key: Callable[[Path], Any]) -> list[list[Shown]]:
    parts: dict[Any, list[Shown]] = defaultdict(list)
    for shown in group:
        try:
            parts[key(shown.path)].append(shown)
        except OSError:
            continue  # said when it is looked at
    return list(parts.values())


def _hash(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.sha1(file.read(length), usedforsecurity=False).digest()
