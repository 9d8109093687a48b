"""The best score thresholds, stored with weights after an evaluation and used by default."""

from collections.abc import Sequence
from typing import Any

from ..data.annotations import Annotations
from ..data.split import table_names
from .curves import best, tally
from .matches import match

MARGIN = 1e-5  # the best threshold is the score of a detection, which rounding in another batch must not hide


def best_thresholds(annotations: Annotations, results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The score with the best F1 at IoU 0.5, overall and per class, minus `MARGIN`.

    Returns:
        `{"overall": score, "classes": {name: score or None}}`; None if no detection is right.
    """
    matches = match(annotations, results)
    overall = best(tally(matches))
    if overall is None:
        return None
    by_class = {name: best(tally(matches, k)) for k, name in enumerate(table_names(matches.categories))}
    classes = {name: max(0.0, one.threshold - MARGIN) if one else None for name, one in by_class.items()}
    return {"overall": max(0.0, overall.threshold - MARGIN), "classes": classes}
