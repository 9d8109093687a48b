"""Further metrics at IoU 0.5: calibration, confusion matrix, and localisation recall precision (LRP) error."""

from typing import NamedTuple

import numpy as np

from .curves import Tally
from .matches import Matches, Pairs, assign

BINS = 10  # of scores, for calibration
TAU = 0.5  # of LRP


class Calibration(NamedTuple):
    """Statistics of detections in ten score bins, the last of which includes 1; ignored detections don't count."""

    count: np.ndarray  # (10,) detections
    score: np.ndarray  # (10,) mean score, NaN in an empty bin
    right: np.ndarray  # (10,) fraction correct, NaN in an empty bin
    ece: float | None  # mean of |right - score| over detections, by bin (Guo et al., 2017); None without detections


def calibration(matches: Matches, min_score: float = 0.0) -> Calibration:
    """Compare scores with the fraction of correct detections, for detections with at least `min_score`."""
    use = ~matches.ignored[0, 0] & (matches.detections.score >= min_score)
    score, right = matches.detections.score[use], matches.right[0, 0, use]
    where = np.clip((score * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(where, minlength=BINS)
    filled = np.where(count, count, np.nan)
    mean_score = np.bincount(where, score, BINS) / filled
    correct = np.bincount(where, right, BINS) / filled
    gap = np.nansum(count * np.abs(correct - mean_score))
    return Calibration(count, mean_score, correct, float(gap / len(score)) if len(score) else None)


def confusion(matches: Matches, threshold: float) -> np.ndarray:
    """The confusion matrix, (K + 1, K + 1) counts; row: true class, column: predicted class, background last.

    Matching ignores classes: in order of confidence, each detection of an image gets the free object with the highest
    IoU. Detections that only cover a crowd are ignored.
    """
    detections, objects, pairs = matches.detections, matches.objects, matches.pairs
    kinds = len(matches.categories)
    keep = detections.score >= threshold
    usable = keep[pairs.detection] & (pairs.iou >= 0.5)
    chosen = Pairs(*(column[usable] for column in pairs))
    order = np.lexsort((-detections.score, detections.image))
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order)) - np.searchsorted(detections.image, detections.image)
    counts = ~objects.crowd
    assigned = assign(chosen, turn, np.array([0.5]), counts[None], objects.crowd)[0, 0]  # (D,)
    target = np.append(chosen.object, -1)[assigned]
    hit = (assigned >= 0) & np.append(counts, False)[target]
    matrix = np.zeros((kinds + 1, kinds + 1), dtype=np.int64)
    np.add.at(matrix, (objects.label[target[hit]], detections.label[hit]), 1)
    matrix[kinds] += np.bincount(detections.label[keep & (assigned < 0)], minlength=kinds + 1)
    missed = counts.copy()
    missed[target[hit]] = False
    matrix[:, kinds] += np.bincount(objects.label[missed], minlength=kinds + 1)
    return matrix


class Lrp(NamedTuple):
    """The LRP error at the score threshold that minimises it, and its components; 0 is perfect, 1 is worst.

    Source: Oksuz et al., ECCV 2018; TPAMI 2021, arXiv 2011.10772
    """

    error: float  # (sum over right detections of (1 - IoU) / (1 - tau) + wrong + missed) / (right + wrong + missed)
    localisation: float | None  # mean of 1 - IoU over right detections; None if there are none
    false_positives: float | None  # fraction of the detections that are wrong; None without detections
    false_negatives: float  # fraction of the objects that are missed
    threshold: float | None  # detections with at least this score are kept; None: no detection is kept


def optimal_lrp(counts: Tally) -> Lrp | None:
    """The lowest LRP error of all score thresholds (ties: the highest threshold); None for a class without objects."""
    if not counts.objects:
        return None
    total = counts.wrong + counts.objects  # right + wrong + missed, (N,)
    error = (counts.iou_loss / (1 - TAU) + counts.wrong + counts.objects - counts.right) / total
    n = int(error.argmin())
    right, kept = int(counts.right[n]), int(counts.right[n] + counts.wrong[n])
    return Lrp(
        error=float(error[n]),
        localisation=float(counts.iou_loss[n]) / right if right else None,
        false_positives=(kept - right) / kept if kept else None,
        false_negatives=(counts.objects - right) / counts.objects,
        threshold=float(counts.score[n]) if kept else None,
    )


def mean_lrp(classes: list[Lrp | None]) -> dict[str, float | None]:
    """The mean of the error and of each component over the classes for which it is defined."""
    known = [one for one in classes if one is not None]
    return {name: _mean([getattr(one, name) for one in known]) for name in Lrp._fields[:-1]}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
