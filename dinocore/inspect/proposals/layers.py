"""How far each decoder layer moved each box, and what that gained in IoU with the annotated object."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...boxes import iou, to_cxcywh, to_xyxy
from ...config import LossConfig
from ...data.annotations import Category
from ...draw.boxes import with_legend
from ...draw.fonts import letters
from ...errors import ConfigError
from ...matching import hungarian
from ...model.dino import DinoOutput
from ...structures import Predictions, Target

FADE = 0.35  # how far the picture is taken to white, so that boxes stand out
LAYER_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#FFFFFF")  # Okabe and Ito's, then white
START, END, TRUTH = "#E69F00", "#56B4E9", "#000000"


class Objects(NamedTuple):
    """The annotated objects of one picture, x0 y0 x1 y1 in its pixels."""

    boxes: Tensor  # (T, 4)
    labels: Tensor  # (T,) int64
    areas: Tensor  # (T,)


class Journey(NamedTuple):
    """A query's box from the anchor to the last layer, x0 y0 x1 y1 in pixels."""

    query: int  # from 0; it starts from the proposal of this number
    label: str  # of the final box
    score: float
    boxes: list[list[float]]  # anchor, proposal, then one a decoder layer
    moved: list[float]  # pixels between the centres of neighbours in `boxes`
    object: int | None  # the annotated object it answers for after the last layer, by the Hungarian method
    ious: list[float] | None  # of each box with that object's


def journeys(
    output: DinoOutput, size: tuple[int, int], objects: Objects | None, loss: LossConfig,
    categories: Sequence[Category], top: int,
) -> list[Journey]:  # fmt: skip
    """Of the queries that answer for the objects, or without annotations, of the `top` surest ones.

    Args:
        size: height and width of the picture, the only one of the batch.

    Raises:
        ConfigError: the model has static queries, so there is no first stage.
    """
    if output.proposals is None:
        raise ConfigError("this model has no first stage (model.queries = static), so there are no proposals to show")
    scale = torch.tensor([size[1], size[0], size[1], size[0]])
    stages = [output.proposals.anchors, output.proposals.boxes, *(stage.boxes for stage in output.stages)]
    boxes = torch.stack([to_xyxy(stage[0].float().cpu()) for stage in stages]) * scale  # (stages, N, 4)
    logits = output.final.logits[:1].float().cpu()
    scores, labels = logits[0].sigmoid().max(-1)
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    moved = (centers[1:] - centers[:-1]).norm(dim=-1)  # (stages - 1, N)
    if objects is None:
        pairs = [(query, None) for query in scores.argsort(descending=True)[:top].tolist()]
    else:
        target = Target(objects.labels, to_cxcywh(objects.boxes / scale))
        (match,) = hungarian([Predictions(logits, output.final.boxes[:1].float().cpu())], [target], loss)
        pairs = sorted(zip(match.query.tolist(), match.target.tolist(), strict=True), key=lambda pair: pair[1])
    return [
        Journey(
            query=query,
            label=categories[int(labels[query])].name,
            score=float(scores[query]),
            boxes=boxes[:, query].tolist(),
            moved=moved[:, query].tolist(),
            object=number,
            ious=None if objects is None else iou(boxes[:, query], objects.boxes[number]).tolist(),
        )
        for query, number in pairs
    ]


class Step(NamedTuple):
    """What one stage did, averaged over journeys."""

    name: str  # anchor, proposal, layer 0, ...
    moved: float | None  # pixels, from the stage before
    iou: float | None
    gain: float | None


def average(found: Sequence[Journey]) -> list[Step]:
    """A row for each stage."""
    if not found:
        return []
    moved = [None, *torch.tensor([journey.moved for journey in found]).mean(0).tolist()]
    known = [journey.ious for journey in found if journey.ious is not None]
    ious, gains = [None] * len(moved), [None] * len(moved)
    if known:
        ious = torch.tensor(known).mean(0).tolist()
        gains = [None, *(after - before for before, after in pairwise(ious))]
    names = ["anchor", "proposal", *(f"layer {n}" for n in range(len(moved) - 2))]
    return [Step(*row) for row in zip(names, moved, ious, gains, strict=True)]


