"""Where AP50 is lost: the six error types of TIDE (Bolya et al., ECCV 2020, arXiv 2008.08115)."""

from typing import NamedTuple

import numpy as np

from .curves import interpolated
from .matches import BACKGROUND, Matches

POSITIVE = 0.5  # IoU threshold of a right detection
NAMES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")


class Tide(NamedTuple):
    """How much AP50 would increase if only one type of error were fixed."""

    ap50: float
    gain: dict[str, float]  # by error type, and FP and FN: without all wrong detections, without all missed objects
    count: dict[str, int]  # number of errors of each type


class _Causes(NamedTuple):
    """The error type of each detection, and the object that would fix it."""

    kind: np.ndarray  # (D,) index into NAMES, -1 for right detections
    target: np.ndarray  # (D,) index of an object, -1 for none
    fixable: np.ndarray  # (D,) bool: the most confident of the detections whose target is the same free object
    missed: np.ndarray  # (M,) bool: matched to no detection, not even to a fixed one
    free: np.ndarray  # (M,) bool: matched to no detection


def tide(matches: Matches) -> Tide:
    """The six error types at IoU 0.5 with background below 0.1, over the classes that have objects.

    Matching is COCO's, with 100 detections per image and class. The reference tool `tidecv` differs: it keeps 100 per
    image, breaks ties in IoU by the first object, counts classes without objects as AP 0, and rounds its 101 recalls
    differently from pycocotools, so a class with few objects may differ by the precision at one recall.
    """
    causes = _causes(matches)
    detections, right, ignored = matches.detections, matches.right[0, 0], matches.ignored[0, 0]
    num_objects = matches.num_objects()
    use = num_objects > 0
    base = _mean_ap(detections.score, detections.label, right, ~ignored, num_objects, use)
    gain, count = {}, {}
    for n, name in enumerate(NAMES[:-1]):
        these = causes.kind == n
        fixed = these & causes.fixable
        label = np.where(fixed, np.append(matches.objects.label, -1)[causes.target], detections.label)
        keep = (~ignored & ~these) | fixed
        ap = _mean_ap(detections.score, label, right | fixed, keep, num_objects, use)
        gain[name], count[name] = max(ap - base, 0.0), int(these.sum())
    kinds = len(matches.categories)
    for name, lost in (("Miss", causes.missed), ("FN", causes.free)):
        fewer = num_objects - np.bincount(matches.objects.label[lost], minlength=kinds)
        gain[name] = _mean_ap(detections.score, detections.label, right, ~ignored, fewer, use) - base
        count[name] = int(lost.sum())
    gain["Miss"] = max(gain["Miss"], 0.0)
    gain["FP"] = _mean_ap(detections.score, detections.label, right, right, num_objects, use) - base
    count["FP"] = int((~right & ~ignored).sum())
    order = (*NAMES, "FP", "FN")
    return Tide(base, {name: gain[name] for name in order}, {name: count[name] for name in order})


def _causes(matches: Matches) -> _Causes:
    detections, objects, pairs = matches.detections, matches.objects, matches.pairs
    right = matches.right[0, 0]
    free = ~objects.crowd
    free[pairs.object[matches.pair[right]]] = False
    no_crowd = ~objects.crowd[pairs.object]
    same = detections.label[pairs.detection] == objects.label[pairs.object]
    own, own_object = _nearest(matches, no_crowd & same)
    other, other_object = _nearest(matches, no_crowd & ~same)
    taken, _ = _nearest(matches, no_crowd & same & ~free[pairs.object])
    tests = {
        "Loc": (own >= BACKGROUND) & (own <= POSITIVE),
        "Cls": other >= POSITIVE,
        "Dupe": taken >= POSITIVE,
        "Bkg": np.maximum(own, other) <= BACKGROUND,
    }
    kind = np.select(list(tests.values()), [NAMES.index(name) for name in tests], NAMES.index("Both"))
    kind[right] = -1
    target = np.select([kind == NAMES.index("Loc"), kind == NAMES.index("Cls")], [own_object, other_object], -1)
    rows = np.flatnonzero((target >= 0) & np.append(free, False)[target])
    rows = rows[np.argsort(-detections.score[rows], kind="stable")]
    recoverable, first = np.unique(target[rows], return_index=True)
    fixable = np.zeros(len(kind), dtype=bool)
    fixable[rows[first]] = True
    missed = free.copy()
    missed[recoverable] = False
    return _Causes(kind, target, fixable, missed, free)


def _nearest(matches: Matches, use: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each detection, the best IoU in the pairs selected by `use`, and the object; 0 and -1 without a pair."""
    rows = np.flatnonzero(use)
    detection, iou = matches.pairs.detection[rows], matches.pairs.iou[rows]
    order = np.lexsort((iou, detection))
    last = order[np.flatnonzero(np.diff(detection[order], append=-1))]
    greatest = np.zeros(len(matches.detections.score))
    nearest = np.full(len(greatest), -1)
    greatest[detection[last]] = iou[last]
    nearest[detection[last]] = matches.pairs.object[rows][last]
    return greatest, nearest


def _mean_ap(
    score: np.ndarray, label: np.ndarray, right: np.ndarray, keep: np.ndarray, objects: np.ndarray, use: np.ndarray
) -> float:
    """Mean AP50 over the classes in `use`; without objects, a class with detections counts as 0, others are skipped."""
    rows = np.flatnonzero(keep)
    rows = rows[np.lexsort((-score[rows], label[rows]))]
    starts = np.searchsorted(label[rows], np.arange(len(objects) + 1))
    values = []
    for k in np.flatnonzero(use):
        hits = right[rows[starts[k] : starts[k + 1]]][None]
        if objects[k]:
            values.append(interpolated(hits, np.zeros_like(hits), int(objects[k])).mean())
        elif hits.size:
            values.append(0.0)
    return float(np.mean(values)) if values else 0.0
