"""Which class is taken for which, at IoU 0.5 and one score threshold."""

import numpy as np

from .matches import Matches, Pairs, assign


def confusion(matches: Matches, threshold: float) -> np.ndarray:
    """Counts, (K + 1, K + 1): row the truth, column what was found; the last of both is background.

    Classes play no part in who takes which object: the surest detection of an image chooses first, the object of the
    greatest IoU. What only covers a crowd is left out.
    """
    found, objects, pairs = matches.found, matches.objects, matches.pairs
    kinds = len(matches.categories)
    keep = found.score >= threshold
    usable = keep[pairs.detection] & (pairs.iou >= 0.5)
    chosen = Pairs(*(column[usable] for column in pairs))
    order = np.lexsort((-found.score, found.image))
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order)) - np.searchsorted(found.image, found.image)
    counts = ~objects.crowd
    won = assign(chosen, turn, np.array([0.5]), counts[None], objects.crowd)[0, 0]  # (D,)
    thing = np.append(chosen.object, -1)[won]
    hit = (won >= 0) & np.append(counts, False)[thing]
    matrix = np.zeros((kinds + 1, kinds + 1), dtype=np.int64)
    np.add.at(matrix, (objects.label[thing[hit]], found.label[hit]), 1)
    matrix[kinds] += np.bincount(found.label[keep & (won < 0)], minlength=kinds + 1)
    missed = counts.copy()
    missed[thing[hit]] = False
    matrix[:, kinds] += np.bincount(objects.label[missed], minlength=kinds + 1)
    return matrix
