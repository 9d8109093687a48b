"""Explain one row of the denoising mask in words: what the query is, what it may attend to, and why.

Everything is read from the model's mask and denoising queries. The reasons are those of DINO's rule (section 3.3); if a
mask violates that rule, the explanation says so.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ...errors import ConfigError
from ...structures import MATCHING
from .mask import MaskCell, MaskView, true_runs

MAX_IMAGES = 6  # described in words; JSON has all
AGAINST_RULE = "so the model's mask says, which violates DINO's rule"
# by whether the query may attend, and to which queries
REASONS = {
    (True, "its own group"): "a group is one set of noisy copies, predicted together like objects at inference",
    (False, "other groups"): "they are other noisy copies of the same objects and would reveal the targets",
    (True, "matching queries"): "they contain nothing of the annotated objects, so nothing leaks",
    (False, "denoising queries"): "they are made from the annotated objects: it would learn to copy the targets, "
    "which do not exist at inference",
    (True, "all matching queries"): "as at inference",
}


class Copy(NamedTuple):
    """The object that a denoising query is a copy of, in one image."""

    image: int
    file: str | None
    object: int | None  # from 0; None: a padding slot
    label: str | None  # the object's class
    must_answer: str

    def words(self, kind: str) -> str:
        """A description of a query of this kind, `positive` or `negative`."""
        image = f"image {self.image}" + (f" ({self.file})" if self.file else "")
        if self.object is None:
            return (
                f'{image}: a padding slot (this image has fewer objects); like a negative, it must predict "no object"'
            )
        what = f"object {self.object}" + (f" ({self.label})" if self.label else "")
        if kind == "positive":
            return f"{image}: a noisy copy of {what}, which it must recover"
        return f'{image}: a copy of {what} with too much noise, so it must predict "no object"'


class Sight(NamedTuple):
    """Queries of one kind that the explained query may, or may not, attend to."""

    may: bool
    whom: str
    count: int
    queries: list[list[int]]  # [first, end)
    why: str

    def words(self) -> str:
        """A description with the reason."""
        return f"{'may' if self.may else 'may NOT'} attend to {self.whom}, {_ranges(self.queries)}: {self.why}"


class Explanation(NamedTuple):
    """The explanation of one row of the mask."""

    query: int
    kind: str  # positive, negative, matching
    group: int | None
    images: list[Copy]  # empty for a matching query
    sights: list[Sight]
    seen_by: list[list[int]]  # [first, end) of the queries that may attend to it


def explain(view: MaskView, query: int) -> Explanation:
    """Explain what a query is, and what it may attend to.

    Raises:
        ConfigError: there is no such query.
    """
    total = len(view.blocked)
    if not 0 <= query < total:
        raise ConfigError(f"no query {query}; this mask has queries 0 to {total - 1}")
    sights, seen_by = _sights(view, query), true_runs(~view.blocked[:, query])
    if query >= view.num_denoising:
        return Explanation(query, "matching", None, [], sights, seen_by)
    kind = "negative" if view.negative[query] else "positive"
    images = []
    for image, index in enumerate(view.target_index[:, query].tolist()):
        valid = bool(view.valid[image, query])
        label = view.names[image][index] if valid and view.names else None
        must_answer = "the object" if valid and kind == "positive" else "no object"
        file = view.files[image] if view.files else None
        images.append(Copy(image, file, index if valid else None, label, must_answer))
    return Explanation(query, kind, int(view.group[query]), images, sights, seen_by)


def _sights(view: MaskView, query: int) -> list[Sight]:
    """The row's columns, grouped by their relation to this query."""
    groups = torch.nn.functional.pad(view.group, (0, view.num_matching), value=MATCHING)  # (N,)
    noisy = groups != MATCHING
    if noisy[query]:
        own = groups == groups[query]
        relations = {"its own group": own, "other groups": noisy & ~own, "matching queries": ~noisy}
    else:
        relations = {"denoising queries": noisy, "all matching queries": ~noisy}
    blocked = view.blocked[query]
    return [
        Sight(may, whom, int(queries.sum()), true_runs(queries), REASONS.get((may, whom), AGAINST_RULE))
        for may in (True, False)
        for whom, members in relations.items()
        if (queries := members & (~blocked if may else blocked)).any()
    ]


def to_lines(explanation: Explanation) -> list[str]:
    """An explanation in words: a line per image and per kind of other queries."""
    what = f"a {explanation.kind} of denoising group {explanation.group}"
    if explanation.group is None:
        what = "a matching query, as at inference; Hungarian matching decides which object it predicts"
    lines = [copy.words(explanation.kind) for copy in explanation.images[:MAX_IMAGES]]
    if len(explanation.images) > MAX_IMAGES:
        lines.append(f"and {len(explanation.images) - MAX_IMAGES} more images; --json has all")
    lines += [*(sight.words() for sight in explanation.sights), f"is seen by {_ranges(explanation.seen_by)}"]
    return [f"query {explanation.query:,}: {what}", *(f"  {line}" for line in lines)]


def _ranges(runs: Sequence[Sequence[int]]) -> str:
    if not runs:
        return "no query"
    texts = [f"{first:,}" if end == first + 1 else f"{first:,}-{end - 1:,}" for first, end in runs]
    listed = ", ".join(texts[:4]) + (", ..." if len(texts) > 4 else "")
    count = sum(end - first for first, end in runs)
    return f"{count:,} {'query' if count == 1 else 'queries'} ({listed})"


def explain_cell(view: MaskView, cell: MaskCell) -> list[str]:
    """A row of a drawing in words; if it stands for several queries, what they have in common."""
    if cell.stop - cell.start == 1:
        return to_lines(explain(view, cell.start))
    one_group = cell.first_group == cell.last_group
    groups = f"group {cell.first_group}" if one_group else f"groups {cell.first_group} to {cell.last_group}"
    kinds = "positives and negatives" if cell.kind == "both" else f"{cell.kind}s"
    first = f"queries {cell.start:,}-{cell.stop - 1:,}: {kinds} of denoising {groups}"
    rows = view.blocked[cell.start : cell.stop]
    if (rows != rows[0]).any():
        return [first, "  they may not all attend to the same queries; --query explains a single one"]
    return [first, *(f"  {sight.words()}" for sight in _sights(view, cell.start))]


def to_json(explanation: Explanation) -> dict[str, Any]:
    """For JSON: the fields, and the explanation in words as `words`."""
    nested = {
        "images": [copy._asdict() for copy in explanation.images],
        "sights": [sight._asdict() for sight in explanation.sights],
    }
    return explanation._asdict() | nested | {"words": to_lines(explanation)}
