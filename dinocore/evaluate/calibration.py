"""Whether a score of 0.8 means right eight times in ten, at IoU 0.5."""

from typing import NamedTuple

import numpy as np

from .matches import Matches

BINS = 10


class Calibration(NamedTuple):
    """Detections in bins of score, the last one closed at 1; what covers a crowd is left out."""

    count: np.ndarray  # (10,) detections
    score: np.ndarray  # (10,) their mean score, NaN in an empty bin
    right: np.ndarray  # (10,) the share that is right, NaN in an empty bin
    ece: float | None  # mean of |right - score| over detections, by bin (Guo et al., 2017); None without detections


def calibration(matches: Matches, least: float = 0.0) -> Calibration:
    """Compare scores with how often they are right, of detections with at least a score."""
    use = ~matches.ignored[0, 0] & (matches.found.score >= least)
    score, right = matches.found.score[use], matches.right[0, 0, use]
    where = np.clip((score * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(where, minlength=BINS)
    filled = np.where(count, count, np.nan)
    mean_score = np.bincount(where, score, BINS) / filled
    share = np.bincount(where, right, BINS) / filled
    gap = np.nansum(count * np.abs(share - mean_score))
    return Calibration(count, mean_score, share, float(gap / len(score)) if len(score) else None)
