"""A mask cut into so many cells as a drawing has room for."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .mask import MaskView


class Cell(NamedTuple):
    """Consecutive queries that a drawing shows as one row and one column."""

    start: int
    stop: int  # the first query after it
    first_group: int
    last_group: int
    kind: str  # positive, negative, both


class Fold(NamedTuple):
    """A mask with fewer cells than queries; the last row and column stand for all the matching queries."""

    cells: list[Cell]  # of the denoising queries
    blocked: Tensor  # (cells + 1, cells + 1) share of the pairs that is blocked
    real: Tensor  # (B, cells) share of the queries that is not padding

    @property
    def queries_per_cell(self) -> int:
        """k, where a cell stands for at most k x k pairs."""
        return max((cell.stop - cell.start for cell in self.cells), default=1)


def fold(view: MaskView, most: int) -> Fold:
    """At most so many cells, of equal kind where there is room: a query, else part of a group's half, else groups."""
    cells = [_cell(view, start, stop) for start, stop in _cut(view, most)]
    starts = [*(cell.start for cell in cells), view.num_denoising]
    sizes = np.diff([*starts, len(view.blocked)])
    rows = np.add.reduceat(view.blocked.numpy(), starts, axis=0, dtype=np.int32)  # (cells + 1, N)
    pairs = np.add.reduceat(rows, starts, axis=1, dtype=np.int64)  # (cells + 1, cells + 1)
    real = [view.real[:, cell.start : cell.stop].float().mean(1) for cell in cells]
    return Fold(
        cells=cells,
        blocked=torch.from_numpy(pairs / np.outer(sizes, sizes)),
        real=torch.stack(real, dim=1) if real else torch.zeros(len(view.real), 0),
    )


def _cut(view: MaskView, most: int) -> list[tuple[int, int]]:
    """Where the cells begin and end."""
    for key in (2 * view.group + view.negative, view.group):
        lengths = torch.unique_consecutive(key, return_counts=True)[1].tolist()
        if len(lengths) <= most:
            pieces = most // max(1, len(lengths))
            return _spans(lengths, max((-(-length // pieces) for length in lengths), default=1))
    together = -(-len(lengths) // most)
    return _spans([sum(lengths[i : i + together]) for i in range(0, len(lengths), together)], view.num_denoising)


def _spans(lengths: list[int], longest: int) -> list[tuple[int, int]]:
    """Runs of these lengths, one after the other, none cut into pieces longer than `longest`."""
    spans, start = [], 0
    for length in lengths:
        end = start + length
        spans += [(first, min(first + longest, end)) for first in range(start, end, longest)]
        start = end
    return spans


def _cell(view: MaskView, start: int, stop: int) -> Cell:
    kinds = view.negative[start:stop]
    kind = "negative" if kinds.all() else "both" if kinds.any() else "positive"
    return Cell(start, stop, int(view.group[start]), int(view.group[stop - 1]), kind)
