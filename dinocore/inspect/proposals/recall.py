"""Which annotated objects the first stage's boxes cover: recall@k by feature level and by COCO's sizes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...boxes import iou

COUNTS = (10, 50, 100, 300, 900)
IOUS = (0.5, 0.75)
# area in pixels, as COCO has it
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}


class Judged(NamedTuple):
    """A picture's proposals, best first, and its annotated objects; boxes x0 y0 x1 y1 in pixels."""

    boxes: Tensor  # (N, 4)
    levels: Tensor  # (N,) int64
    objects: Tensor  # (T, 4)
    areas: Tensor  # (T,)


class Recall(NamedTuple):
    """The share of objects of one size that a proposal of one level among its picture's first k covers, by k."""

    iou: float  # the least that covers
    level: int | None  # None: of any level
    size: str | None  # None: of any size
    objects: int
    shares: dict[int, float]


def recalls(pictures: Sequence[Judged]) -> list[Recall]:
    """For each IoU, level and size with objects; the last k is the number of all proposals, unless there are more."""
    if not sum(len(picture.objects) for picture in pictures):
        return []
    most = min(COUNTS[-1], max(len(picture.boxes) for picture in pictures))
    counts = [*(count for count in COUNTS if count < most), most]
    areas = torch.cat([picture.areas for picture in pictures])
    wanted: dict[str | None, Tensor] = {None: torch.ones_like(areas, dtype=torch.bool)}
    wanted |= {size: (areas >= low) & (areas < high) for size, (low, high) in SIZES.items()}
    levels: list[int | None] = [None, *sorted(set(torch.cat([picture.levels for picture in pictures]).tolist()))]
    rows = []
    for level in levels:
        best = torch.cat([_best(picture, level, counts) for picture in pictures])  # (all objects, counts)
        for least in IOUS:
            for size, chosen in wanted.items():
                if chosen.any():
                    shares = (best[chosen] >= least).double().mean(0).tolist()
                    rows.append(Recall(least, level, size, int(chosen.sum()), dict(zip(counts, shares, strict=True))))
    return rows


def _best(picture: Judged, level: int | None, counts: Sequence[int]) -> Tensor:
    """The greatest IoU of each object with one of the first k proposals, if of this level, (T, counts)."""
    overlap = iou(picture.objects[:, None], picture.boxes)  # (T, N)
    if level is not None:
        overlap = overlap.masked_fill(picture.levels != level, 0)
    so_far = overlap.cummax(dim=1).values if overlap.numel() else overlap
    return so_far[:, [min(count, len(picture.boxes)) - 1 for count in counts]]


def as_json(rows: Sequence[Recall]) -> list[dict[str, Any]]:
    """For scripts."""
    return [row._asdict() | {"shares": {str(count): share for count, share in row.shares.items()}} for row in rows]
