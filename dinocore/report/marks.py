"""Which boxes of a picture are right: each takes the object of its class that it covers best, the surest first."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .parts import Mark

IOU = 0.5


class Objects(NamedTuple):
    """What is annotated in one picture."""

    boxes_xyxy: np.ndarray  # (T, 4) in pixels
    labels: np.ndarray  # (T,) index of the class
    crowd: np.ndarray  # (T,) bool


class Found(NamedTuple):
    """What was detected in it."""

    boxes_xyxy: np.ndarray  # (n, 4) in pixels
    labels: np.ndarray  # (n,)
    scores: np.ndarray  # (n,)


def judged_marks(objects: Objects, found: Found, names: Sequence[str]) -> list[Mark]:
    """Marks of both, matched at IoU 0.5 as COCO does; boxes within a crowd of their class are left out."""
    inter, area, found_area = _overlaps(objects.boxes_xyxy, found.boxes_xyxy)  # (T, n), (T, 1), (n,)
    same = objects.labels[:, None] == found.labels[None]  # (T, n)
    iou = np.where(same & ~objects.crowd[:, None], inter / np.maximum(area + found_area - inter, 1e-9), 0.0)
    in_crowd = (same & objects.crowd[:, None] & (inter > IOU * found_area)).any(0)  # (n,)
    answers: dict[int, float] = {}
    marks = []
    for n in np.argsort(-found.scores, kind="stable").tolist():
        free = np.array([0.0 if t in answers else iou[t, n] for t in range(len(iou))])
        best = int(free.argmax()) if len(free) else -1
        right = best >= 0 and free[best] >= IOU
        if right:
            answers[best] = float(found.scores[n])
        if right or not in_crowd[n]:
            kind, label = "found" if right else "wrong", names[int(found.labels[n])]
            marks.append(Mark(found.boxes_xyxy[n].tolist(), label, kind, float(found.scores[n])))
    truth = [
        Mark(box.tolist(), names[int(label)], "truth" if t in answers else "missed", answers.get(t))
        for t, (box, label, crowd) in enumerate(zip(*objects, strict=True))
        if not crowd and label >= 0
    ]
    return truth + marks


def _overlaps(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The intersections (T, n) of boxes, and the areas (T, 1) and (n,)."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])  # (T, n, 2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (ours, theirs)]
    return (high - low).clip(0).prod(2), areas[0][:, None], areas[1]
