"""Statistics of a split."""

from typing import Any

import numpy as np

from ..annotations import Annotations
from ..split import table_names

SMALL, LARGE = 32**2, 96**2  # areas in pixels, COCO's


def statistics(annotations: Annotations) -> dict[str, Any]:
    """Counts of images, objects and classes, and distributions of sizes, for JSON. Only `crowds` counts crowds."""
    known = (annotations.labels >= 0) & ~annotations.crowd
    owners, boxes = annotations.owners()[known], annotations.boxes[known]
    labels = annotations.labels[known]
    sides = boxes[(boxes[:, 2:] > 0).all(1), 2:]
    area = annotations.area[known]
    named = zip(table_names(annotations.categories), annotations.categories, strict=True)
    counts = np.bincount(owners, minlength=len(annotations.image_ids))
    return {
        "images": len(annotations.image_ids),
        "objects": int(known.sum()),
        "crowds": int(annotations.crowd.sum()),
        "empty_images": int((np.diff(annotations.starts) == 0).sum()),
        "classes": {
            name: {
                "id": category.id,
                "objects": int((labels == k).sum()),
                "images": len(np.unique(owners[labels == k])),
            }
            for k, (name, category) in enumerate(named)
        },
        "objects_per_image": _spread(counts),
        "object_side_px": _spread(np.sqrt(sides.prod(1))),  # square root of the box's area
        "object_aspect": _spread(sides[:, 0] / sides[:, 1]),  # width / height
        "shares": {
            "small": _fraction(area < SMALL),
            "medium": _fraction((area >= SMALL) & (area < LARGE)),
            "large": _fraction(area >= LARGE),
        },
        "image_width": _spread(annotations.sizes[:, 0]),
        "image_height": _spread(annotations.sizes[:, 1]),
    }


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Minimum, 5th percentile, median, 95th percentile, maximum and mean; None if there are no values."""
    if not len(values):
        return None
    low, p5, median, p95, high = np.percentile(values, [0, 5, 50, 95, 100]).round(3).tolist()
    return {"min": low, "p5": p5, "median": median, "p95": p95, "max": high, "mean": round(float(values.mean()), 3)}


def _fraction(chosen: np.ndarray) -> float:
    return round(float(chosen.mean()), 4) if len(chosen) else 0.0
