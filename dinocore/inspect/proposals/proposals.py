"""The first stage made visible: which tokens were chosen, where their boxes went, and which objects they cover."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...boxes import iou, to_xyxy
from ...data.annotations import Category
from ...draw.boxes import PALETTE, Box, draw_boxes, with_legend
from ...draw.fonts import letters
from ...errors import ConfigError
from ...model.dino import DinoOutput

SCORE_COLORS = ("#440154", "#3B528B", "#21918C", "#5EC962", "#FDE725")  # viridis, from low to high


class Proposal(NamedTuple):
    """One chosen token: its anchor, the first stage's box, the decoder's final box; boxes in pixels, x0 y0 x1 y1."""

    query: int  # from 0, by first-stage score, as in every other inspector
    level: int  # feature level, 0 is the finest
    score: float  # first-stage probability of its best class, or of foreground
    label: str  # that class, or "foreground"
    anchor: list[float]
    proposal: list[float]
    final: list[float]
    final_label: str
    final_score: float
    moved: float  # pixels between the centres of the proposal and of the final box
    iou: float  # of the proposal and the final box


def list_proposals(output: DinoOutput, size: tuple[int, int], categories: Sequence[Category]) -> list[Proposal]:
    """What the model proposed in the one picture of a batch, of this height and width; best first.

    Raises:
        ConfigError: the model has static queries, so there is no first stage.
    """
    first, final = output.proposals, output.final
    if first is None:
        raise ConfigError("this model has no first stage (model.queries = static), so there are no proposals to show")
    scale = torch.tensor([size[1], size[0], size[1], size[0]])
    anchors, proposals, finals = (
        (to_xyxy(x[0].float().cpu()) * scale) for x in (first.anchors, first.boxes, final.boxes)
    )
    scores, labels = first.logits[0].float().cpu().sigmoid().max(-1)
    final_scores, final_labels = final.logits[0].float().cpu().sigmoid().max(-1)
    moved = (_centers(proposals) - _centers(finals)).norm(dim=-1)
    overlap = iou(proposals, finals)
    names = ["foreground"] if first.logits.shape[-1] == 1 < len(categories) else [c.name for c in categories]
    rows = zip(
        first.level[0].tolist(), scores.tolist(), labels.tolist(), anchors.tolist(), proposals.tolist(),
        finals.tolist(), final_labels.tolist(), final_scores.tolist(), moved.tolist(), overlap.tolist(), strict=True,
    )  # fmt: skip
    return [
        Proposal(query, level, score, names[label], anchor, box, end, categories[kind].name, sure, distance, share)
        for query, (level, score, label, anchor, box, end, kind, sure, distance, share) in enumerate(rows)
    ]


def draw_proposals(picture: Image.Image, proposals: Sequence[Proposal], color: str) -> Image.Image:
    """Anchors, proposals and final boxes side by side, the best on top, coloured by `level` or by `score`."""
    if color == "level":
        levels = sorted({p.level for p in proposals})
        legend = [(f"level {level}", PALETTE[level % len(PALETTE)]) for level in levels]
        colors = [PALETTE[p.level % len(PALETTE)] for p in proposals]
    else:
        best = max((p.score for p in proposals), default=1.0)
        steps = len(SCORE_COLORS)
        colors = [SCORE_COLORS[min(steps - 1, int(steps * p.score / max(best, 1e-9)))] for p in proposals]
        legend = [(f"score {best * i / steps:.2f}-{best * (i + 1) / steps:.2f}", c) for i, c in enumerate(SCORE_COLORS)]
    panels = []
    for title, kind in (("anchors", "anchor"), ("proposals", "proposal"), ("final boxes", "final")):
        boxes = [Box(getattr(p, kind), c) for p, c in zip(proposals, colors, strict=True)]
        panels.append((title, draw_boxes(picture, boxes[::-1])))
    return with_legend(side_by_side(panels, columns=3), legend)


def side_by_side(panels: Sequence[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Pictures of one size in rows, each at most 800 and at least 420 pixels wide, its title over it."""
    width, height = panels[0][1].size
    scale = min(800, max(420, width)) / width
    width, height = round(width * scale), max(1, round(height * scale))
    gap, head = 12, 34
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + head + gap)), "white")
    canvas = ImageDraw.Draw(sheet)
    for at, (title, image) in enumerate(panels):
        x, y = gap + at % columns * (width + gap), at // columns * (height + head + gap)
        canvas.text((x, y + head / 2), title, "black", letters(19), anchor="lm")
        sheet.paste(image.resize((width, height)), (x, y + head))
    return sheet


def _centers(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2
