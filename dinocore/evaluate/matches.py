"""Match detections to objects in one pass, from which all metrics are computed."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.annotations import Annotations
from ..data.split import Category

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU, T
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # A, in pixels
MAX_DETECTIONS = 100  # per image and class
BACKGROUND = 0.1  # pairs with a lower IoU are dropped
CHUNK_SIZE = 2_000_000  # number of pairs whose IoU is computed at once


class Objects(NamedTuple):
    """M objects of known classes, sorted by image."""

    image: np.ndarray  # (M,) index
    label: np.ndarray  # (M,) index into the classes by id
    boxes: np.ndarray  # (M, 4) x y width height
    area: np.ndarray  # (M,)
    crowd: np.ndarray  # (M,) bool


class RankedDetections(NamedTuple):
    """D detections, sorted by image, class and descending score, at most MAX_DETECTIONS per image and class."""

    image: np.ndarray  # (D,) index
    label: np.ndarray  # (D,) index into the classes by id
    boxes: np.ndarray  # (D, 4) x y width height
    score: np.ndarray  # (D,)
    rank: np.ndarray  # (D,) 0 for the most confident of its class in its image


class Pairs(NamedTuple):
    """P overlapping pairs of a detection and an object of the same image and any class, sorted by both."""

    detection: np.ndarray  # (P,)
    object: np.ndarray  # (P,)
    iou: np.ndarray  # (P,), at least BACKGROUND; for crowds, the fraction of the detection that is covered


class Matches(NamedTuple):
    """COCO's matches of detections and objects at T = 10 IoU thresholds, for A = 4 ranges of area."""

    categories: list[Category]  # K, by id
    image_ids: np.ndarray  # (I,) ascending
    objects: Objects
    detections: RankedDetections
    pairs: Pairs
    counts: np.ndarray  # (A, M) bool: objects that count, which are no crowds and of this size
    right: np.ndarray  # (A, T, D) bool: matched to such an object
    ignored: np.ndarray  # (A, T, D) bool: neither right nor wrong
    pair: np.ndarray  # (D,) index of the matched pair at IoU 0.5 and any size, -1 for none
    ranking: np.ndarray  # (D,) detections by class and descending score
    starts: np.ndarray  # (K + 1,) class k has ranking[starts[k]:starts[k + 1]]

    def ranked(self, k: int) -> np.ndarray:
        """The detections of a class, most confident first; ties in image order."""
        return self.ranking[self.starts[k] : self.starts[k + 1]]

    def num_objects(self, area: int = 0) -> np.ndarray:
        """The number of objects of each class that count, (K,)."""
        return np.bincount(self.objects.label[self.counts[area]], minlength=len(self.categories))


def match(annotations: Annotations, results: Sequence[dict[str, Any]]) -> Matches:
    """Match results to objects by COCO's greedy rule; all images must be known, unknown classes are dropped."""
    categories = sorted(annotations.categories)
    image_ids = np.sort(annotations.image_ids)
    objects = _objects(annotations, image_ids, categories)
    detections = _detections(results, image_ids, categories)
    pairs = overlaps(detections, objects, len(image_ids))
    counts = np.stack([~objects.crowd & _within(objects.area, area) for area in AREAS.values()])
    same = np.flatnonzero(detections.label[pairs.detection] == objects.label[pairs.object])
    own = Pairs(*(column[same] for column in pairs))
    assigned = assign(own, detections.rank, THRESHOLDS, counts, objects.crowd)
    matched = assigned >= 0
    right = np.zeros_like(matched)
    for a in range(len(AREAS)):
        right[a] = matched[a] & np.append(counts[a][own.object], False)[assigned[a]]
    size = detections.boxes[:, 2] * detections.boxes[:, 3]
    outside = np.stack([~_within(size, area) for area in AREAS.values()])[:, None]  # (A, 1, D)
    return Matches(
        categories=categories,
        image_ids=image_ids,
        objects=objects,
        detections=detections,
        pairs=pairs,
        counts=counts,
        right=right,
        ignored=(matched & ~right) | (~matched & outside),
        pair=np.append(same, -1)[assigned[0, 0]],
        ranking=np.lexsort((-detections.score, detections.label)),
        starts=np.searchsorted(np.sort(detections.label), np.arange(len(categories) + 1)),
    )


