"""Hold out some training images for validation, for datasets without a validation split."""

import numpy as np

from ..config import DataConfig
from ..errors import DataError
from .annotations import Annotations, choose_images
from .check.duplicates import SplitImage, near_pairs, same_files
from .check.scan import scan_images

SEED = 0  # fixed, so that the same images are held out every time


def hold_out(annotations: Annotations, config: DataConfig) -> tuple[Annotations, Annotations]:
    """Split a training set into training and validation images, with the fraction `data.val_fraction` for validation.

    Groups of identical or nearly identical images are not split up; to find them, every image is decoded once. If the
    fraction allows, each class that is in g least two groups is in both splits.

    Raises:
        DataError: there are too few distinct images.
    """
    held = choose_held_out(image_groups(annotations, config), annotations, config.val_fraction)
    if not len(held):
        what = f"too few images, or too many duplicates, to hold out {config.val_fraction:.0%} for validation"
        raise DataError(what, code="DATA-SPLIT", where=annotations.file,
                        fix="choose another --val-fraction, or add a validation split")  # fmt: skip
    rows = np.arange(len(annotations.image_ids))
    return choose_images(annotations, np.setdiff1d(rows, held)), choose_images(annotations, held)


def image_groups(annotations: Annotations, config: DataConfig) -> list[list[int]]:
    """Image indices, grouped so that duplicates are together; each index is in exactly one group."""
    infos = list(scan_images(annotations, config, decode=True))
    images = [SplitImage(str(info.index), annotations.path(info.index)) for info in infos]
    parent = list(range(len(annotations.image_ids)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    pairs = [(group[0], other) for group in same_files(images) for other in group[1:]]
    for first, second in (*pairs, *near_pairs(images, infos)):
        parent[root(int(second.split))] = root(int(first.split))
    groups: dict[int, list[int]] = {}
    for i in range(len(parent)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def choose_held_out(groups: list[list[int]], annotations: Annotations, fraction: float) -> np.ndarray:
    """Indices of the images to hold out, ascending: groups with rare classes first, then groups in random order."""
    num_images = sum(map(len, groups))
    target = min(max(1, round(fraction * num_images)), num_images - 1)
    order = np.random.default_rng(SEED).permutation(len(groups)).tolist()
    usable = annotations.trainable()
    classes = [set(_labels(annotations, usable, group)) for group in groups]
    # the number of groups with each class that are left for training
    left = {label: sum(label in own for own in classes) for label in sorted(set().union(*classes))}
    held: list[int] = []

    def hold(g: int) -> bool:
        fits = sum(len(groups[i]) for i in held) + len(groups[g]) <= target
        if g in held or not fits or any(left[label] < 2 for label in classes[g]):
            return False
        held.append(g)
        for label in classes[g]:
            left[label] -= 1
        return True

    for label in sorted(left, key=lambda label: left[label]):
        if not any(label in classes[g] for g in held):
            next((g for g in order if label in classes[g] and hold(g)), None)
    for g in order:
        hold(g)
    return np.array(sorted(row for g in held for row in groups[g]), dtype=np.int64)


def _labels(annotations: Annotations, usable: np.ndarray, group: list[int]) -> list[int]:
    rows = np.concatenate([np.arange(annotations.starts[i], annotations.starts[i + 1]) for i in group])
    return annotations.labels[rows[usable[rows]]].tolist()
