"""Hold out some training images for validation if a dataset has no validation split."""

import numpy as np

from ..config import DataConfig
from ..errors import DataError
from .annotations import Annotations, choose_images
from .check.duplicates import SplitImage, near_pairs, same_files
from .check.scan import scan_images

SEED = 0  # so that the same data always hold out the same images


def hold_out(annotations: Annotations, config: DataConfig) -> tuple[Annotations, Annotations]:
    """Training and validation images, `data.val_fraction` of them for validation.

    Identical and nearly identical images stay together: every image is decoded once to find them. For every class in
    at least two such groups, each side gets at least one, if the fraction allows.

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
    """Groups of rows of duplicate images; each row is in one group."""
    facts = list(scan_images(annotations, config, decode=True))
    shown = [SplitImage(str(facts[i].index), annotations.path(facts[i].index)) for i in range(len(facts))]
    parent = list(range(len(annotations.image_ids)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    pairs = [(group[0], other) for group in same_files(shown) for other in group[1:]]
    for first, second in (*pairs, *near_pairs(shown, facts)):
        parent[root(int(second.split))] = root(int(first.split))
    groups: dict[int, list[int]] = {}
    for i in range(len(parent)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def choose_held_out(groups: list[list[int]], annotations: Annotations, fraction: float) -> np.ndarray:
    """Rows of the images to hold out, ascending: rare classes first, then groups in random order."""
    num_images = sum(map(len, groups))
    target = min(max(1, round(fraction * num_images)), num_images - 1)
    drawn = np.random.default_rng(SEED).permutation(len(groups)).tolist()
    usable = annotations.trainable()
    classes = [set(_labels(annotations, usable, group)) for group in groups]
    left = {label: sum(label in own for own in classes) for label in sorted(set().union(*classes))}
    held: list[int] = []

    def take(at: int) -> bool:
        fits = sum(len(groups[i]) for i in held) + len(groups[at]) <= target
        if at in held or not fits or any(left[label] < 2 for label in classes[at]):
            return False
        held.append(at)
        for label in classes[at]:
            left[label] -= 1
        return True

    for label in sorted(left, key=lambda label: left[label]):
        if not any(label in classes[at] for at in held):
            next((at for at in drawn if label in classes[at] and take(at)), None)
    for at in drawn:
        take(at)
    return np.array(sorted(row for at in held for row in groups[at]), dtype=np.int64)


def _labels(annotations: Annotations, usable: np.ndarray, group: list[int]) -> list[int]:
    rows = np.concatenate([np.arange(annotations.starts[i], annotations.starts[i + 1]) for i in group])
    return annotations.labels[rows[usable[rows]]].tolist()
