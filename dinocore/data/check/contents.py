"""Find suspicious but valid annotations: boxes, classes, empty and unlisted images."""

import os
from collections.abc import Iterable

import numpy as np

from ...words import counted
from ..annotations import Annotations
from ..findings import KEPT, Findings, Location, short_box
from ..images import SUFFIXES
from ..split import Category, visible_files

NO_OBJECTS = "no objects to evaluate on: AP cannot be measured"
FEW = 10  # a class with fewer objects is rare
DOT = 2  # largest side, in pixels, of a box that looks like an accidental click
SAME = 0.9  # minimum IoU of boxes that count as the same object


def check_contents(annotations: Annotations, findings: Findings, is_training: bool) -> None:
    """Report objects, classes and images that are valid but suspicious."""
    _check_objects(annotations, findings)
    _check_overlaps(annotations, findings)
    if is_training:
        _check_classes(annotations, findings)
    empty = np.flatnonzero(np.diff(annotations.starts) == 0)
    places = [Location(annotations.path(i).name, annotations.path(i)) for i in empty[:KEPT].tolist()]
    findings.add("DATA-IMAGE-EMPTY", f"{counted(len(empty), 'image')} without objects", places, len(empty))


def check_unlisted(annotations: Annotations, listed: set[str], findings: Findings) -> None:
    """Report images in the image folder that no split contains."""
    found = [path for path in visible_files(annotations.image_root, SUFFIXES) if os.path.realpath(path) not in listed]
    places = [Location(os.path.relpath(path, annotations.image_root), path) for path in found[:KEPT]]
    findings.add("DATA-IMAGE-UNLISTED", f"{counted(len(found), 'image')} not in the annotations", places, len(found))


def _check_objects(annotations: Annotations, findings: Findings) -> None:
    owners, boxes, sizes = annotations.owners(), annotations.boxes, annotations.sizes

    def places(which: np.ndarray) -> Iterable[Location]:
        for i in which[:KEPT].tolist():
            path = annotations.path(int(owners[i]))
            yield Location(f"{path.name} {short_box(boxes[i])}", path, [boxes[i].tolist()])

    beyond = np.any((boxes[:, :2] < 0) | (boxes[:, :2] + boxes[:, 2:] > sizes[owners]), axis=1)
    partly = np.flatnonzero(beyond & annotations.trainable())
    reach = "reaches beyond its" if len(partly) == 1 else "reach beyond their"
    what = f"{len(partly)} of {len(boxes)} boxes {reach} image, clipped for training"
    findings.add("DATA-BOX-PARTLY", what, places(partly), len(partly))
    dots = np.flatnonzero((boxes[:, 2:].max(1, initial=0) <= DOT) & annotations.trainable())
    have = "has" if len(dots) == 1 else "have"
    what = f"{len(dots)} of {len(boxes)} boxes {have} at most {DOT} x {DOT} pixels, as from an accidental click"
    findings.add("DATA-BOX-DOT", what, places(dots), len(dots))
    crowds = np.flatnonzero(annotations.crowd)
    regions = counted(len(crowds), "crowd region or difficult object", "crowd regions or difficult objects")
    findings.add("DATA-CROWD", f"{regions}, ignored in training", places(crowds), len(crowds))


def _check_overlaps(annotations: Annotations, findings: Findings) -> None:
    """Report pairs of nearly identical boxes in an image: objects that were labelled twice."""
    pairs: dict[str, list[Location]] = {"same": [], "other": []}
    for index in np.flatnonzero(np.diff(annotations.starts) > 1).tolist():
        rows = annotations.objects(index)
        boxes, labels, crowd = annotations.boxes[rows], annotations.labels[rows], annotations.crowd[rows]
        first, second = np.nonzero(np.triu(overlaps(boxes) >= SAME, 1) & ~crowd[:, None] & ~crowd)
        for i, j in zip(first.tolist(), second.tolist(), strict=True):
            path, kinds = annotations.path(index), [_name(annotations, labels[k]) for k in (i, j)]
            text = f"{path.name} {kinds[0]} {short_box(boxes[i])} ~ {kinds[1]} {short_box(boxes[j])}"
            kind = "same" if labels[i] == labels[j] else "other"
            pairs[kind].append(Location(text, path, boxes[[i, j]].tolist()))
    for code, kind, classes in (
        ("DATA-BOX-TWICE", "same", "one class"),
        ("DATA-BOX-TWO-CLASSES", "other", "two classes"),
    ):
        what = f"{counted(len(pairs[kind]), 'pair')} of boxes of {classes} with IoU of {SAME:.0%} or more"
        findings.add(code, what, pairs[kind])


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs of boxes, (n, 4) x y width height -> (n, n); 0 if a box has no area."""
    low, high = boxes[:, None, :2], (boxes[:, :2] + boxes[:, 2:])[:, None]  # (n, 1, 2)
    shared = (np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1))).clip(0).prod(2)
    area = boxes[:, 2:].clip(0).prod(1)
    return shared / np.maximum(area[:, None] + area - shared, 1e-9)


def _check_classes(annotations: Annotations, findings: Findings) -> None:
    counts = np.bincount(annotations.labels[annotations.trainable()], minlength=len(annotations.categories))
    numbered: list[tuple[Category, int]] = list(zip(annotations.categories, counts.tolist(), strict=True))
    findings.add("DATA-CLASS-UNUSED", "classes without objects", [c.name for c, count in numbered if not count])
    few = [f"{c.name} {count}" for c, count in numbered if 0 < count < FEW]
    findings.add("DATA-CLASS-RARE", f"classes with fewer than {FEW} objects", few)


def _name(annotations: Annotations, label: int) -> str:
    return annotations.categories[label].name if label >= 0 else "unknown"
