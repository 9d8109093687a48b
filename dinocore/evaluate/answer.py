"""An analysis as plain numbers, for `dino eval --json` and the report."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..data.split import table_names
from .analysis import Analysis, image_errors
from .bootstrap import Interval
from .curves import LEVELS, RECALLS, Best, Levels
from .metrics import BINS, Calibration

BACKGROUND = "background"
IOUS = {"IoU 0.50": slice(0, 1), "IoU 0.75": slice(5, 6), "IoU 0.50:0.95": slice(0, 10)}


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Everything except samples and matches; None for undefined numbers, but -1 in AP and AR, as in COCO."""
    names = table_names(analysis.matches.categories)
    with_objects = analysis.matches.num_objects() > 0
    return {
        **analysis.summary,
        "intervals": {name: _pair(analysis.interval(name)) for name in ("AP", "AP50", "AP75", "AR100")},
        "objects": int(analysis.matches.counts[0].sum()),
        "detections": len(analysis.matches.detections.score),
        "classes": {name: _class(analysis, k) for k, name in enumerate(names)},
        "best": _best(analysis.best),
        "threshold": analysis.threshold,
        "at_threshold": _totals(analysis),
        "scores": LEVELS.tolist(),
        "curves": _levels(analysis.levels),
        "recalls": RECALLS.tolist(),
        "precision": _precision(analysis, np.flatnonzero(with_objects)),
        "confusion": {"classes": [*names, BACKGROUND], "counts": analysis.confusion.tolist()},
        "tide": analysis.tide._asdict(),
        "lrp": analysis.lrp,
        "calibration": _calibration(analysis.calibration),
        "calibration_above_threshold": _calibration(analysis.calibration_above_threshold),
        "worst": [image._asdict() for image in analysis.worst],
    }


def _class(analysis: Analysis, k: int) -> dict[str, Any]:
    one = analysis.classes[k]
    return {
        **one.averages,
        "interval": _pair(analysis.class_interval(k)),
        "objects": one.objects,
        "best": _best(one.best),
        "lrp": one.lrp._asdict() if one.lrp else None,
        "curves": _levels(one.levels),
        "precision": _precision(analysis, np.array([k])) if one.objects else None,
    }


def _totals(analysis: Analysis) -> dict[str, int]:
    """Objects, detected objects and false alarms in all images, at IoU 0.5 and the threshold."""
    errors = image_errors(analysis.matches, analysis.threshold)
    right, wrong, missed = (sum(getattr(one, key) for one in errors) for key in ("right", "wrong", "missed"))
    return {"objects": right + missed, "found": right, "false_alarms": wrong}


def _best(best: Best | None) -> dict[str, float] | None:
    return best._asdict() if best else None


def _pair(interval: Interval | None) -> list[float] | None:
    return list(interval) if interval else None


def _levels(levels: Levels) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in levels._asdict().items()}


def _precision(analysis: Analysis, classes: np.ndarray) -> dict[str, list[float]] | None:
    """Precision at 101 recalls, averaged over these classes and IoU thresholds; None without a class."""
    if not len(classes):
        return None
    precision = analysis.averages.precision[:, :, classes, 0]
    return {name: precision[ious].mean((0, 2)).tolist() for name, ious in IOUS.items()}


def _calibration(calibration: Calibration) -> dict[str, Any]:
    return {
        "ece": calibration.ece,
        "bins": [f"{n / BINS:.1f}-{(n + 1) / BINS:.1f}" for n in range(BINS)],
        "count": calibration.count.tolist(),
        "score": _none_for_nan(calibration.score),
        "right": _none_for_nan(calibration.right),
    }


def _none_for_nan(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
