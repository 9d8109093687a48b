"""Cut large images into overlapping slices, and merge the results of the slices.

The rule by which answers are merged: *two slices mean one object if they agree about the part that both see*. Boxes are
compared after both were clipped to the area that the two slices share, so that a box which an edge has cut is compared
with just that part of its other half. Then

1. a cut box goes where an uncut one agrees with it whose score is at least half its own,
2. cut boxes that agree are joined to their hull,
3. of uncut boxes of two slices that agree, the one with the higher score stays.

The whole image is seen beside the slices. Of what it finds, only objects larger than the overlap count: every smaller
one lies uncut in some slice, where it is seen better. Source: ours; SAHI (Akyon et al. 2022,
https://arxiv.org/abs/2202.06934) merges by overlap alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import area, iou
from ..config import DataConfig
from ..data.batch import size_for_model
from ..errors import ConfigError

AGREE = 0.5  # IoU, within what both slices see, of boxes of one object
SURE_ENOUGH = 0.5  # an uncut box replaces a cut one whose score is at most 1 / 0.5 of its own
MOSTLY = 0.8  # of the smaller of two boxes that mean one thing, lies in the other
NEAR_EDGE = 0.015  # of a slice's side: a box that ends so close to an inner edge is taken to be cut there
STRETCH = 1.2  # a side that is longer than a slice by less stays whole
SHRINKS_MUCH = 4  # an image that is shrunk by more than this loses small objects; `predict` and `eval` say so
OVERLAP, MOST_AUTO_OVERLAP = 0.2, 0.5  # of a slice's side, where none is given
AUTO_SHRINK = 1.5  # by which a slice of automatic size is shrunk, where the weights don't know their training images

Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the image


class Slicing(NamedTuple):
    """How images are cut into slices."""

    side: int  # of a slice, in pixels
    overlap: float = OVERLAP  # of two neighbours, as a fraction of `side`; in [0, 0.9]
    fit: bool = False  # slices are as high, or wide, as an image whose short side is about `side`

    def windows(self, size: tuple[int, int]) -> list[Window]:
        """The whole image, then its slices row by row; nothing for an image that is hardly larger than one slice.

        Args:
            size: height and width in pixels.
        """
        height, width = size
        near = self.fit and 1 / STRETCH <= min(size) / self.side <= STRETCH
        rows, columns = (self._spans(length, min(size) if near else self.side) for length in size)
        if len(rows) * len(columns) == 1:
            return []
        return [(0, 0, width, height), *((x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns)]

    def _spans(self, length: int, side: int) -> list[tuple[int, int]]:
        """Where slices begin and end along one side: evenly spread, neighbours share at least `overlap`."""
        if length <= side * STRETCH:
            return [(0, length)]
        step = max(1, int(side * (1 - self.overlap)))
        count = -(-(length - side) // step) + 1
        starts = (round(k * (length - side) / (count - 1)) for k in range(count))
        return [(start, start + side) for start in starts]


def parse_slicing(side: str, overlap: float | None, config: DataConfig, facts: dict) -> Slicing:
    """`--slice` and `--overlap` as typed.

    `auto` is the median short side of the images that the weights were trained on, where their file says it, so that
    objects look as large as in training; else `AUTO_SHRINK` times `data.eval_scale`. Without an overlap, automatic
    slices share as much as nine of ten training objects are long, so that these lie uncut in some slice, but at least
    `OVERLAP` and at most `MOST_AUTO_OVERLAP` of a side; other slices share `OVERLAP`.

    Args:
        facts: what the file of weights says of its training: `median_short_side` and `object_side`, in pixels.

    Raises:
        ConfigError: the side is no number of at least 32 and not `auto`, or the overlap is outside [0, 0.9].
    """
    if overlap is not None and not 0 <= overlap <= 0.9:
        raise ConfigError(f"--overlap {overlap} is not a fraction from 0 to 0.9; try --overlap 0.2")
    if side == "auto":
        pixels = int(
            facts.get("median_short_side") or round(min([config.eval_scale, *(config.canvas or ())]) * AUTO_SHRINK)
        )
        if overlap is None:
            needed = float(facts.get("object_side") or 0) / pixels
            overlap = round(min(max(needed, OVERLAP), MOST_AUTO_OVERLAP), 3)
        return Slicing(pixels, overlap, fit=True)
    if not side.isdecimal() or int(side) < 32:
        raise ConfigError(f"--slice {side} is neither auto nor a number of pixels from 32; try --slice 640")
    return Slicing(int(side), OVERLAP if overlap is None else overlap)


def check_overlap(side: str | None, overlap: float | None) -> None:
    """Refuse an overlap of slices where there are none.

    Raises:
        ConfigError: `--overlap` is given without `--slice`.
    """
    if side is None and overlap is not None:
        raise ConfigError(f"--overlap {overlap:g} only applies to slices; add --slice auto, or drop --overlap")


def shrink_factor(size: tuple[int, int], config: DataConfig) -> float:
    """By how much an image of `size` (height, width) is shrunk for the model; below 1 where it is enlarged."""
    return max(size) / max(size_for_model(size, config))


def shrinking_message(shrunk: Sequence[tuple[float, str]], remedy: str) -> str:
    """What to say of images that are shrunk by more than `SHRINKS_MUCH`, each by how much and its name."""
    factor, name = max(shrunk)
    which = f"{name} is" if len(shrunk) == 1 else f"{len(shrunk)} images, {name} the most, are"
    return f"{which} shrunk by a factor of {factor:.1f} for the model, so small objects may be lost; {remedy}"


class WindowDetections(NamedTuple):
    """What was found in all windows of an image, in pixels of the image."""

    labels: Tensor  # (n,) int64
    scores: Tensor  # (n,)
    boxes: Tensor  # (n, 4) xyxy
    window: Tensor  # (n,) int64, the number of the window that each comes from

    def take(self, chosen: Tensor) -> "WindowDetections":
        """Those at an index or where a mask is True."""
        return WindowDetections(*(part[chosen] for part in self))


def merge(found: WindowDetections, windows: Sequence[Window]) -> tuple[Tensor, Tensor, Tensor]:
    """Merge what all windows found: labels (n,), scores (n,), boxes_xyxy (n, 4), best first.

    Args:
        windows: the whole image, then its slices, as `Slicing.windows` gives them.
    """
    areas = torch.tensor(windows, dtype=found.boxes.dtype)  # (W, 4)
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).amax(1)
    found = found.take((found.window > 0) | (sides > _overlap(areas)))  # of the whole image what slices cannot hold
    cut = _cut_edges(found, areas).any(1)
    pairs = _agreeing(found, areas)
    keep = torch.ones(len(found.scores), dtype=torch.bool)
    boxes, scores = found.boxes.clone(), found.scores.clone()

    a, b = pairs[:, 0], pairs[:, 1]
    pairs_both_ways = torch.cat([pairs, pairs.flip(1)])
    first, second = pairs_both_ways.unbind(1)
    replaced = cut[first] & ~cut[second] & (found.scores[second] >= SURE_ENOUGH * found.scores[first])
    keep[first[replaced]] = False
    keep &= ~_seen_closer(found, cut, pairs)

    joined = torch.zeros_like(keep)
    both_cut = cut[a] & cut[b] & keep[a] & keep[b]
    for group in _components(pairs[both_cut].tolist()):
        best = max(group, key=lambda i: float(scores[i]))
        members = torch.tensor(group)
        boxes[best] = torch.cat([boxes[members, :2].amin(0), boxes[members, 2:].amax(0)])
        keep[members], keep[best], joined[best] = False, True, True
    keep &= ~(_sliver(found, areas) & cut & ~joined)

    for i, j in _by_score(pairs[~cut[a] & ~cut[b]], found.scores):
        if keep[i] and keep[j]:
            keep[j] = False
    order = scores[keep].argsort(descending=True, stable=True)
    return found.labels[keep][order], scores[keep][order], boxes[keep][order]


def _seen_closer(found: WindowDetections, cut: Tensor, pairs: Tensor) -> Tensor:
    """Boxes of the whole image with which no slice agrees, but which a slice shows otherwise, (n,) bool: of a box of
    the same class that is not cut there, and of this one, most of the smaller lies in the other."""
    agreeing = torch.zeros(len(found.scores), dtype=torch.bool)
    agreeing[pairs.flatten()] = True
    whole = ((found.window == 0) & ~agreeing).nonzero()[:, 0]
    near = ((found.window > 0) & ~cut).nonzero()[:, 0]
    a, b = found.boxes[whole][:, None], found.boxes[near][None]
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    otherwise = (shared > 0) & (shared >= MOSTLY * torch.minimum(area(a), area(b)))
    otherwise &= found.labels[whole][:, None] == found.labels[near]
    seen = torch.zeros_like(agreeing)
    seen[whole[otherwise.any(1)]] = True
    return seen


def _overlap(areas: Tensor) -> float:
    """Pixels that neighbouring slices share, the least along both axes."""
    least = []
    for low, high in ((0, 2), (1, 3)):
        starts = areas[1:, low].unique()
        if len(starts) > 1:
            side = float((areas[1:, high] - areas[1:, low]).min())
            least.append(side - float(starts.diff().max()))
    return min(least, default=0.0)


def _cut_edges(found: WindowDetections, areas: Tensor) -> Tensor:
    """At which of its four edges each box ends at one of its slice that is not the image's, (n, 4) bool."""
    own = areas[found.window]  # (n, 4)
    margin = NEAR_EDGE * (own[:, 2:] - own[:, :2]).amax(1, keepdim=True).clamp(min=1)
    return ((found.boxes - own).abs() <= margin) & (own != areas[0])


