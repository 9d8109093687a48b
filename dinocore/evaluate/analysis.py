"""The full analysis of an evaluation, computed from a single matching pass."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.annotations import Annotations
from ..data.split import table_names
from .backends import mean_of_known, summarize
from .bootstrap import Interval, Samples, interval, resample
from .coco import NAMES
from .curves import Averages, Best, Levels, Tally, averages, best, levels, tally
from .matches import Matches, match
from .metrics import Calibration, Lrp, calibration, confusion, mean_lrp, optimal_lrp
from .tide import Tide, tide

NUM_SAMPLES = 1000  # bootstrap samples
NUM_WORST = 20  # worst images to list
FALLBACK_THRESHOLD = 0.5  # score threshold if no detection is right
SIZES = {"AP": 0, "APs": 1, "APm": 2, "APl": 3}


class ClassAnalysis(NamedTuple):
    """The metrics of a class; -1 if it has no objects to evaluate on, as in pycocotools."""

    name: str
    objects: int
    averages: dict[str, float]  # AP, AP50, AP75, APs, APm, APl, AR100, ARs, ARm, ARl
    best: Best | None
    levels: Levels
    lrp: Lrp | None


class ImageErrors(NamedTuple):
    """Correct, wrong and missed boxes in an image, at IoU 0.5 and one score threshold."""

    image_id: int
    right: int
    wrong: int
    missed: int


class Analysis(NamedTuple):
    """Everything about the results of one model on one set of images."""

    matches: Matches
    averages: Averages
    summary: dict[str, float]  # the 12 COCO numbers
    samples: Samples | None  # None: not requested
    classes: list[ClassAnalysis]
    best: Best | None  # the best single threshold for all classes
    # the best one, or FALLBACK_THRESHOLD; for the confusion matrix, worst images and second calibration
    threshold: float
    levels: Levels
    confusion: np.ndarray  # (K + 1, K + 1), row: true class, column: predicted class, background last
    tide: Tide
    lrp: dict[str, float | None]  # means over classes
    calibration: Calibration
    calibration_above_threshold: Calibration  # of detections with at least that score
    worst: list[ImageErrors]

    def interval(self, name: str) -> Interval | None:
        """The 95 % interval of AP, AP50, AP75 or AR100; None for other metrics or without samples."""
        if self.samples is None or name not in self.samples.values:
            return None
        return interval(self.samples.means(name), self.summary[name])

    def class_interval(self, k: int) -> Interval | None:
        """The 95 % interval of the AP of a class; None without samples."""
        if self.samples is None:
            return None
        return interval(self.samples.values["AP"][:, k], self.classes[k].averages["AP"])


def analyse(annotations: Annotations, results: Sequence[dict[str, Any]], times: int = NUM_SAMPLES) -> Analysis:
    """Match once and compute everything.

    Args:
        results: rows in COCO's format, for known images; rows of unknown classes are dropped.
        times: number of bootstrap samples; 0: no intervals.
    """
    matches = match(annotations, results)
    average = averages(matches)
    overall = tally(matches)
    chosen = best(overall)
    threshold = chosen.threshold if chosen else FALLBACK_THRESHOLD
    classes = [_analyse_class(matches, average, k, tally(matches, k)) for k in range(len(matches.categories))]
    summary = summarize(average.precision[..., None], average.recall)
    return Analysis(
        matches=matches,
        averages=average,
        summary=dict(zip(NAMES, summary.tolist(), strict=True)),
        samples=resample(matches, times) if times and len(matches.image_ids) else None,
        classes=classes,
        best=chosen,
        threshold=threshold,
        levels=levels(overall),
        confusion=confusion(matches, threshold),
        tide=tide(matches),
        lrp=mean_lrp([one.lrp for one in classes]),
        calibration=calibration(matches),
        calibration_above_threshold=calibration(matches, threshold),
        worst=worst_images(matches, threshold),
    )


def worst_images(matches: Matches, threshold: float) -> list[ImageErrors]:
    """The images with the most wrong detections plus missed objects at IoU 0.5; ties by id."""
    errors = image_errors(matches, threshold)
    errors.sort(key=lambda one: -(one.wrong + one.missed))
    return [one for one in errors[:NUM_WORST] if one.wrong + one.missed]


def image_errors(matches: Matches, threshold: float) -> list[ImageErrors]:
    """The errors in every image at IoU 0.5, by id."""
    count = len(matches.image_ids)
    keep = matches.detections.score >= threshold
    correct, image = matches.right[0, 0], matches.detections.image
    right = np.bincount(image[keep & correct], minlength=count)
    wrong = np.bincount(image[keep & ~correct & ~matches.ignored[0, 0]], minlength=count)
    missed = np.bincount(matches.objects.image[matches.counts[0]], minlength=count) - right
    return [ImageErrors(*row) for row in np.stack([matches.image_ids, right, wrong, missed], 1).tolist()]


def _analyse_class(matches: Matches, average: Averages, k: int, counts: Tally) -> ClassAnalysis:
    precision, recall = average.precision[:, :, k].copy(), average.recall[:, k, :, -1].copy()
    numbers = {name: mean_of_known(precision[:, :, a]) for name, a in SIZES.items()}
    numbers |= {"AP50": mean_of_known(precision[0, :, 0]), "AP75": mean_of_known(precision[5, :, 0])}
    numbers |= {name.replace("AP", "AR"): mean_of_known(recall[:, a]) for name, a in SIZES.items()}
    numbers["AR100"] = numbers.pop("AR")
    order = [name for name in NAMES if name in numbers]
    return ClassAnalysis(
        name=table_names(matches.categories)[k],
        objects=counts.objects,
        averages={name: numbers[name] for name in order},
        best=best(counts),
        levels=levels(counts),
        lrp=optimal_lrp(counts),
    )
