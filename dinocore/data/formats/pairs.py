"""Folders of annotation files, one an image, each with the folder of the images that they are about."""

import os
from collections import Counter
from collections.abc import Callable, Container
from pathlib import Path

from ..images import IMAGE_SUFFIXES
from ..split import nameless_for_training, split_in_path, tails, visible_files

TRIED = 3  # files of a folder that are looked into to tell its format


def paired_folders(folder: Path, suffix: str, is_format: Callable[[Path], bool]) -> dict[str, tuple[Path, Path]]:
    """By split, a folder of files in one format and the one with most images of the same names, the nearest of equals.

    A name on the way to them tells the split; where none does, they are for training. Several pairs of a split are
    one, that of the folders above them, if all have the same paths below these: `xml/a` and `xml/b` beside `images/a`
    and `images/b`. Otherwise nothing says how they belong together, and none is given.
    """
    pairs = every_pair(folder, suffix, is_format)
    whole = {name: _as_one_pair(several, pairs) for name, several in nameless_for_training(pairs).items()}
    found = {name: pair for name, pair in whole.items() if pair is not None}
    return found if len(found) == len(whole) else {}


def every_pair(folder: Path, suffix: str, is_format: Callable[[Path], bool]) -> dict[str, list[tuple[Path, Path]]]:
    """The pairs of each split that a name tells, and under an empty text those of none."""
    texts, images = _by_stem(folder, (suffix,)), _by_stem(folder, IMAGE_SUFFIXES)
    pairs: dict[str, list[tuple[Path, Path]]] = {}
    for where, files in texts.items():
        shared = {place: len(files.keys() & known.keys()) for place, known in images.items()}
        near = {place: (count, *_nearness(place, where)) for place, count in shared.items()}
        best = max(near, key=lambda place: near[place], default=None)
        if best is None or not near[best][0]:
            continue
        shared_files = [files[stem] for stem in sorted(files.keys() & images[best].keys())]
        if not any(map(is_format, [file for file in shared_files if file.stat().st_size][:TRIED])):
            continue
        name = split_in_path([part for path in (best, where) for part in path.relative_to(folder).parts])
        pairs.setdefault(name, []).append((where, best))
    return pairs


def _nearness(one: Path, other: Path) -> tuple[int, int]:
    """How much of their paths two folders share at the start, and how many parts at the end."""
    ends = zip(reversed(one.parts), reversed(other.parts), strict=False)
    same = next((n for n, (a, b) in enumerate(ends) if a != b), len(one.parts))
    return len(os.path.commonpath([one, other])), same


def _as_one_pair(
    several: list[tuple[Path, Path]], pairs: dict[str, list[tuple[Path, Path]]]
) -> tuple[Path, Path] | None:
    """The folders above these pairs, if all lie at the same paths below them and no pair of another split does; these
    are two folders, for nothing says that `a` and `b` with both in each are one split.
    """
    above = [Path(os.path.commonpath(folders)) for folders in zip(*several, strict=True)]
    labels, images = above
    alike = all(where.relative_to(labels) == best.relative_to(images) for where, best in several)
    others = [pair for group in pairs.values() if group is not several for pair in group]
    mixed = any(where.is_relative_to(labels) or best.is_relative_to(images) for where, best in others)
    return (labels, images) if len(several) == 1 or (labels != images and alike and not mixed) else None


def names_on_disk(names: list[str], roots: list[Path]) -> list[str]:
    """Names as they are below the folder that has most of them: with a suffix where none is written, and of a path of
    another machine the longest end that is there and that no other name may mean.
    """
    best: dict[str, str] = {}
    for root in (root for root in dict.fromkeys(roots) if root.is_dir()):
        files = [path.relative_to(root).as_posix() for path in visible_files(root, IMAGE_SUFFIXES)]
        known = {name.rpartition(".")[0]: name for name in files} | {name: name for name in files}
        found = {}
        for name in names:
            ends = tails(name) if name.startswith("/") or ":" in name else [name]
            if end := next((end for end in ends if end in known), ""):
                found[name] = known[end]
        uses = Counter(found.values())
        best = max(best, {name: file for name, file in found.items() if uses[file] == 1}, key=len)
    return [best.get(name, name) for name in names]


def _by_stem(folder: Path, suffixes: Container[str]) -> dict[Path, dict[str, Path]]:
    """For each folder, the files that lie directly in it by their names without suffix."""
    found: dict[Path, dict[str, Path]] = {}
    for file in visible_files(folder, suffixes):
        found.setdefault(file.parent, {})[file.stem] = file
    return found
