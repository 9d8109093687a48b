"""Where AP50 is lost: the six errors of TIDE (Bolya et al., ECCV 2020, arXiv 2008.08115)."""

from typing import NamedTuple

import numpy as np

from .curves import interpolated
from .matches import BACKGROUND, Matches

POSITIVE = 0.5
NAMES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")


class Tide(NamedTuple):
    """How much AP50 would increase if one kind of error were fixed and nothing else."""

    ap50: float
    gain: dict[str, float]  # by error, and FP and FN: all that is wrong gone, all that is missed forgiven
    count: dict[str, int]  # how many there are


class _Causes(NamedTuple):
    """The error of each detection, and the object that would fix it."""

    kind: np.ndarray  # (D,) index into NAMES, -1 for a right one
    target: np.ndarray  # (D,) an object, -1 for none
    mends: np.ndarray  # (D,) bool: the surest detection of those whose target is the same free object
    missed: np.ndarray  # (M,) bool: no detection takes it or could be mended to do so
    free: np.ndarray  # (M,) bool: no detection takes it


def tide(matches: Matches) -> Tide:
    """The six errors at IoU 0.5 with background below 0.1, over the classes that have objects.

    The matches are COCO's, with 100 detections per image and class. The reference tool `tidecv` takes 100 per image
    and the first of several equal IoUs, counts a class without objects as AP 0, and rounds its 101 recalls otherwise
    than pycocotools, so that a class with few objects may differ by the precision at one of them.
    """
    causes = _causes(matches)
    found, right, ignored = matches.found, matches.right[0, 0], matches.ignored[0, 0]
    to_find = matches.to_find()
    use = to_find > 0
    base = _mean_ap(found.score, found.label, right, ~ignored, to_find, use)
    gain, count = {}, {}
    for n, name in enumerate(NAMES[:-1]):
        these = causes.kind == n
        mended = these & causes.mends
        label = np.where(mended, np.append(matches.objects.label, -1)[causes.target], found.label)
        keep = (~ignored & ~these) | mended
        ap = _mean_ap(found.score, label, right | mended, keep, to_find, use)
        gain[name], count[name] = max(ap - base, 0.0), int(these.sum())
    kinds = len(matches.categories)
    for name, lost in (("Miss", causes.missed), ("FN", causes.free)):
        fewer = to_find - np.bincount(matches.objects.label[lost], minlength=kinds)
        gain[name] = _mean_ap(found.score, found.label, right, ~ignored, fewer, use) - base
        count[name] = int(lost.sum())
    gain["Miss"] = max(gain["Miss"], 0.0)
    gain["FP"] = _mean_ap(found.score, found.label, right, right, to_find, use) - base
    count["FP"] = int((~right & ~ignored).sum())
    order = (*NAMES, "FP", "FN")
    return Tide(base, {name: gain[name] for name in order}, {name: count[name] for name in order})


def _causes(matches: Matches) -> _Causes:
    found, objects, pairs = matches.found, matches.objects, matches.pairs
    right = matches.right[0, 0]
    free = ~objects.crowd
    free[pairs.object[matches.pair[right]]] = False
    real = ~objects.crowd[pairs.object]
    same = found.label[pairs.detection] == objects.label[pairs.object]
    own, own_object = _nearest(matches, real & same)
    other, other_object = _nearest(matches, real & ~same)
    taken, _ = _nearest(matches, real & same & ~free[pairs.object])
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
    rows = rows[np.argsort(-found.score[rows], kind="stable")]
    mendable, first = np.unique(target[rows], return_index=True)
    mends = np.zeros(len(kind), dtype=bool)
    mends[rows[first]] = True
    missed = free.copy()
    missed[mendable] = False
    return _Causes(kind, target, mends, missed, free)


def _nearest(matches: Matches, use: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the greatest IoU with the objects of some pairs, and that object; 0 and -1 for none."""
    rows = np.flatnonzero(use)
    detection, iou = matches.pairs.detection[rows], matches.pairs.iou[rows]
    order = np.lexsort((iou, detection))
    last = order[np.flatnonzero(np.diff(detection[order], append=-1))]
    greatest = np.zeros(len(matches.found.score))
    nearest = np.full(len(greatest), -1)
    greatest[detection[last]] = iou[last]
    nearest[detection[last]] = matches.pairs.object[rows][last]
    return greatest, nearest


def _mean_ap(
    score: np.ndarray, label: np.ndarray, right: np.ndarray, keep: np.ndarray, objects: np.ndarray, use: np.ndarray
) -> float:
    """AP50 over classes; one that has lost all its objects counts as 0, unless it has no detection either."""
    rows = np.flatnonzero(keep)
    rows = rows[np.lexsort((-score[rows], label[rows]))]
    starts = np.searchsorted(label[rows], np.arange(len(objects) + 1))
    found = []
    for k in np.flatnonzero(use):
        hits = right[rows[starts[k] : starts[k + 1]]][None]
        if objects[k]:
            found.append(interpolated(hits, np.zeros_like(hits), int(objects[k])).mean())
        elif hits.size:
            found.append(0.0)
    return float(np.mean(found)) if found else 0.0
