"""The model's own denoising mask, prepared for drawing. Nothing is printed or written here.

`mask_of` and `batch_mask` run the model's own denoiser and `join`. `text.py` draws the mask for a terminal, `figure.py`
as PNG, SVG and HTML, both from a `SmallMask`; `explain.py` explains a row in words.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...config import ModelConfig
from ...errors import ConfigError
from ...model.build import build_denoiser
from ...model.denoising import Denoiser, join
from ...structures import Queries, Target

MAX_BYTES = 2**30  # masks that need more memory are refused


class MaskView(NamedTuple):
    """A mask and the meaning of its queries; denoising queries come first."""

    blocked: Tensor  # (N, N) bool, True where the row's query must not attend to the column's
    group: Tensor  # (Q,) int64, the denoising group
    negative: Tensor  # (Q,) bool
    valid: Tensor  # (B, Q) bool, False on a padding slot
    num_objects: list[int]  # annotated objects of each image
    num_groups: int
    target_index: Tensor  # (B, Q) int64, the object of the image that each is a noisy copy of, -1 on padding
    files: Sequence[str] = ()  # names of the images, if known
    names: Sequence[list[str]] = ()  # class of every object of each image, if known

    @property
    def num_denoising(self) -> int:
        """Q, the number of denoising queries."""
        return len(self.group)

    @property
    def num_matching(self) -> int:
        """The number of queries that do not come from targets."""
        return len(self.blocked) - self.num_denoising

    @property
    def slots(self) -> Tensor:
        """(Q,) bool, the positives of the first group: one slot per object of the image with the most objects."""
        return (self.group == 0) & ~self.negative

    @property
    def kinds_of_group(self) -> str:
        """The queries of a group, such as `3 positive + 3 negative`; empty if there are no denoising queries."""
        slots = int(self.slots.sum())
        return f"{slots} positive" * bool(slots) + f" + {slots} negative" * bool(self.negative.any())

    @property
    def taking_part(self) -> list[int]:
        """The number of objects of each image that have denoising queries."""
        return self.valid[:, self.slots].sum(1).tolist()

    @property
    def blocked_pairs(self) -> dict[str, int]:
        """The number of blocked pairs in each part of the mask, by `ROW_to_COLUMN`, such as `denoising_to_matching`."""
        cut = self.num_denoising
        parts = {"denoising": slice(0, cut), "matching": slice(cut, None)}
        return {
            f"{row}_to_{column}": int(self.blocked[rows, columns].sum())
            for row, rows in parts.items()
            for column, columns in parts.items()
        }

    @property
    def blocked_fraction(self) -> float:
        """The fraction of all pairs that is blocked, in [0, 1]."""
        return int(self.blocked.sum()) / self.blocked.numel()


class MaskBatch(NamedTuple):
    """A batch of annotated images, without their pixels."""

    targets: list[Target]
    files: Sequence[str] = ()
    names: Sequence[list[str]] = ()  # the class of every object


def mask_of(config: ModelConfig, num_objects: Sequence[int]) -> MaskView:
    """The mask that the model would use in training for images with these numbers of objects.

    Raises:
        ConfigError: it would need more than MAX_BYTES.
    """
    check_size(config, num_objects)
    targets = [Target(torch.zeros(n, dtype=torch.int64), torch.full((n, 4), 0.5), seed=0) for n in num_objects]
    return batch_mask(config, MaskBatch(targets))


def batch_mask(config: ModelConfig, objects: MaskBatch) -> MaskView:
    """The mask that the model would use in training on these images; without denoising, nothing is blocked.

    Raises:
        ConfigError: it would need more than MAX_BYTES.
    """
    targets, files, names = objects
    num_objects = [len(target.labels) for target in targets]
    check_size(config, num_objects)
    content = torch.zeros(len(targets), config.num_queries, config.hidden_dim)  # (B, N, C)
    matching = Queries(content, content[..., :4])
    with torch.no_grad():
        noise = build_denoiser(config)(targets)
        blocked = None if noise is None else join(noise, matching).blocked
    if noise is None or blocked is None:
        none = torch.zeros(len(targets), 0, dtype=torch.int64)  # (B, 0)
        blocked = torch.zeros(config.num_queries, config.num_queries, dtype=torch.bool)
        return MaskView(blocked, none[0], none[0].bool(), none.bool(), num_objects, 0, none, files, names)
    return MaskView(
        blocked, noise.group, noise.negative, noise.valid, num_objects, noise.num_groups, noise.target_index,
        files, names,
    )  # fmt: skip


def check_size(config: ModelConfig, num_objects: Sequence[int]) -> None:
    """Check that a mask is not too large, before anything is allocated.

    Raises:
        ConfigError: it would need more than MAX_BYTES; the message has an estimate.
    """
    with torch.device("meta"):
        denoiser = build_denoiser(config)
    num_noisy = 0
    if isinstance(denoiser, Denoiser):
        slots = min(denoiser.max_targets, max(num_objects))
        num_noisy = denoiser.count_groups(slots) * denoiser.copies * slots
    total = num_noisy + config.num_queries
    mask = 3 * total**2  # the mask and two intermediate results of its size
    content = 4 * config.hidden_dim * (3 * len(num_objects) * total + config.num_classes)
    needed = mask + content + 48 * sum(num_objects)  # box, label and sampling order of each object
    if needed > MAX_BYTES:
        raise ConfigError(
            f"this mask is too large to inspect: {_amount(sum(num_objects))} objects, {_amount(num_noisy)} denoising "
            f"and {_amount(config.num_queries)} matching queries need {_size(needed)} of memory, but "
            f"inspect-mask uses at most {_size(MAX_BYTES)}; use fewer groups or objects"
        )


def notes(view: MaskView, config: ModelConfig) -> list[str]:
    """Remarks on why nothing is blocked, or why some objects have no denoising queries."""
    denoising = config.denoising
    if view.num_groups == 0:
        setting = "num_groups = 0" if denoising.kind != "none" else 'kind = "none"'
        return [f"there is no denoising (model.denoising.{setting}), so nothing is blocked"]
    if view.num_denoising == 0:
        return ["no image has an object, so there are no denoising queries and nothing is blocked"]
    bound = "num_pairs" if denoising.num_groups == "auto" else "max_queries"
    return [
        f"image {image} has {objects:,} objects and {part:,} of them take part, sampled anew in every step "
        f"(model.denoising.{bound} = {getattr(denoising, bound):,} bounds it)"
        for image, (objects, part) in enumerate(zip(view.num_objects, view.taking_part, strict=True))
        if part < objects
    ]


def blocked_facts(view: MaskView) -> dict[str, str]:
    """The counts by name, formatted."""
    total, images = len(view.blocked), len(view.num_objects)
    objects = ", ".join(f"{count:,}" for count in view.num_objects[:12])
    sizes = {"denoising": view.num_denoising, "matching": view.num_matching}
    made = f" = {view.num_groups} x ({view.kinds_of_group})" * bool(view.num_denoising)
    facts = {
        "groups": f"{view.num_groups:,}",
        "objects per image": f"{objects}, ... ({images} images)" if images > 12 else objects,
        "denoising queries": f"{view.num_denoising:,}{made}",
        "matching queries": f"{view.num_matching:,}",
        "total": f"{total:,}",
        "blocked": f"{int(view.blocked.sum()):,} of {total:,} x {total:,} pairs: {view.blocked_fraction:.2%}",
    }
    for name, blocked in view.blocked_pairs.items():
        row, column = name.split("_to_")
        pairs = sizes[row] * sizes[column]
        facts[f"{row} to {column}"] = f"{blocked:,} of {pairs:,} ({blocked / pairs:.0%})" if pairs else "no pairs"
    return facts


def to_json(view: MaskView) -> dict[str, Any]:
    """For JSON; every range is [first, end), from 0."""
    num_negative = int(view.negative.sum())
    rows, counts = view.blocked.unique_consecutive(dim=0, return_counts=True)
    files = view.files or [None] * len(view.num_objects)
    return {
        "num_groups": view.num_groups,
        "num_denoising": view.num_denoising,
        "num_positive": view.num_denoising - num_negative,
        "num_negative": num_negative,
        "num_matching": view.num_matching,
        "num_queries": len(view.blocked),
        "slots_per_group": int(view.slots.sum()),
        "blocked_share": view.blocked_fraction,
        "blocked_pairs": int(view.blocked.sum()),
        "total_pairs": view.blocked.numel(),
        "blocked_pairs_by_part": view.blocked_pairs,
        "images": [
            {"file": file} | {"objects": objects, "taking_part": part, "padding_queries": true_runs(~valid)}
            for file, objects, part, valid in zip(files, view.num_objects, view.taking_part, view.valid, strict=True)
        ],
        "groups": [
            {"positive": true_runs(of_group & ~view.negative), "negative": true_runs(of_group & view.negative)}
            for of_group in (view.group == group for group in range(view.num_groups))
        ],
        "mask": [
            {"rows": [end - count, end], "blocked": true_runs(row)}
            for row, count, end in zip(rows, counts.tolist(), counts.cumsum(0).tolist(), strict=True)
        ],
    }


def true_runs(flags: Tensor) -> list[list[int]]:
    """The ranges [first, end) where a vector (n,) bool is True."""
    change = torch.nn.functional.pad(flags.int(), (1, 1)).diff().nonzero().flatten()
    return change.view(-1, 2).tolist()


def _amount(count: int) -> str:
    return f"{count:,}" if count < 10**15 else "more than 10^15"


def _size(num_bytes: int) -> str:
    return f"{num_bytes // 10**8 / 10:,.1f} GB" if num_bytes < 10**15 else "more than 1,000,000 GB"


class MaskCell(NamedTuple):
    """Consecutive queries that a drawing shows as one row and one column."""

    start: int
    stop: int  # exclusive
    first_group: int
    last_group: int
    kind: str  # positive, negative, both


class SmallMask(NamedTuple):
    """A mask reduced to cells; the last row and column stand for all the matching queries."""

    cells: list[MaskCell]  # of the denoising queries
    blocked: Tensor  # (cells + 1, cells + 1) fraction of the pairs that is blocked
    valid: Tensor  # (B, cells) fraction of the queries that is not padding

    @property
    def queries_per_cell(self) -> int:
        """The largest number k of queries per cell; a cell then stands for up to k x k pairs."""
        return max((cell.stop - cell.start for cell in self.cells), default=1)

    @property
    def group_starts(self) -> list[int]:
        """The indices of the cells at which a group begins."""
        before = [-1, *(cell.last_group for cell in self.cells)]
        return [at for at, cell in enumerate(self.cells) if before[at] < cell.first_group]


def downsample(view: MaskView, max_cells: int) -> SmallMask:
    """Reduce a mask to at most `max_cells` cells.

    A cell is one query if they all fit, else several queries of one kind and group, else one or more whole groups.
    """
    cells = []
    for start, stop in _cell_ranges(view, max_cells):
        negative = view.negative[start:stop]
        kind = "negative" if negative.all() else "both" if negative.any() else "positive"
        cells.append(MaskCell(start, stop, int(view.group[start]), int(view.group[stop - 1]), kind))
    starts = [*(cell.start for cell in cells), view.num_denoising]
    sizes = np.diff([*starts, len(view.blocked)])
    rows = np.add.reduceat(view.blocked.numpy(), starts, axis=0, dtype=np.int32)  # (cells + 1, N)
    pairs = np.add.reduceat(rows, starts, axis=1, dtype=np.int64)  # (cells + 1, cells + 1)
    valid = [view.valid[:, cell.start : cell.stop].float().mean(1) for cell in cells]
    return SmallMask(
        cells=cells,
        blocked=torch.from_numpy(pairs / np.outer(sizes, sizes)),
        valid=torch.stack(valid, dim=1) if valid else torch.zeros(len(view.valid), 0),
    )


def _cell_ranges(view: MaskView, max_cells: int) -> list[tuple[int, int]]:
    """The range [start, stop) of queries of each cell."""
    for key in (2 * view.group + view.negative, view.group):
        lengths = torch.unique_consecutive(key, return_counts=True)[1].tolist()
        if len(lengths) <= max_cells:
            longest = -(-max(lengths, default=1) // (max_cells // max(1, len(lengths))))
            break
    else:
        per_cell, longest = -(-len(lengths) // max_cells), view.num_denoising
        lengths = [sum(lengths[i : i + per_cell]) for i in range(0, len(lengths), per_cell)]
    runs = zip(accumulate(lengths), lengths, strict=True)
    return [(at, min(at + longest, end)) for end, length in runs for at in range(end - length, end, longest)]
