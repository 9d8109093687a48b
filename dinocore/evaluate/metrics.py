"""Small metrics at IoU 0.5: calibration of scores, confusion of classes, and localisation recall precision error."""

from typing import NamedTuple

import numpy as np

from .curves import Tally
from .matches import Matches, Pairs, assign

BINS = 10  # of scores, for calibration
TAU = 0.5  # of LRP


class Calibration(NamedTuple):
    """Detections in bins of score, the last one closed at 1; detections on crowds are ignored."""

    count: np.ndarray  # (10,) detections
    score: np.ndarray  # (10,) their mean score, NaN in an empty bin
    right: np.ndarray  # (10,) the fraction correct, NaN in an empty bin
    ece: float | None  # mean of |right - score| over detections, by bin (Guo et al., 2017); None without detections


def calibration(matches: Matches, least: float = 0.0) -> Calibration:
    """Whether a score of 0.8 means correct eight times in ten, for detections with at least a given score."""
    use = ~matches.ignored[0, 0] & (matches.found.score >= least)
    score, right = matches.found.score[use], matches.right[0, 0, use]
    where = np.clip((score * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(where, minlength=BINS)
    filled = np.where(count, count, np.nan)
    mean_score = np.bincount(where, score, BINS) / filled
    share = np.bincount(where, right, BINS) / filled
    gap = np.nansum(count * np.abs(share - mean_score))
    return Calibration(count, mean_score, share, float(gap / len(score)) if len(score) else None)


def confusion(matches: Matches, threshold: float) -> np.ndarray:
    """Which class is taken for which, in counts (K + 1, K + 1): row the truth, column what was found, last background.

    Matching ignores classes: in order of confidence, each detection of an image takes the object with the
    highest IoU. Detections that only cover a crowd are ignored.
    """
    found, objects, pairs = matches.found, matches.objects, matches.pairs
    kinds = len(matches.categories)
    keep = found.score >= threshold
    usable = keep[pairs.detection] & (pairs.iou >= 0.5)
    chosen = Pairs(*(column[usable] for column in pairs))
    order = np.lexsort((-found.score, found.image))
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order)) - np.searchsorted(found.image, found.image)
    counts = ~objects.crowd
    won = assign(chosen, turn, np.array([0.5]), counts[None], objects.crowd)[0, 0]  # (D,)
    thing = np.append(chosen.object, -1)[won]
    hit = (won >= 0) & np.append(counts, False)[thing]
    matrix = np.zeros((kinds + 1, kinds + 1), dtype=np.int64)
    np.add.at(matrix, (objects.label[thing[hit]], found.label[hit]), 1)
    matrix[kinds] += np.bincount(found.label[keep & (won < 0)], minlength=kinds + 1)
    missed = counts.copy()
    missed[thing[hit]] = False
    matrix[:, kinds] += np.bincount(objects.label[missed], minlength=kinds + 1)
    return matrix


class Lrp(NamedTuple):
    """0 is perfect, 1 is worst: the error at the threshold that minimises it, and its components.

    Source: Oksuz et al., ECCV 2018; TPAMI 2021, arXiv 2011.10772
    """

    error: float  # (sum over right ones of (1 - IoU) / (1 - tau) + wrong + missed) / (right + wrong + missed)
    localisation: float | None  # mean of 1 - IoU over what is right; None if nothing is
    false_positives: float | None  # share of the detections that are wrong; None without detections
    false_negatives: float  # share of the objects that are missed
    threshold: float | None  # detections with at least this score are kept; None: none is


def optimal_lrp(counts: Tally) -> Lrp | None:
    """The least LRP of all score thresholds, at the highest of equal ones; None for a class without objects."""
    if not counts.objects:
        return None
    total = counts.wrong + counts.objects  # right + wrong + missed, (N,)
    error = (counts.loose / (1 - TAU) + counts.wrong + counts.objects - counts.right) / total
    n = int(error.argmin())
    right, kept = int(counts.right[n]), int(counts.right[n] + counts.wrong[n])
    return Lrp(
        error=float(error[n]),
        localisation=float(counts.loose[n]) / right if right else None,
        false_positives=(kept - right) / kept if kept else None,
        false_negatives=(counts.objects - right) / counts.objects,
        threshold=float(counts.score[n]) if kept else None,
    )


def mean_lrp(classes: list[Lrp | None]) -> dict[str, float | None]:
    """The mean over the classes that have objects, of each component over those that have it."""
    known = [one for one in classes if one is not None]
    return {name: _mean([getattr(one, name) for one in known]) for name in Lrp._fields[:-1]}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
