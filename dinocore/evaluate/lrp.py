"""Localisation recall precision error (Oksuz et al., ECCV 2018; TPAMI 2021, arXiv 2011.10772) at IoU 0.5."""

from typing import NamedTuple

import numpy as np

from .curves import Tally

TAU = 0.5


class Lrp(NamedTuple):
    """0 is perfect, 1 the worst: the error at the threshold where it is least, and what it is made of."""

    error: float  # (sum over right ones of (1 - IoU) / (1 - tau) + wrong + missed) / (right + wrong + missed)
    localisation: float | None  # mean of 1 - IoU over what is right; None if nothing is
    false_positives: float | None  # share of the detections that are wrong; None without detections
    false_negatives: float  # share of the objects that are missed
    threshold: float | None  # detections with at least this score are kept; None: none is


def errors(counts: Tally) -> np.ndarray:
    """LRP at every score threshold, (N,); there must be an object."""
    total = counts.wrong + counts.objects  # right + wrong + missed
    return (counts.loose / (1 - TAU) + counts.wrong + counts.objects - counts.right) / total


def optimal_lrp(counts: Tally) -> Lrp | None:
    """The least LRP of all score thresholds, at the highest of equal ones; None for a class without objects."""
    if not counts.objects:
        return None
    error = errors(counts)
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