def _sliver(found: WindowDetections, areas: Tensor) -> Tensor:
    """Boxes so narrow across a cut that a neighbour sees all of them: where it does not agree, they are none."""
    edges = _cut_edges(found, areas)
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    across = (edges[:, :2] | edges[:, 2:]) & (sides < _overlap(areas) / 2)
    return across.any(1)


def _agreeing(found: WindowDetections, areas: Tensor) -> Tensor:
    """Pairs (p, 2) of boxes of one class and two windows that agree about what both windows see."""
    rows = [(found.window == w).nonzero()[:, 0] for w in range(len(areas))]
    pairs = [torch.zeros(0, 2, dtype=torch.int64)]
    low = torch.maximum(areas[:, None, :2], areas[None, :, :2])
    high = torch.minimum(areas[:, None, 2:], areas[None, :, 2:])
    for s, t in (high > low).all(2).triu(1).nonzero().tolist():  # windows that share pixels
        i, j = rows[s], rows[t]
        if not len(i) or not len(j):
            continue
        shared = torch.cat([torch.maximum(areas[s, :2], areas[t, :2]), torch.minimum(areas[s, 2:], areas[t, 2:])])
        a, b = (_clip(found.boxes[k], shared) for k in (i, j))
        agree = iou(a[:, None], b[None]) >= AGREE
        agree &= (found.labels[i][:, None] == found.labels[j][None]) & (area(a) > 0)[:, None] & (area(b) > 0)[None]
        x, y = agree.nonzero().unbind(1)
        pairs.append(torch.stack([i[x], j[y]], 1))
    return torch.cat(pairs)


def _clip(boxes: Tensor, window: Tensor) -> Tensor:
    """Boxes (n, 4) within a window (4,); without size where they lie outside."""
    low, high = window[:2].repeat(2), window[2:].repeat(2)
    return torch.minimum(torch.maximum(boxes, low), high)


def _components(pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Groups of numbers that pairs connect."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent.setdefault(i, i) != i:
            i = parent[i]
        return i

    for i, j in pairs:
        parent[root(i)] = root(j)
    groups: dict[int, list[int]] = {}
    for i in parent:
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _by_score(pairs: Tensor, scores: Tensor) -> list[tuple[int, int]]:
    """Pairs as (better, worse), the best of the better first."""
    swapped = torch.where((scores[pairs[:, 0]] >= scores[pairs[:, 1]])[:, None], pairs, pairs.flip(1))
    order = scores[swapped[:, 0]].argsort(descending=True, stable=True)
    return [(int(i), int(j)) for i, j in swapped[order].tolist()]
