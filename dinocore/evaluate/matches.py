"""Match detections to objects: one pass over the images, from which all metrics are computed."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.annotations import Annotations
from ..data.split import Category

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU, T
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # A, in pixels
MOST = 100  # detections per image and class
BACKGROUND = 0.1  # the least IoU of a pair that is kept
AT_ONCE = 2_000_000  # pairs whose IoU is computed at once


class Objects(NamedTuple):
    """M objects of known classes, by image."""

    image: np.ndarray  # (M,) index
    label: np.ndarray  # (M,) index into the classes by id
    boxes: np.ndarray  # (M, 4) x y width height
    area: np.ndarray  # (M,)
    crowd: np.ndarray  # (M,) bool


class RankedDetections(NamedTuple):
    """D detections by image, class and falling score, at most 100 of a class in an image."""

    image: np.ndarray  # (D,) index
    label: np.ndarray  # (D,) index into the classes by id
    boxes: np.ndarray  # (D, 4) x y width height
    score: np.ndarray  # (D,)
    place: np.ndarray  # (D,) 0 for the best of its class in its image


class Pairs(NamedTuple):
    """P detections and objects of the same image and any class that overlap, by detection and object."""

    detection: np.ndarray  # (P,)
    object: np.ndarray  # (P,)
    iou: np.ndarray  # (P,), at least 0.1; for a crowd the share of the detection that it covers


class Matches(NamedTuple):
    """COCO's matches of detections and objects at T = 10 IoU thresholds, for A = 4 ranges of area."""

    categories: list[Category]  # K, by id
    image_ids: np.ndarray  # (I,) by id
    objects: Objects
    found: RankedDetections
    pairs: Pairs
    counts: np.ndarray  # (A, M) bool: an object to be found: no crowd, and of this size
    right: np.ndarray  # (A, T, D) bool: takes such an object
    ignored: np.ndarray  # (A, T, D) bool: neither right nor wrong
    pair: np.ndarray  # (D,) the pair of the match at IoU 0.5 and any size, -1 for none
    ranking: np.ndarray  # (D,) detections by class and falling score
    starts: np.ndarray  # (K + 1,) class k has ranking[starts[k]:starts[k + 1]]

    def ranked(self, k: int) -> np.ndarray:
        """The detections of a class, most confident first; ties in image order."""
        return self.ranking[self.starts[k] : self.starts[k + 1]]

    def to_find(self, area: int = 0) -> np.ndarray:
        """The number of objects of each class, (K,)."""
        return np.bincount(self.objects.label[self.counts[area]], minlength=len(self.categories))


def match(annotations: Annotations, results: Sequence[dict[str, Any]]) -> Matches:
    """Match results, whose images are known, to objects by COCO's greedy rule; unknown classes are dropped."""
    categories = sorted(annotations.categories)
    image_ids = np.sort(annotations.image_ids)
    objects = _objects(annotations, image_ids, categories)
    found = _found(results, image_ids, categories)
    pairs = overlaps(found, objects, len(image_ids))
    counts = np.stack([~objects.crowd & _within(objects.area, area) for area in AREAS.values()])
    same = np.flatnonzero(found.label[pairs.detection] == objects.label[pairs.object])
    own = Pairs(*(column[same] for column in pairs))
    won = assign(own, found.place, THRESHOLDS, counts, objects.crowd)
    hit = won >= 0
    right = np.zeros_like(hit)
    for a in range(len(AREAS)):
        right[a] = hit[a] & np.append(counts[a][own.object], False)[won[a]]
    size = found.boxes[:, 2] * found.boxes[:, 3]
    outside = np.stack([~_within(size, area) for area in AREAS.values()])[:, None]  # (A, 1, D)
    return Matches(
        categories=categories,
        image_ids=image_ids,
        objects=objects,
        found=found,
        pairs=pairs,
        counts=counts,
        right=right,
        ignored=(hit & ~right) | (~hit & outside),
        pair=np.append(same, -1)[won[0, 0]],
        ranking=np.lexsort((-found.score, found.label)),
        starts=np.searchsorted(np.sort(found.label), np.arange(len(categories) + 1)),
    )


