"""Precision and recall, averaged as in COCO, and as functions of the score threshold."""

from typing import NamedTuple

import numpy as np

from .matches import AREAS, THRESHOLDS, Matches

RECALLS = np.linspace(0, 1, 101)  # R
LEVELS = np.linspace(0, 1, 101)  # score thresholds of a drawn curve
DETECTIONS = (1, 10, 100)  # per image and class


class Averages(NamedTuple):
    """As `pycocotools` accumulates; -1 where a class has no object of a size."""

    precision: np.ndarray  # (T, R, K, A), with 100 detections
    recall: np.ndarray  # (T, K, A, 3), with 1, 10 and 100 detections


class Tally(NamedTuple):
    """Counts at IoU 0.5 for the n most confident detections, for every n where the score changes, from n = 0."""

    score: np.ndarray  # (N,) the least that is kept, falling; infinite if nothing is
    right: np.ndarray  # (N,)
    wrong: np.ndarray  # (N,)
    loose: np.ndarray  # (N,) sum of 1 - IoU over those that are right
    objects: int  # to be found

    @property
    def f1(self) -> np.ndarray:
        """(N,), 0 if there is neither an object nor a detection."""
        return 2 * self.right / np.maximum(self.right + self.wrong + self.objects, 1)


class Best(NamedTuple):
    """The score threshold with the best F1 at IoU 0.5, and its metrics."""

    threshold: float
    f1: float
    precision: float
    recall: float


class Levels(NamedTuple):
    """F1, precision and recall at IoU 0.5 of what has at least a score of 0, 0.01, ... 1."""

    f1: np.ndarray  # (101,)
    precision: np.ndarray  # (101,), 1 where nothing is kept
    recall: np.ndarray  # (101,)


def averages(matches: Matches) -> Averages:
    """Precision at 101 recalls, and the recall that is reached, per threshold, class and size."""
    kinds, times = len(matches.categories), len(THRESHOLDS)
    precision = np.full((times, len(RECALLS), kinds, len(AREAS)), -1.0)
    recall = np.full((times, kinds, len(AREAS), len(DETECTIONS)), -1.0)
    to_find = [matches.to_find(a) for a in range(len(AREAS))]
    for k in range(kinds):
        rows = matches.ranked(k)
        place = matches.found.place[rows]
        for a in range(len(AREAS)):
            if not to_find[a][k]:
                continue
            right, ignored = matches.right[a][:, rows], matches.ignored[a][:, rows]
            precision[:, :, k, a] = interpolated(right, ignored, to_find[a][k])
            for m, most in enumerate(DETECTIONS):
                recall[:, k, a, m] = right[:, place < most].sum(1) / to_find[a][k]
    return Averages(precision, recall)


def interpolated(right: np.ndarray, ignored: np.ndarray, objects: int) -> np.ndarray:
    """The best precision at each recall or higher, (T, R); 0 if a recall is not reached."""
    hits = np.cumsum(right, axis=1).astype(float)
    misses = np.cumsum(~right & ~ignored, axis=1).astype(float)
    precision = hits / (misses + hits + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.pad(envelope, ((0, 0), (0, 1)))  # the recall that is not reached
    recall = hits / objects
    return np.stack([row[np.searchsorted(r, RECALLS)] for row, r in zip(envelope, recall, strict=True)])


def tally(matches: Matches, kind: int | None = None) -> Tally:
    """Count correct and wrong detections at IoU 0.5 in order of confidence, for one class or all."""
    rows = np.arange(len(matches.found.score)) if kind is None else matches.ranked(kind)
    rows = rows[~matches.ignored[0, 0, rows]]
    rows = rows[np.argsort(-matches.found.score[rows], kind="stable")]
    score, right = matches.found.score[rows], matches.right[0, 0, rows]
    iou = np.append(matches.pairs.iou, 0.0)[matches.pair[rows]]
    ends = np.flatnonzero(np.diff(score, append=-np.inf))  # equal scores are kept or left together
    hits, loose = np.cumsum(right)[ends], np.cumsum(np.where(right, 1 - iou, 0.0))[ends]
    to_find = matches.to_find()
    return Tally(
        score=np.append(np.inf, score[ends]),
        right=np.append(0, hits),
        wrong=np.append(0, ends + 1 - hits),
        loose=np.append(0.0, loose),
        objects=int(to_find.sum() if kind is None else to_find[kind]),
    )


def best(counts: Tally) -> Best | None:
    """The best F1, with the highest threshold in case of ties; None if no detection is correct."""
    n = int(counts.f1.argmax())
    if not counts.right[n]:
        return None
    right, wrong = float(counts.right[n]), float(counts.wrong[n])
    return Best(float(counts.score[n]), float(counts.f1[n]), right / (right + wrong), right / counts.objects)


def levels(counts: Tally) -> Levels:
    """The same at 101 round thresholds, for a curve."""
    n = np.searchsorted(-counts.score, -LEVELS, "right") - 1  # how many scores are at least the level
    kept = counts.right[n] + counts.wrong[n]
    precision = np.where(kept > 0, counts.right[n] / np.maximum(kept, 1), 1.0)
    return Levels(counts.f1[n], precision, counts.right[n] / max(counts.objects, 1))
