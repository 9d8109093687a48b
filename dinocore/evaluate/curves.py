"""Precision and recall: averaged as in COCO, and as functions of the score threshold."""

from typing import NamedTuple

import numpy as np

from .matches import AREAS, THRESHOLDS, Matches

RECALLS = np.linspace(0, 1, 101)  # R
LEVELS = np.linspace(0, 1, 101)  # score thresholds of curves
DETECTIONS = (1, 10, 100)  # per image and class


class Averages(NamedTuple):
    """What pycocotools accumulates; -1 where a class has no object of a size."""

    precision: np.ndarray  # (T, R, K, A), with 100 detections
    recall: np.ndarray  # (T, K, A, 3), with 1, 10 and 100 detections


class Tally(NamedTuple):
    """Counts at IoU 0.5 for every score threshold that changes them, from the highest to the lowest."""

    score: np.ndarray  # (N,) lowest score that is kept, descending; first inf, where nothing is kept
    right: np.ndarray  # (N,)
    wrong: np.ndarray  # (N,)
    iou_loss: np.ndarray  # (N,) sum of 1 - IoU over right detections
    objects: int  # number of objects, without crowds

    @property
    def f1(self) -> np.ndarray:
        """F1 at each threshold, (N,); 0 if there is neither an object nor a detection."""
        return 2 * self.right / np.maximum(self.right + self.wrong + self.objects, 1)


class Best(NamedTuple):
    """The score threshold with the best F1 at IoU 0.5, and its metrics."""

    threshold: float
    f1: float
    precision: float
    recall: float


class Levels(NamedTuple):
    """F1, precision and recall at IoU 0.5 for score thresholds 0, 0.01, ... 1."""

    f1: np.ndarray  # (101,)
    precision: np.ndarray  # (101,), 1 if nothing is kept
    recall: np.ndarray  # (101,)


def averages(matches: Matches) -> Averages:
    """Precision at 101 recalls, and the maximum recall, per IoU threshold, class and size."""
    kinds, times = len(matches.categories), len(THRESHOLDS)
    precision = np.full((times, len(RECALLS), kinds, len(AREAS)), -1.0)
    recall = np.full((times, kinds, len(AREAS), len(DETECTIONS)), -1.0)
    num_objects = [matches.num_objects(a) for a in range(len(AREAS))]
    for k in range(kinds):
        rows = matches.ranked(k)
        rank = matches.detections.rank[rows]
        for a in range(len(AREAS)):
            if not num_objects[a][k]:
                continue
            right, ignored = matches.right[a][:, rows], matches.ignored[a][:, rows]
            precision[:, :, k, a] = interpolated(right, ignored, num_objects[a][k])
            for m, limit in enumerate(DETECTIONS):
                recall[:, k, a, m] = right[:, rank < limit].sum(1) / num_objects[a][k]
    return Averages(precision, recall)


def interpolated(right: np.ndarray, ignored: np.ndarray, objects: int) -> np.ndarray:
    """The best precision at each recall or higher, (T, R); 0 at recalls that are not reached."""
    hits = np.cumsum(right, axis=1).astype(float)
    misses = np.cumsum(~right & ~ignored, axis=1).astype(float)
    precision = hits / (misses + hits + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.pad(envelope, ((0, 0), (0, 1)))  # 0 for recalls that are not reached
    recall = hits / objects
    return np.stack([row[np.searchsorted(r, RECALLS)] for row, r in zip(envelope, recall, strict=True)])


def tally(matches: Matches, kind: int | None = None) -> Tally:
    """Count right and wrong detections at IoU 0.5 in order of confidence, for one class or all together."""
    rows = np.arange(len(matches.detections.score)) if kind is None else matches.ranked(kind)
    rows = rows[~matches.ignored[0, 0, rows]]
    rows = rows[np.argsort(-matches.detections.score[rows], kind="stable")]
    score, right = matches.detections.score[rows], matches.right[0, 0, rows]
    iou = np.append(matches.pairs.iou, 0.0)[matches.pair[rows]]
    ends = np.flatnonzero(np.diff(score, append=-np.inf))  # equal scores are kept or dropped together
    hits, iou_loss = np.cumsum(right)[ends], np.cumsum(np.where(right, 1 - iou, 0.0))[ends]
    num_objects = matches.num_objects()
    return Tally(
        score=np.append(np.inf, score[ends]),
        right=np.append(0, hits),
        wrong=np.append(0, ends + 1 - hits),
        iou_loss=np.append(0.0, iou_loss),
        objects=int(num_objects.sum() if kind is None else num_objects[kind]),
    )


def best(counts: Tally) -> Best | None:
    """The threshold with the best F1, the highest in case of ties; None if no detection is right."""
    n = int(counts.f1.argmax())
    if not counts.right[n]:
        return None
    right, wrong = float(counts.right[n]), float(counts.wrong[n])
    return Best(float(counts.score[n]), float(counts.f1[n]), right / (right + wrong), right / counts.objects)


def levels(counts: Tally) -> Levels:
    """F1, precision and recall at the 101 thresholds in LEVELS."""
    n = np.searchsorted(-counts.score, -LEVELS, "right") - 1  # number of scores at or above the level
    kept = counts.right[n] + counts.wrong[n]
    precision = np.where(kept > 0, counts.right[n] / np.maximum(kept, 1), 1.0)
    return Levels(counts.f1[n], precision, counts.right[n] / max(counts.objects, 1))