def draw_layers(picture: Image.Image, found: Sequence[Journey], objects: Objects | None, top: int) -> Image.Image:
    """Proposal, final and annotated boxes, and an arrow for each layer from centre to centre, of the `top` surest."""
    scale = max(1.0, 1200 / max(picture.size))
    image = picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)))
    image = Image.blend(image, Image.new("RGB", image.size, "white"), FADE)
    count, found = len(found), sorted(found, key=lambda journey: -journey.score)[:top]
    canvas = ImageDraw.Draw(image)
    truths = [] if objects is None else objects.boxes.tolist()
    starts, ends = ([journey.boxes[at] for journey in found] for at in (1, -1))
    for boxes, color, width in ((truths, TRUTH, 1), (starts, START, 1), (ends, END, 2)):
        for box in boxes:
            canvas.rectangle(_ordered([v * scale for v in box]), outline=color, width=width)
    longer = _magnification(found, scale)
    for journey in found:
        first, *others = [torch.tensor([x0 + x1, y0 + y1]) / 2 * scale for x0, y0, x1, y1 in journey.boxes[1:]]
        centers = [tuple((first + (center - first) * longer).tolist()) for center in (first, *others)]
        for layer, (start, end) in enumerate(pairwise(centers)):
            _arrow(canvas, start, end, LAYER_COLORS[min(layer, len(LAYER_COLORS) - 1)])
    _labels(canvas, found, scale, image.size)
    layers = len(found[0].boxes) - 2 if found else 0
    arrows = [(f"layer {n}", LAYER_COLORS[min(n, len(LAYER_COLORS) - 1)]) for n in range(layers)]
    truth = [] if objects is None else [("annotated", TRUTH)]
    notes = ["on boxes: way in pixels" if objects is None else "on boxes: IoU of proposal to final box"]
    notes += [f"arrows {longer} x longer than the way"] if longer > 1 else []
    notes += [f"the {len(found)} surest of {count} queries"] if len(found) < count else []
    marks = [("proposal", START), ("final box", END), *truth, *arrows, *((note, "#FFFFFF") for note in notes)]
    return with_legend(image, marks)


def _magnification(found: Sequence[Journey], scale: float) -> int:
    """How many times longer than the way arrows are, so that half of the ways are seen."""
    ways = sorted(sum(journey.moved[1:]) * scale for journey in found)
    middle = ways[len(ways) // 2] if ways else 0.0
    return next((times for times in (1, 2, 5, 10) if middle * times >= 30), 20)


def _ordered(box: Sequence[float]) -> tuple[float, ...]:
    return (box[0], box[1], max(box[0], box[2]), max(box[1], box[3]))


def _arrow(canvas: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """With a dark rim, so that it is seen on any ground; nothing where a box moved by less than a pixel."""
    length = math.dist(start, end)
    if length < 1:
        return
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    head = min(9.0, length)
    tips = [(end[0] - head * math.cos(angle + turn), end[1] - head * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
    canvas.line((start, end), "#222222", 4)
    canvas.polygon([end, *tips], fill=color, outline="#222222")
    canvas.line((start, end), color, 2)


def _labels(canvas: ImageDraw.ImageDraw, found: Sequence[Journey], scale: float, size: tuple[int, int]) -> None:
    """What the decoder gained, over the final box, or without annotations how far it moved it; none over another."""
    font = letters(15)
    taken: list[tuple[float, float, float]] = []  # left, right, top
    for journey in found:
        text = f"{sum(journey.moved[1:]):.0f} px"
        if journey.ious is not None:
            text = f"{journey.ious[1]:.2f} to {journey.ious[-1]:.2f}"
        width = canvas.textlength(text, font) + 6
        x = min(max(0, journey.boxes[-1][0] * scale), size[0] - width)
        y = min(max(0, journey.boxes[-1][1] * scale - 19), size[1] - 19)
        if any(x < right and left < x + width and abs(y - top) < 19 for left, right, top in taken):
            continue
        taken.append((x, x + width, y))
        canvas.rectangle((x, y, x + width, y + 18), fill="#FFFFFF", outline=END)
        canvas.text((x + 3, y + 9), text, "#222222", font, anchor="lm")
