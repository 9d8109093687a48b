"""Bootstrap intervals: how far metrics would move with other images of the same kind."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .curves import RECALLS
from .matches import THRESHOLDS, Matches

SEED = 0
LEVEL = 0.95
AFTER = np.append(RECALLS, np.inf)


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Samples(NamedTuple):
    """B bootstrap samples of the images; NaN if a class has no object in a sample."""

    values: dict[str, np.ndarray]  # AP, AP50, AP75, AR100: (B, K)

    def means(self, name: str) -> np.ndarray:
        """A number over all classes, (B,)."""
        values = self.values[name]
        known = ~np.isnan(values)
        return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


class _Hits(NamedTuple):
    """E right detections by class, threshold and falling score, and where to read sums of weights for each."""

    image: np.ndarray  # (E,)
    segment: np.ndarray  # (E,) class and threshold: k * T + t
    kept: np.ndarray  # (E,) detections of all classes that come before its end
    kept_start: np.ndarray  # (E,) those before its class
    crowd: np.ndarray  # (E,) ignored detections before it
    crowd_start: np.ndarray  # (E,) those before its segment
    first: np.ndarray  # (E,) the first of its segment
    detection_images: np.ndarray  # (D,) of all detections, by class and falling score
    ignored_images: np.ndarray  # of the ignored ones, by class, threshold and falling score


def resample(matches: Matches, times: int, seed: int = SEED) -> Samples:
    """AP of resampled images; two sets of results on the same images get the same samples."""
    hits = _hits(matches)
    found = [_averages(matches, hits, weights) for weights in draws(len(matches.image_ids), times, seed)]
    ap = np.array([one[0] for one in found])  # (B, K, T)
    recall = np.array([one[1] for one in found])
    values = {"AP": ap.mean(2), "AP50": ap[:, :, 0], "AP75": ap[:, :, 5], "AR100": recall.mean(2)}
    return Samples(values)


def draws(count: int, times: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, (I,), for each of `times` samples."""
    random = np.random.default_rng(seed)
    for _ in range(times):
        yield np.bincount(random.integers(0, count, count), minlength=count).astype(float)


def interval(values: np.ndarray, measured: float, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval | None:
    """The 95 % interval of a metric from its resampled values (B,); None if undefined.

    Resampled AP is biased, the more the fewer objects a class has: its mean lies above the measured value, since the
    best precision beyond a recall gains from chance. The middle 95 % are therefore moved by that difference.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    limits = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - known.mean() + measured
    low, high = np.clip(limits, *bounds)
    return Interval(float(low), float(high))


def _hits(matches: Matches) -> _Hits:
    times, total = len(THRESHOLDS), len(matches.ranking)
    images = matches.found.image[matches.ranking]
    label = matches.found.label[matches.ranking]

    def by_segment(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where flags (T, D) are set: class and threshold, and place in the ranking, in that order."""
        threshold, place = np.nonzero(flags[:, matches.ranking])
        segment = label[place] * times + threshold
        order = np.lexsort((place, segment))
        return segment[order], place[order]

    segment, place = by_segment(matches.right[0])
    ignored_segment, ignored_place = by_segment(matches.ignored[0])
    ignored = ignored_segment * total + ignored_place
    return _Hits(
        image=images[place],
        segment=segment,
        kept=place + 1,
        kept_start=matches.starts[label[place]],
        crowd=np.searchsorted(ignored, segment * total + place),
        crowd_start=np.searchsorted(ignored, segment * total),
        first=np.searchsorted(segment, segment),
        detection_images=images,
        ignored_images=images[ignored_place],
    )


def _averages(matches: Matches, hits: _Hits, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AP and recall with each image counted as often as its weight says, (K, T) both.

    Only right detections matter: between two of them precision falls, and the curve is the best that lies beyond.
    """
    kinds, times = len(matches.categories), len(THRESHOLDS)
    objects = matches.objects
    to_find = np.bincount(objects.label, weights[objects.image] * matches.counts[0], minlength=kinds)
    ap = np.zeros(kinds * times)
    recall = np.zeros(kinds * times)
    if len(hits.segment):
        right, everything, ignored = (
            _running(weights[p]) for p in (hits.image, hits.detection_images, hits.ignored_images)
        )
        right = right[1:] - right[hits.first]
        kept = everything[hits.kept] - everything[hits.kept_start] - ignored[hits.crowd] + ignored[hits.crowd_start]
        precision = right / np.maximum(kept, 1)
        above = 2.0 * (kinds * times - hits.segment)  # keeps the segments apart in one running maximum
        envelope = np.maximum.accumulate((precision + above)[::-1])[::-1] - above
        reached = right / np.maximum(to_find[hits.segment // times], 1)
        points = _points(reached)
        start = np.flatnonzero(hits.first == np.arange(len(points)))
        new = np.diff(points, prepend=0)
        new[start] = points[start]
        here = hits.segment[start]
        ap[here] = np.add.reduceat(envelope * new, start) / len(RECALLS)
        recall[here] = reached[np.append(start[1:], len(points)) - 1]
    known = np.where(to_find > 0, 1.0, np.nan)[:, None]
    return ap.reshape(kinds, times) * known, recall.reshape(kinds, times) * known


def _running(weights: np.ndarray) -> np.ndarray:
    """Sums of the first n, from n = 0."""
    return np.concatenate([[0.0], np.cumsum(weights)])


def _points(recall: np.ndarray) -> np.ndarray:
    """How many of the 101 recalls are reached: np.searchsorted(RECALLS, recall, "right"), but faster."""
    guess = (recall * 100).astype(np.int64)
    guess += AFTER[guess + 1] <= recall
    guess -= AFTER[guess] > recall
    return guess + 1
