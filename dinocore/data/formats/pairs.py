"""Find pairs of folders: annotation files, one per image, and the images that they belong to."""

import os
from collections import Counter
from collections.abc import Callable, Container
from pathlib import Path

from ..images import IMAGE_SUFFIXES
from ..split import split_in_path, tails, unnamed_as_train, visible_files

MAX_PROBED_FILES = 3  # files per folder that are opened to detect its format


def paired_folders(folder: Path, suffix: str, is_format: Callable[[Path], bool]) -> dict[str, tuple[Path, Path]]:
    """For each split, the folder of its annotation files and the folder of its images.

    The two folders have the most file names in common; of equals, the nearest counts. The split is in the path of
    either, and is `train` by default. Several pairs of a split are merged to their common parents if their paths below
    these are the same: `xml/a` and `xml/b` beside `images/a` and `images/b`. Otherwise it is unclear how they belong
    together, and the result is empty.
    """
    pairs = every_pair(folder, suffix, is_format)
    merged = {name: _merge_pairs(several, pairs) for name, several in unnamed_as_train(pairs).items()}
    found = {name: pair for name, pair in merged.items() if pair is not None}
    return found if len(found) == len(merged) else {}


def every_pair(folder: Path, suffix: str, is_format: Callable[[Path], bool]) -> dict[str, list[tuple[Path, Path]]]:
    """All pairs (annotations, images) by split; those whose paths contain no split are under an empty text."""
    annotations, images = _by_stem(folder, (suffix,)), _by_stem(folder, IMAGE_SUFFIXES)
    pairs: dict[str, list[tuple[Path, Path]]] = {}
    for where, files in annotations.items():
        num_shared = {place: len(files.keys() & stems.keys()) for place, stems in images.items()}
        ranks = {place: (count, *_nearness(place, where)) for place, count in num_shared.items()}
        best = max(ranks, key=lambda place: ranks[place], default=None)
        if best is None or not ranks[best][0]:
            continue
        shared_files = [files[stem] for stem in sorted(files.keys() & images[best].keys())]
        if not any(map(is_format, [file for file in shared_files if file.stat().st_size][:MAX_PROBED_FILES])):
            continue
        name = split_in_path([part for path in (best, where) for part in path.relative_to(folder).parts])
        pairs.setdefault(name, []).append((where, best))
    return pairs


def _nearness(one: Path, other: Path) -> tuple[int, int]:
    """How similar two paths are: the length of their common start, and the number of common parts at the end."""
    ends = zip(reversed(one.parts), reversed(other.parts), strict=False)
    common_end = next((n for n, (a, b) in enumerate(ends) if a != b), len(one.parts))
    return len(os.path.commonpath([one, other])), common_end


def _merge_pairs(
    several: list[tuple[Path, Path]], pairs: dict[str, list[tuple[Path, Path]]]
) -> tuple[Path, Path] | None:
    """The common parent folders of a split's pairs, if the pairs have the same paths below both, and no pair of another
    split is there.

    The two parents must differ: it is unclear whether folders with annotations beside their images are one split.
    """
    labels, images = [Path(os.path.commonpath(folders)) for folders in zip(*several, strict=True)]
    same_paths = all(left.relative_to(labels) == right.relative_to(images) for left, right in several)
    others = [pair for group in pairs.values() if group is not several for pair in group]
    mixed = any(left.is_relative_to(labels) or right.is_relative_to(images) for left, right in others)
    return (labels, images) if len(several) == 1 or (labels != images and same_paths and not mixed) else None


def names_on_disk(names: list[str], roots: list[Path]) -> list[str]:
    """Resolve image names to paths relative to the root that has most of them; others stay as they are.

    Missing suffixes are added. An absolute path of another machine becomes the longest end of it that exists. A file
    that several names resolve to is not used.
    """
    best: dict[str, str] = {}
    for root in (root for root in dict.fromkeys(roots) if root.is_dir()):
        files = [path.relative_to(root).as_posix() for path in visible_files(root, IMAGE_SUFFIXES)]
        on_disk = {name.rpartition(".")[0]: name for name in files} | {name: name for name in files}
        found = {}
        for name in names:
            ends = tails(name) if name.startswith("/") or ":" in name else [name]
            if end := next((end for end in ends if end in on_disk), ""):
                found[name] = on_disk[end]
        uses = Counter(found.values())
        best = max(best, {name: file for name, file in found.items() if uses[file] == 1}, key=len)
    return [best.get(name, name) for name in names]


def _by_stem(folder: Path, suffixes: Container[str]) -> dict[Path, dict[str, Path]]:
    """For each folder, the files directly in it, by their names without suffix."""
    found: dict[Path, dict[str, Path]] = {}
    for file in visible_files(folder, suffixes):
        found.setdefault(file.parent, {})[file.stem] = file
    return found