def assign(pairs: Pairs, turn: np.ndarray, limits: np.ndarray, counts: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """COCO's greedy rule: each detection in turn gets the best object that is still free.

    Objects that count are preferred to others, then those with a higher IoU, then later ones. Crowds always stay free.
    All detections with the same turn are assigned at once, so detections that compete for an object must have
    different turns.

    Args:
        turn: (D,) from 0.
        limits: (T,) IoU thresholds.
        counts: (A, M) bool, which objects count.
        crowd: (M,) bool.

    Returns:
        (A, T, D) the index of the matched pair, -1 for none.
    """
    total = len(pairs.iou)
    by_iou = np.argsort(pairs.iou, kind="stable")
    rank = np.empty(total, np.int64)
    rank[by_iou] = np.arange(total)
    key = rank + total * counts[:, pairs.object]  # (A, P), unique
    taken = np.zeros((len(counts), len(limits), counts.shape[1]), dtype=bool)
    assigned = np.full((len(counts), len(limits), len(turn)), -1, dtype=np.int32)
    limits = np.minimum(limits, 1 - 1e-10)[:, None]
    for chunk in _by_turn(pairs, turn):
        detection, target = pairs.detection[chunk], pairs.object[chunk]
        free = (pairs.iou[chunk] >= limits) & (~taken[:, :, target] | crowd[target])  # (A, T, chunk)
        first = np.flatnonzero(np.diff(detection, prepend=-1))
        best = np.maximum.reduceat(np.where(free, key[:, None, chunk], -1), first, axis=2)
        a, t, which = np.nonzero(best >= 0)
        winner = by_iou[best[a, t, which] % total]
        assigned[a, t, detection[first][which]] = winner
        taken[a, t, pairs.object[winner]] = True
    return assigned


def overlaps(detections: RankedDetections, objects: Objects, num_images: int) -> Pairs:
    """All pairs of a detection and an object of the same image with an IoU of at least BACKGROUND."""
    per_image = np.bincount(objects.image, minlength=num_images)
    first = np.cumsum(per_image) - per_image  # (I,) first object of each image
    width = per_image[detections.image]  # (D,) number of objects that a detection is compared with
    ends = np.cumsum(width)
    parts = []
    begin = 0
    while begin < len(width):
        end = max(int(np.searchsorted(ends, ends[begin] - width[begin] + CHUNK_SIZE, "right")), begin + 1)
        detection = np.repeat(np.arange(begin, end), width[begin:end])
        step = np.arange(len(detection)) - np.repeat(ends[begin:end] - width[begin:end], width[begin:end])
        step += ends[begin] - width[begin]
        target = first[detections.image[detection]] + step
        iou = _iou(detections.boxes[detection], objects.boxes[target], objects.crowd[target])
        keep = iou >= BACKGROUND
        parts.append((detection[keep], target[keep], iou[keep]))
        begin = end
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))


def _iou(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of pairs of boxes (P, 4), (P,), in pycocotools' order of operations so that ties stay ties."""
    sides = np.minimum(boxes[:, :2] + boxes[:, 2:], objects[:, :2] + objects[:, 2:])
    sides -= np.maximum(boxes[:, :2], objects[:, :2])
    intersection = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0.0)
    area = boxes[:, 2] * boxes[:, 3]
    union = np.where(crowd, area, area + objects[:, 2] * objects[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=intersection > 0)


def _by_turn(pairs: Pairs, turn: np.ndarray) -> Iterator[np.ndarray]:
    turns = turn[pairs.detection]
    order = np.argsort(turns, kind="stable")
    for chunk in np.split(order, np.flatnonzero(np.diff(turns[order])) + 1):
        if len(chunk):
            yield chunk


def _within(area: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return (area >= limits[0]) & (area <= limits[1])


def _objects(annotations: Annotations, image_ids: np.ndarray, categories: list[Category]) -> Objects:
    known = annotations.labels >= 0
    index = {category.id: k for k, category in enumerate(categories)}
    renumber = np.array([index[category.id] for category in annotations.categories], dtype=np.int64)
    image = np.searchsorted(image_ids, annotations.image_ids)[annotations.owners()][known]
    order = np.argsort(image, kind="stable")
    columns = (annotations.boxes[known], annotations.area[known], annotations.crowd[known])
    boxes, area, crowd = (column[order] for column in columns)
    return Objects(image[order], renumber[annotations.labels[known]][order], boxes, area, crowd)


def _detections(
    results: Sequence[dict[str, Any]], image_ids: np.ndarray, categories: list[Category]
) -> RankedDetections:
    index = {category.id: k for k, category in enumerate(categories)}
    rows = [row for row in results if row["category_id"] in index]
    ids = np.array([row["image_id"] for row in rows], dtype=np.int64)
    image = np.searchsorted(image_ids, ids)
    label = np.array([index[row["category_id"]] for row in rows], dtype=np.int64)
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    score = np.array([row["score"] for row in rows], dtype=np.float64)
    order = np.lexsort((-score, label, image))
    group = image[order] * len(categories) + label[order]
    first = np.searchsorted(group, group)
    rank = np.arange(len(order)) - first
    keep = order[rank < MAX_DETECTIONS]
    return RankedDetections(image[keep], label[keep], boxes[keep], score[keep], rank[rank < MAX_DETECTIONS])
