"""What the first stage and the decoder did, as one report page."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...report.page import render_page
from ...report.parts import Cell, Chart, Gallery, Line, Page, Part, Picture, Section, Table
from ...words import counted
from .layers import Journey, Objects, average, draw_layers
from .proposals import Proposal, draw_proposals
from .recall import Recall
from .scores import draw_scores

MOST_PICTURES = 20


class Inspected(NamedTuple):
    """One picture and what the model did with it."""

    file: str
    size: tuple[int, int]  # height, width
    proposals: list[Proposal]
    maps: list[np.ndarray]
    journeys: list[Journey]
    objects: Objects | None


def draw_view(picture: Image.Image, found: Inspected, view: str, top: int, color: str) -> Image.Image:
    """`boxes`, `scores` or `layers`."""
    if view == "scores":
        return draw_scores(picture, found.maps, found.proposals)
    if view == "layers":
        return draw_layers(picture, found.journeys, found.objects, top)
    return draw_proposals(picture, found.proposals[:top], color)


def render_proposals(
    found: Sequence[Inspected], drawn: Sequence[Sequence[Image.Image]], rows: Sequence[Recall], top: int
) -> str:
    """Pictures of the three views of the first few, what the layers gained, and what the proposals cover."""
    titles = ("anchors, proposals, final boxes", "scores of all tokens", "what the decoder's layers did")
    sections = [
        Section("Pictures", [
            Gallery(title, [Picture(f.file, images[at]) for f, images in zip(found, drawn, strict=False)], columns=1)
            for at, title in enumerate(titles)
        ])
    ]  # fmt: skip
    steps = average([journey for f in found for journey in f.journeys])
    columns = ("stage", "moved, pixels", "IoU with the object", "gain")
    layers: list[Part] = [Table("", columns, [tuple(step) for step in steps], "Averages over the boxes followed.")]
    sections.append(Section("The decoder's layers", layers))
    if rows:
        counts = list(rows[0].shares)
        cells: list[list[Cell]] = [
            [row.iou, "all" if row.level is None else row.level, row.size or "all", row.objects, *row.shares.values()]
            for row in rows
        ]
        heads = ("IoU", "level", "size", "objects", *(f"first {count}" for count in counts))
        lines = [
            Line(f"{row.size or 'all sizes'}, IoU {row.iou:.2f}", counts, list(row.shares.values()))
            for row in rows
            if row.level is None
        ]
        parts: list[Part] = [Chart("Recall", "proposals of a picture", "share of objects covered", lines)]
        sections.append(Section("What the proposals cover", [*parts, Table("", heads, cells)]))
    listed = [(f.file, p.query, p.level, p.score, p.label, p.moved, p.iou, p.final_label, p.final_score)
              for f in found[:MOST_PICTURES] for p in f.proposals[:top]]  # fmt: skip
    heads = ("file", "query", "level", "score", "label", "moved, pixels", "IoU with final", "final label", "final score")
    sections.append(Section("Proposals", [Table("", heads, listed)]))
    return render_page(Page("Proposals", counted(len(found), "picture"), sections))
