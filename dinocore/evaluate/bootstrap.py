"""Bootstrap intervals: how much metrics would vary with other images of the same kind."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .curves import RECALLS
from .matches import THRESHOLDS, Matches

SEED = 0
LEVEL = 0.95
NEXT_RECALL = np.append(RECALLS, np.inf)


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Samples(NamedTuple):
    """B bootstrap samples of the images; NaN if a class has no object in a sample."""

    values: dict[str, np.ndarray]  # AP, AP50, AP75, AR100: (B, K)

    def means(self, name: str) -> np.ndarray:
        """The mean of a metric over the classes with objects, (B,)."""
        values = self.values[name]
        known = ~np.isnan(values)
        return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


class _Hits(NamedTuple):
    """E right detections, sorted by class, threshold and descending score, with indices into running sums."""

    image: np.ndarray  # (E,)
    segment: np.ndarray  # (E,) class and threshold: k * T + t
    kept: np.ndarray  # (E,) number of detections of all classes up to and including this one
    kept_start: np.ndarray  # (E,) number of detections before its class
    crowd: np.ndarray  # (E,) number of ignored detections before it
    crowd_start: np.ndarray  # (E,) number of ignored detections before its segment
    first: np.ndarray  # (E,) index of the first right detection of its segment
    detection_images: np.ndarray  # (D,) of all detections, by class and descending score
    ignored_images: np.ndarray  # of the ignored ones, by class, threshold and descending score


def resample(matches: Matches, times: int, seed: int = SEED) -> Samples:
    """AP and AR on bootstrap samples of the images; different results on the same images get the same samples."""
    hits = _hits(matches)
    averages = [_averages(matches, hits, weights) for weights in draws(len(matches.image_ids), times, seed)]
    ap = np.array([one[0] for one in averages])  # (B, K, T)
    recall = np.array([one[1] for one in averages])
    values = {"AP": ap.mean(2), "AP50": ap[:, :, 0], "AP75": ap[:, :, 5], "AR100": recall.mean(2)}
    return Samples(values)


def draws(count: int, times: int, seed: int) -> Iterator[np.ndarray]:
    """For each of `times` samples, how often each of `count` images is drawn, (I,)."""
    random = np.random.default_rng(seed)
    for _ in range(times):
        yield np.bincount(random.integers(0, count, count), minlength=count).astype(float)


def interval(values: np.ndarray, measured: float, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval | None:
    """The 95 % interval of a metric from its resampled values (B,); None if undefined.

    Resampled AP is biased, and more so for classes with few objects: its mean is above the measured value, because the
    interpolated precision is a maximum, which noise increases. The middle 95 % are shifted by this difference.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    limits = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - known.mean() + measured
    low, high = np.clip(limits, *bounds)
    return Interval(float(low), float(high))


def _hits(matches: Matches) -> _Hits:
    times, total = len(THRESHOLDS), len(matches.ranking)
    images = matches.detections.image[matches.ranking]
    label = matches.detections.label[matches.ranking]

    def by_segment(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment (class and threshold) and position in the ranking of every flag set in (T, D), sorted by both."""
        threshold, position = np.nonzero(flags[:, matches.ranking])
        segment = label[position] * times + threshold
        order = np.lexsort((position, segment))
        return segment[order], position[order]

    segment, position = by_segment(matches.right[0])
    ignored_segment, ignored_position = by_segment(matches.ignored[0])
    ignored = ignored_segment * total + ignored_position
    return _Hits(
        image=images[position],
        segment=segment,
        kept=position + 1,
        kept_start=matches.starts[label[position]],
        crowd=np.searchsorted(ignored, segment * total + position),
        crowd_start=np.searchsorted(ignored, segment * total),
        first=np.searchsorted(segment, segment),
        detection_images=images,
        ignored_images=images[ignored_position],
    )


def _averages(matches: Matches, hits: _Hits, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AP and recall, both (K, T), with each image counted as often as its weight says.

    Only right detections matter: precision falls between them, so it is highest at one of them.
    """
    kinds, times = len(matches.categories), len(THRESHOLDS)
    objects = matches.objects
    num_objects = np.bincount(objects.label, weights[objects.image] * matches.counts[0], minlength=kinds)
    ap = np.zeros(kinds * times)
    recall = np.zeros(kinds * times)
    if len(hits.segment):
        right, detected, ignored = (
            _running_sums(weights[p]) for p in (hits.image, hits.detection_images, hits.ignored_images)
        )
        right = right[1:] - right[hits.first]
        kept = detected[hits.kept] - detected[hits.kept_start] - ignored[hits.crowd] + ignored[hits.crowd_start]
        precision = right / np.maximum(kept, 1)
        offset = 2.0 * (kinds * times - hits.segment)  # separates the segments within one running maximum
        envelope = np.maximum.accumulate((precision + offset)[::-1])[::-1] - offset
        reached = right / np.maximum(num_objects[hits.segment // times], 1)
        points = _recalls_reached(reached)
        start = np.flatnonzero(hits.first == np.arange(len(points)))
        new = np.diff(points, prepend=0)
        new[start] = points[start]
        segments = hits.segment[start]
        ap[segments] = np.add.reduceat(envelope * new, start) / len(RECALLS)
        recall[segments] = reached[np.append(start[1:], len(points)) - 1]
    known = np.where(num_objects > 0, 1.0, np.nan)[:, None]
    return ap.reshape(kinds, times) * known, recall.reshape(kinds, times) * known


def _running_sums(weights: np.ndarray) -> np.ndarray:
    """The sum of the first n weights, for n from 0."""
    return np.concatenate([[0.0], np.cumsum(weights)])


def _recalls_reached(recall: np.ndarray) -> np.ndarray:
    """How many of the 101 recalls are reached, like np.searchsorted(RECALLS, recall, "right"), but faster."""
    guess = (recall * 100).astype(np.int64)
    guess += NEXT_RECALL[guess + 1] <= recall
    guess -= NEXT_RECALL[guess] > recall
    return guess + 1
