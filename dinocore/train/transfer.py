"""Start a model from weights trained on other classes."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..data.annotations import Category
from ..model.dino import DINO
from ..weights.file import Weights, cast_note, load_exactly
from ..words import counted

LABELS = "denoiser.label_embed.weight"
QUERIES = ("proposer.content.content", "proposer.content", "proposer.boxes")  # mixed; static
EXTRA = "extra.content"


class Transfer(NamedTuple):
    """What was carried over from other weights, for messages."""

    file: str
    classes: dict[str, str | None]  # the data's class -> the file's class with its weights; None: random
    notes: list[str]  # messages about other tensors that are randomly initialised or dropped

    def summary(self) -> str:
        """A summary in one line."""
        taken = sum(old is not None for old in self.classes.values())
        return "; ".join([f"{self.file}, {taken} of {len(self.classes)} classes carried over", *self.notes])


def carry_over(model: DINO, weights: Weights, categories: Sequence[Category], where: Path) -> Transfer:
    """Load weights into a model; rows of class heads and of the label embedding are matched by class *name*.

    Raises:
        CheckpointError: any other tensor differs in name or shape.
    """
    fresh, tensors, notes = model.state_dict(), dict(weights.tensors), []
    rows = match_names([c.name for c in categories], [c.name for c in weights.categories])
    heads = "class_head" if weights.config.model.first_stage == "classes" else "decoder.class_heads"
    for key, value in fresh.items():
        if key in tensors and (heads in key or key == LABELS) and tensors[key].shape[1:] == value.shape[1:]:
            tensors[key] = _with_rows(value, tensors[key], rows)
    if LABELS in fresh and LABELS not in tensors:
        tensors[LABELS] = fresh[LABELS]
        notes.append("the denoising label embedding is new, because the file has none")
    elif LABELS in tensors and LABELS not in fresh:
        del tensors[LABELS]
        notes.append("the file's label embedding is dropped, because there is no denoising")
    if EXTRA in fresh and (EXTRA not in tensors or tensors[EXTRA].shape != fresh[EXTRA].shape):
        tensors[EXTRA] = fresh[EXTRA]
        notes.append("the extra queries of training are new")
    elif EXTRA in tensors and EXTRA not in fresh:
        del tensors[EXTRA]  # only used in training
    if renewed := _renew_query_content(tensors, fresh):
        here, there = renewed
        notes.append(f"the content of {counted(here, 'query', 'queries')} is new, because the file has {there}")
    load_exactly(model, tensors, where)
    notes += filter(None, [cast_note(weights.tensors, where)])
    names = {c.name: weights.categories[rows[k]].name if k in rows else None for k, c in enumerate(categories)}
    return Transfer(where.name, names, notes)


def _renew_query_content(tensors: dict[str, Tensor], fresh: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Keep the new model's query content if the number of queries differs; returns their number, and the file's."""
    numbers = None
    for key in QUERIES:
        here, there = fresh.get(key), tensors.get(key)
        if here is not None and there is not None and here.shape[1:] == there.shape[1:] and len(here) != len(there):
            tensors[key], numbers = here, (len(here), len(there))
    return numbers


def match_names(new: Sequence[str], old: Sequence[str]) -> dict[int, int]:
    """Map each new name to the index of an old one; each old one is used once.

    Exact matches come first; then case, spaces, `_` and `-` are ignored: `Cell_Phone` is `cell phone`.
    """
    matches: dict[int, int] = {}
    for key in (str, _normalized):
        candidates: dict[str, list[int]] = {}
        for j, name in enumerate(old):
            if j not in matches.values():
                candidates.setdefault(key(name), []).append(j)
        for i, name in enumerate(new):
            if i not in matches and candidates.get(key(name)):
                matches[i] = candidates[key(name)].pop(0)
    return matches


def _normalized(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _with_rows(fresh: Tensor, old: Tensor, rows: dict[int, int]) -> Tensor:
    merged = fresh.clone()
    for i, j in rows.items():
        merged[i] = old[j].to(merged.dtype)
    return merged