def assign(pairs: Pairs, turn: np.ndarray, limits: np.ndarray, counts: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """COCO's greedy rule: each detection in turn takes the best object that is still free.

    The best is one that counts, then that of the greatest IoU, then the last. Crowds stay free. All detections of the
    same turn choose at once, so those that compete for an object must have different ones.

    Args:
        turn: (D,) from 0.
        limits: (T,) the least IoU.
        counts: (A, M) which objects count.
        crowd: (M,) bool.

    Returns: (A, T, D) the index of the pair, -1 for none.
    """
    total = len(pairs.iou)
    by_iou = np.argsort(pairs.iou, kind="stable")
    rank = np.empty(total, np.int64)
    rank[by_iou] = np.arange(total)
    key = rank + total * counts[:, pairs.object]  # (A, P), unique
    taken = np.zeros((len(counts), len(limits), counts.shape[1]), dtype=bool)
    won = np.full((len(counts), len(limits), len(turn)), -1, dtype=np.int32)
    limits = np.minimum(limits, 1 - 1e-10)[:, None]
    for chunk in _by_turn(pairs, turn):
        detection, thing = pairs.detection[chunk], pairs.object[chunk]
        free = (pairs.iou[chunk] >= limits) & (~taken[:, :, thing] | crowd[thing])  # (A, T, chunk)
        first = np.flatnonzero(np.diff(detection, prepend=-1))
        best = np.maximum.reduceat(np.where(free, key[:, None, chunk], -1), first, axis=2)
        a, t, which = np.nonzero(best >= 0)
        winner = by_iou[best[a, t, which] % total]
        won[a, t, detection[first][which]] = winner
        taken[a, t, pairs.object[winner]] = True
    return won


def overlaps(found: RankedDetections, objects: Objects, num_images: int) -> Pairs:
    """All detections and objects of the same image whose IoU is at least 0.1."""
    per_image = np.bincount(objects.image, minlength=num_images)
    first = np.cumsum(per_image) - per_image  # (I,) an image's first object
    width = per_image[found.image]  # (D,) with how many objects a detection is compared
    ends = np.cumsum(width)
    parts = []
    begin = 0
    while begin < len(width):
        end = max(int(np.searchsorted(ends, ends[begin] - width[begin] + AT_ONCE, "right")), begin + 1)
        detection = np.repeat(np.arange(begin, end), width[begin:end])
        step = np.arange(len(detection)) - np.repeat(ends[begin:end] - width[begin:end], width[begin:end])
        step += ends[begin] - width[begin]
        thing = first[found.image[detection]] + step
        iou = _iou(found.boxes[detection], objects.boxes[thing], objects.crowd[thing])
        keep = iou >= BACKGROUND
        parts.append((detection[keep], thing[keep], iou[keep]))
        begin = end
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))


def _iou(found: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of boxes side by side, (P,), in pycocotools' order of operations so that ties stay ties."""
    sides = np.minimum(found[:, :2] + found[:, 2:], objects[:, :2] + objects[:, 2:])
    sides -= np.maximum(found[:, :2], objects[:, :2])
    shared = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0.0)
    own = found[:, 2] * found[:, 3]
    union = np.where(crowd, own, own + objects[:, 2] * objects[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


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
    place = {category.id: k for k, category in enumerate(categories)}
    renumber = np.array([place[category.id] for category in annotations.categories], dtype=np.int64)
    image = np.searchsorted(image_ids, annotations.image_ids)[annotations.owners()][known]
    order = np.argsort(image, kind="stable")
    columns = (annotations.boxes[known], annotations.area[known], annotations.crowd[known])
    boxes, area, crowd = (column[order] for column in columns)
    return Objects(image[order], renumber[annotations.labels[known]][order], boxes, area, crowd)


def _found(results: Sequence[dict[str, Any]], image_ids: np.ndarray, categories: list[Category]) -> RankedDetections:
    place = {category.id: k for k, category in enumerate(categories)}
    rows = [row for row in results if row["category_id"] in place]
    owner = np.array([row["image_id"] for row in rows], dtype=np.int64)
    image = np.searchsorted(image_ids, owner)
    label = np.array([place[row["category_id"]] for row in rows], dtype=np.int64)
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    score = np.array([row["score"] for row in rows], dtype=np.float64)
    order = np.lexsort((-score, label, image))
    group = image[order] * len(categories) + label[order]
    first = np.searchsorted(group, group)
    turn = np.arange(len(order)) - first
    keep = order[turn < MOST]
    return RankedDetections(image[keep], label[keep], boxes[keep], score[keep], turn[turn < MOST])
