"""Cut large images into overlapping slices, and merge the results of the slices.

The rule for merging: *boxes of two slices are the same object if they match within the area that both slices cover*.
Both boxes are clipped to this shared area before their IoU is computed, so a box cut off by the edge of a slice is
compared only with the corresponding part of the other. Then

1. a cut box is dropped if it matches an uncut one with at least half its score,
2. cut boxes that match are replaced by the smallest box around them,
3. of matching uncut boxes, the one with the higher score is kept.

The whole image is processed in addition to the slices. Of its detections, only those larger than the overlap are used:
every smaller object lies uncut in some slice, at higher resolution. Source: ours; SAHI (Akyon et al. 2022,
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

MATCH_IOU = 0.5  # of two boxes of one object, within the area that both slices cover
MIN_SCORE_RATIO = 0.5  # an uncut box replaces a cut one if its score is at least this fraction of the other's
CONTAINED = 0.8  # fraction of the smaller box that lies in the other, if both show the same thing
NEAR_EDGE = 0.015  # of a slice's side: a box that ends this close to an inner edge counts as cut
STRETCH = 1.2  # a side up to this many times a slice's is not divided
SHRINKS_MUCH = 4  # images shrunk by more than this lose small objects; `predict` and `eval` warn about them
OVERLAP, MAX_AUTO_OVERLAP = 0.2, 0.5  # fraction of a slice's side, if no overlap is given
AUTO_SHRINK = 1.5  # how much automatic slices are shrunk, if the weights file doesn't give the training images' size

Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the image


class Slicing(NamedTuple):
    """How images are cut into slices."""

    side: int  # of a slice, in pixels
    overlap: float = OVERLAP  # of two neighbours, as a fraction of `side`; in [0, 0.9]
    fit: bool = False  # if an image's short side is close to `side`, use it as the side of its slices

    def windows(self, size: tuple[int, int]) -> list[Window]:
        """The whole image, then its slices row by row; empty for an image hardly larger than one slice.

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
        """Start and end of the slices along one axis: evenly spaced, overlapping by at least `overlap`."""
        if length <= side * STRETCH:
            return [(0, length)]
        step = max(1, int(side * (1 - self.overlap)))
        count = -(-(length - side) // step) + 1
        starts = (round(k * (length - side) / (count - 1)) for k in range(count))
        return [(start, start + side) for start in starts]


def parse_slicing(side: str, overlap: float | None, config: DataConfig, facts: dict) -> Slicing:
    """Parse `--slice` and `--overlap`.

    `auto` is the median short side of the training images, if the weights file has it, so that objects appear as large
    as in training; otherwise `AUTO_SHRINK` times `data.eval_scale`. By default, automatic slices overlap by the 90th
    percentile of the training objects' lengths, so that most objects lie uncut in some slice, but by at least `OVERLAP`
    and at most `MAX_AUTO_OVERLAP` of a side; other slices overlap by `OVERLAP`.

    Args:
        facts: training facts in the weights file: `median_short_side` and `object_side`, in pixels.

    Raises:
        ConfigError: the side is neither `auto` nor a number of at least 32, or the overlap is outside [0, 0.9].
    """
    if overlap is not None and not 0 <= overlap <= 0.9:
        raise ConfigError(f"--overlap {overlap} is not a fraction from 0 to 0.9; try --overlap 0.2")
    if side == "auto":
        pixels = int(
            facts.get("median_short_side") or round(min([config.eval_scale, *(config.canvas or ())]) * AUTO_SHRINK)
        )
        if overlap is None:
            needed = float(facts.get("object_side") or 0) / pixels
            overlap = round(min(max(needed, OVERLAP), MAX_AUTO_OVERLAP), 3)
        return Slicing(pixels, overlap, fit=True)
    if not side.isdecimal() or int(side) < 32:
        raise ConfigError(f"--slice {side} is neither auto nor a number of pixels from 32; try --slice 640")
    return Slicing(int(side), OVERLAP if overlap is None else overlap)


def check_overlap(side: str | None, overlap: float | None) -> None:
    """Reject an overlap without slices.

    Raises:
        ConfigError: `--overlap` is given without `--slice`.
    """
    if side is None and overlap is not None:
        raise ConfigError(f"--overlap {overlap:g} only applies to slices; add --slice auto, or drop --overlap")


def shrink_factor(size: tuple[int, int], config: DataConfig) -> float:
    """The factor by which an image of `size` (height, width) is shrunk for the model; below 1 if it is enlarged."""
    return max(size) / max(size_for_model(size, config))


def shrinking_message(shrunk: Sequence[tuple[float, str]], remedy: str) -> str:
    """The warning about images shrunk by more than `SHRINKS_MUCH`, given as pairs of factor and name."""
    factor, name = max(shrunk)
    which = f"{name} is" if len(shrunk) == 1 else f"{len(shrunk)} images, {name} the most, are"
    return f"{which} shrunk by a factor of {factor:.1f} for the model, so small objects may be lost; {remedy}"


class WindowDetections(NamedTuple):
    """The detections in all windows of an image, in pixels of the image."""

    labels: Tensor  # (n,) int64
    scores: Tensor  # (n,)
    boxes: Tensor  # (n, 4) xyxy
    window: Tensor  # (n,) int64, the index of each detection's window

    def take(self, chosen: Tensor) -> "WindowDetections":
        """A subset, by index or mask."""
        return WindowDetections(*(part[chosen] for part in self))


def merge(found: WindowDetections, windows: Sequence[Window]) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the detections of all windows: labels (n,), scores (n,), boxes_xyxy (n, 4), best first.

    Args:
        windows: the whole image, then its slices, as `Slicing.windows` gives them.
    """
    areas = torch.tensor(windows, dtype=found.boxes.dtype)  # (W, 4)
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).amax(1)
    # of the whole image, only what no slice can contain
    found = found.take((found.window > 0) | (sides > _overlap(areas)))
    cut = _cut_edges(found, areas).any(1)
    pairs = _matching(found, areas)
    keep = torch.ones(len(found.scores), dtype=torch.bool)
    boxes, scores = found.boxes.clone(), found.scores.clone()

    a, b = pairs[:, 0], pairs[:, 1]
    pairs_both_ways = torch.cat([pairs, pairs.flip(1)])
    first, second = pairs_both_ways.unbind(1)
    replaced = cut[first] & ~cut[second] & (found.scores[second] >= MIN_SCORE_RATIO * found.scores[first])
    keep[first[replaced]] = False
    keep &= ~_refuted(found, cut, pairs)

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


def _refuted(found: WindowDetections, cut: Tensor, pairs: Tensor) -> Tensor:
    """Unmatched boxes of the whole image that a slice shows to be wrong, (n,) bool.

    The slice has an uncut box of the same class, and most of the smaller of the two boxes lies in the other.
    """
    matched = torch.zeros(len(found.scores), dtype=torch.bool)
    matched[pairs.flatten()] = True
    whole = ((found.window == 0) & ~matched).nonzero()[:, 0]
    near = ((found.window > 0) & ~cut).nonzero()[:, 0]
    a, b = found.boxes[whole][:, None], found.boxes[near][None]
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    contained = (shared > 0) & (shared >= CONTAINED * torch.minimum(area(a), area(b)))
    contained &= found.labels[whole][:, None] == found.labels[near]
    refuted = torch.zeros_like(matched)
    refuted[whole[contained.any(1)]] = True
    return refuted


def _overlap(areas: Tensor) -> float:
    """The smallest overlap of neighbouring slices along either axis, in pixels."""
    least = []
    for low, high in ((0, 2), (1, 3)):
        starts = areas[1:, low].unique()
        if len(starts) > 1:
            side = float((areas[1:, high] - areas[1:, low]).min())
            least.append(side - float(starts.diff().max()))
    return min(least, default=0.0)


def _cut_edges(found: WindowDetections, areas: Tensor) -> Tensor:
    """Edges of boxes that lie on an edge of their slice inside the image, (n, 4) bool."""
    own = areas[found.window]  # (n, 4)
    margin = NEAR_EDGE * (own[:, 2:] - own[:, :2]).amax(1, keepdim=True).clamp(min=1)
    return ((found.boxes - own).abs() <= margin) & (own != areas[0])


def _sliver(found: WindowDetections, areas: Tensor) -> Tensor:
    """Boxes so narrow at a cut that a neighbouring slice contains all of them, (n,) bool; unmatched ones are false."""
    edges = _cut_edges(found, areas)
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    across = (edges[:, :2] | edges[:, 2:]) & (sides < _overlap(areas) / 2)
    return across.any(1)


def _matching(found: WindowDetections, areas: Tensor) -> Tensor:
    """Pairs (p, 2) of boxes of one class that match within the area that their two windows share."""
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
        match = iou(a[:, None], b[None]) >= MATCH_IOU
        match &= (found.labels[i][:, None] == found.labels[j][None]) & (area(a) > 0)[:, None] & (area(b) > 0)[None]
        x, y = match.nonzero().unbind(1)
        pairs.append(torch.stack([i[x], j[y]], 1))
    return torch.cat(pairs)


def _clip(boxes: Tensor, window: Tensor) -> Tensor:
    """Clip boxes (n, 4) to a window (4,); boxes outside it become empty."""
    low, high = window[:2].repeat(2), window[2:].repeat(2)
    return torch.minimum(torch.maximum(boxes, low), high)


def _components(pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    """The connected components of a graph given by its edges."""
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
    """Pairs as (higher, lower) by score, in descending order of the higher score."""
    swapped = torch.where((scores[pairs[:, 0]] >= scores[pairs[:, 1]])[:, None], pairs, pairs.flip(1))
    order = scores[swapped[:, 0]].argsort(descending=True, stable=True)
    return [(int(i), int(j)) for i, j in swapped[order].tolist()]
