"""The score threshold that goes with weights: stored beside them after an evaluation, used where none is given."""

from collections.abc import Sequence
from typing import Any

from ..data.annotations import Annotations
from ..data.split import table_names
from .curves import best, tally
from .matches import match


def best_thresholds(annotations: Annotations, results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The score of the greatest F1 at IoU 0.5, over all classes and for each class.

    Returns:
        `{"overall": score, "classes": {name: score or None}}`; None where no detection is right.
    """
    matches = match(annotations, results)
    overall = best(tally(matches))
    if overall is None:
        return None
    found = {name: best(tally(matches, k)) for k, name in enumerate(table_names(matches.categories))}
    classes = {name: one.threshold if one else None for name, one in found.items()}
    return {"overall": overall.threshold, "classes": classes}
