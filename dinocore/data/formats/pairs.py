"""Folders of annotation files, one an image, each with the folder of the images that they are about."""

import os
from collections.abc import Callable, Container
from pathlib import Path

from ..images import IMAGE_SUFFIXES
from ..split import split_told_by, visible_files

TRIED = 3  # files of a folder that are looked into to tell its format


def paired_folders(folder: Path, suffix: str, is_format: Callable[[Path], bool]) -> dict[str, tuple[Path, Path]]:
    """By split, a folder of files in one format and the one with most images of the same names, the nearest of equals.

    A name on the way to them tells the split; where none does, they are for training. Empty where two pairs may be
    those of one split.
    """
    texts, images = _stems(folder, (suffix,)), _stems(folder, IMAGE_SUFFIXES)
    pairs: dict[str, list[tuple[Path, Path]]] = {}
    for where, stems in texts.items():
        near = {place: (len(stems & known), len(os.path.commonpath([place, where]))) for place, known in images.items()}
        best = max(near, key=lambda place: near[place], default=None)
        if best is None or not near[best][0]:
            continue
        if not any(is_format(where / f"{stem}{suffix}") for stem in sorted(stems & images[best])[:TRIED]):
            continue
        parts = [part for path in (where, best) for part in reversed(path.relative_to(folder).parts)]
        name = next((told for part in parts if (told := split_told_by(part))), "")
        pairs.setdefault(name, []).append((where, best))
    if "" in pairs and not pairs.keys() & {"train", "val"}:
        pairs = {"train": pairs[""]}
    pairs.pop("", None)
    if any(len(several) > 1 for several in pairs.values()):
        return {}
    return {name: pair for name, (pair,) in pairs.items()}


def _stems(folder: Path, suffixes: Container[str]) -> dict[Path, set[str]]:
    """For each folder, names of the files that lie directly in it, without their suffix."""
    found: dict[Path, set[str]] = {}
    for file in visible_files(folder, suffixes):
        found.setdefault(file.parent, set()).add(file.stem)
    return found
