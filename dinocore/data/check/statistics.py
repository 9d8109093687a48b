"""Statistics of a split."""

from typing import Any

import numpy as np

from ..annotations import Annotations
from ..split import table_names

SMALL, LARGE = 32**2, 96**2  # areas in pixels, COCO's


def statistics(annotations: Annotations) -> dict[str, Any]:
    """Classes, sizes, objects per image, shapes, empties and crowds. Crowds count nowhere but under their name."""
    known = (annotations.labels >= 0) & ~annotations.crowd
    owners, boxes = annotations.owners()[known], annotations.boxes[known]
    labels = annotations.labels[known]
    good = (boxes[:, 2:] > 0).all(1)
    sides = boxes[good, 2:]
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
            "small": _share(area < SMALL),
            "medium": _share((area >= SMALL) & (area < LARGE)),
            "large": _share(area >= LARGE),
        },
        "image_width": _spread(annotations.sizes[:, 0]),
        "image_height": _spread(annotations.sizes[:, 1]),
    }


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Least, 5 %, median, 95 %, greatest and mean; None of nothing."""
    if not len(values):
        return None
    low, fifth, middle, most, high = np.percentile(values, [0, 5, 50, 95, 100]).round(3).tolist()
    return {"min": low, "p5": fifth, "median": middle, "p95": most, "max": high, "mean": round(float(values.mean()), 3)}


def _share(chosen: np.ndarray) -> float:
    return round(float(chosen.mean()), 4) if len(chosen) else 0.0
