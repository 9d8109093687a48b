"""Proposals as figures and a page: boxes side by side, scores of all tokens, how the decoder's layers moved boxes."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...draw.boxes import PALETTE, Box, draw_boxes, with_legend
from ...draw.fonts import load_font
from ...report.page import render_page
from ...report.parts import Cell, Chart, Curve, Gallery, MarkedImage, Page, Part, Section, Table
from ...words import counted
from .proposals import ImageObjects, Journey, Proposal, Recall, average

SCORE_COLORS = ("#440154", "#3B528B", "#21918C", "#5EC962", "#FDE725")  # viridis, from low to high
OPACITY = 0.7
FADE = 0.35  # how far the image is taken to white, so that boxes stand out
LAYER_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#FFFFFF")  # Okabe and Ito's, then white
START, END, TRUTH = "#E69F00", "#56B4E9", "#000000"
MOST_IMAGES = 20


class Inspected(NamedTuple):
    """One image and what the model did with it."""

    file: str
    size: tuple[int, int]  # height, width
    proposals: list[Proposal]
    maps: list[np.ndarray]
    journeys: list[Journey]
    objects: ImageObjects | None


def draw_view(image: Image.Image, found: Inspected, view: str, top: int, color: str) -> Image.Image:
    """`boxes`, `scores` or `layers`."""
    if view == "scores":
        return draw_scores(image, found.maps, found.proposals)
    if view == "layers":
        return draw_layers(image, found.journeys, found.objects, top)
    return draw_proposals(image, found.proposals[:top], color)


def draw_proposals(image: Image.Image, proposals: Sequence[Proposal], color: str) -> Image.Image:
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
        panels.append((title, draw_boxes(image, boxes[::-1])))
    return with_legend(side_by_side(panels, columns=3), legend)


def draw_scores(image: Image.Image, maps: Sequence[np.ndarray], proposals: Sequence[Proposal]) -> Image.Image:
    """A panel for each level, one scale of colours for all; dots are the centres of the anchors that were chosen."""
    best = max(float(scores.max()) for scores in maps)
    panels = []
    for level, scores in enumerate(maps):
        chosen = [p for p in proposals if p.level == level]
        height, width = scores.shape
        title = f"level {level}, {width} x {height} tokens: {len(chosen)} chosen, best {scores.max():.2f}"
        panels.append((title, _panel(image, scores / max(best, 1e-9), chosen)))
    steps = len(SCORE_COLORS)
    marks = [(f"score {best * i / (steps - 1):.2f}", color) for i, color in enumerate(SCORE_COLORS)]
    return with_legend(side_by_side(panels, columns=2 if len(maps) > 1 else 1), [*marks, ("chosen token", "#D55E00")])


def _panel(image: Image.Image, shares: np.ndarray, chosen: Sequence[Proposal]) -> Image.Image:
    colors = np.array([list(bytes.fromhex(color[1:])) for color in SCORE_COLORS], dtype=float)  # (steps, 3)
    places = np.linspace(0, 1, len(colors))
    heat = np.stack([np.interp(shares, places, colors[:, channel]) for channel in range(3)], axis=-1)
    scale = max(1.0, 420 / image.width)
    size = (round(image.width * scale), round(image.height * scale))
    over = Image.fromarray(heat.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    panel = Image.blend(image.convert("L").convert("RGB").resize(size), over, OPACITY)
    canvas, radius = ImageDraw.Draw(panel), max(1.5, size[0] / 250)
    for p in chosen:
        x, y = ((p.anchor[i] + p.anchor[i + 2]) / 2 * scale for i in (0, 1))
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill="#D55E00", outline="white")
    return panel


def side_by_side(panels: Sequence[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Images of one size in rows, each at most 800 and at least 420 pixels wide, its title over it."""
    width, height = panels[0][1].size
    scale = min(800, max(420, width)) / width
    width, height = round(width * scale), max(1, round(height * scale))
    gap, head = 12, 34
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + head + gap)), "white")
    canvas = ImageDraw.Draw(sheet)
    for at, (title, image) in enumerate(panels):
        x, y = gap + at % columns * (width + gap), at // columns * (height + head + gap)
        canvas.text((x, y + head / 2), title, "black", load_font(19), anchor="lm")
        sheet.paste(image.resize((width, height)), (x, y + head))
    return sheet


def draw_layers(image: Image.Image, found: Sequence[Journey], objects: ImageObjects | None, top: int) -> Image.Image:
    """Proposal, final and annotated boxes, and an arrow for each layer from centre to centre, of the `top` surest."""
    scale = max(1.0, 1200 / max(image.size))
    drawn = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    drawn = Image.blend(drawn, Image.new("RGB", drawn.size, "white"), FADE)
    count, found = len(found), sorted(found, key=lambda journey: -journey.score)[:top]
    canvas = ImageDraw.Draw(drawn)
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
    _labels(canvas, found, scale, drawn.size)
    layers = len(found[0].boxes) - 2 if found else 0
    arrows = [(f"layer {n}", LAYER_COLORS[min(n, len(LAYER_COLORS) - 1)]) for n in range(layers)]
    truth = [] if objects is None else [("annotated", TRUTH)]
    notes = ["on boxes: way in pixels" if objects is None else "on boxes: IoU of proposal to final box"]
    notes += [f"arrows {longer} x longer than the way"] if longer > 1 else []
    notes += [f"the {len(found)} surest of {count} queries"] if len(found) < count else []
    marks = [("proposal", START), ("final box", END), *truth, *arrows, *((note, "#FFFFFF") for note in notes)]
    return with_legend(drawn, marks)


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
    font = load_font(15)
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


def render_proposals(
    found: Sequence[Inspected], drawn: Sequence[Sequence[Image.Image]], rows: Sequence[Recall], top: int
) -> str:
    """Images of the three views of the first few, what the layers gained, and what the proposals cover."""
    titles = ("anchors, proposals, final boxes", "scores of all tokens", "what the decoder's layers did")
    views = zip(titles, zip(*drawn, strict=True), strict=True)
    galleries = [
        Gallery(title, [MarkedImage(f.file, image) for f, image in zip(found, images, strict=False)], columns=1)
        for title, images in views
    ]
    sections = [Section("Images", galleries)]
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
            Curve(f"{row.size or 'all sizes'}, IoU {row.iou:.2f}", counts, list(row.shares.values()))
            for row in rows
            if row.level is None
        ]
        parts: list[Part] = [Chart("Recall", "proposals of an image", "share of objects covered", lines)]
        sections.append(Section("What the proposals cover", [*parts, Table("", heads, cells)]))
    listed = [(f.file, p.query, p.level, p.score, p.label, p.moved, p.iou, p.final_label, p.final_score)
              for f in found[:MOST_IMAGES] for p in f.proposals[:top]]  # fmt: skip
    heads = (
        "file",
        "query",
        "level",
        "score",
        "label",
        "moved, pixels",
        "IoU with final",
        "final label",
        "final score",
    )
    sections.append(Section("Proposals", [Table("", heads, listed)]))
    return render_page(Page("Proposals", counted(len(found), "image"), sections))
