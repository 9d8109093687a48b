"""Draw proposals as figures and a page: boxes side by side, scores of all tokens, how decoder layers moved boxes."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...draw.boxes import PALETTE, Box, draw_boxes, with_legend
from ...draw.figure import Tag, put_tags, write
from ...report.page import render_page
from ...report.parts import Chart, Curve, Gallery, MarkedImage, Page, Section, Table
from ...words import counted
from .proposals import ImageObjects, Inspected, Journey, Proposal, Recall, average

SCORE_COLORS = ("#440154", "#3B528B", "#21918C", "#5EC962", "#FDE725")  # viridis, from low to high
OPACITY = 0.7
FADE = 0.35  # how much white is blended over the image, so that boxes stand out
LAYER_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#FFFFFF")  # by Okabe and Ito, then white
START, END, TRUTH, CHOSEN = "#E69F00", "#56B4E9", "#000000", "#D55E00"
MAX_IMAGES = 20


def draw_view(image: Image.Image, inspected: Inspected, view: str, top: int, color: str) -> Image.Image:
    """Draw one of the views `boxes`, `scores` and `layers`."""
    if view == "scores":
        return draw_scores(image, inspected.maps, inspected.proposals)
    if view == "layers":
        return draw_layers(image, inspected.journeys, inspected.objects, top)
    return draw_proposals(image, inspected.proposals[:top], color)


def draw_proposals(image: Image.Image, proposals: Sequence[Proposal], color: str) -> Image.Image:
    """Anchors, proposals and final boxes side by side, coloured by `level` or `score`, the best drawn on top."""
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
    """A score map for each level, all with one colour scale; dots mark the centres of the chosen anchors."""
    best = max(float(scores.max()) for scores in maps)
    colors = np.array([list(bytes.fromhex(color[1:])) for color in SCORE_COLORS], dtype=float)  # (steps, 3)
    positions = np.linspace(0, 1, len(colors))
    scale = max(1.0, 420 / image.width)
    size = (round(image.width * scale), round(image.height * scale))
    gray, radius = image.convert("L").convert("RGB").resize(size), max(1.5, size[0] / 250)
    panels = []
    for level, scores in enumerate(maps):
        relative = scores / max(best, 1e-9)
        heat = np.stack([np.interp(relative, positions, colors[:, channel]) for channel in range(3)], axis=-1)
        overlay = Image.fromarray(heat.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        panel = Image.blend(gray, overlay, OPACITY)
        canvas = ImageDraw.Draw(panel)
        chosen = [p for p in proposals if p.level == level]
        for p in chosen:
            x, y = ((p.anchor[i] + p.anchor[i + 2]) / 2 * scale for i in (0, 1))
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=CHOSEN, outline="white")
        height, width = scores.shape
        title = f"level {level}, {width} x {height} tokens: {len(chosen)} chosen, best {scores.max():.2f}"
        panels.append((title, panel))
    steps = len(SCORE_COLORS)
    marks = [(f"score {best * i / (steps - 1):.2f}", color) for i, color in enumerate(SCORE_COLORS)]
    return with_legend(side_by_side(panels, columns=2 if len(maps) > 1 else 1), [*marks, ("chosen token", CHOSEN)])


def side_by_side(panels: Sequence[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Images of one size in a grid, each scaled to a width between 420 and 800 pixels, with its title above."""
    width, height = panels[0][1].size
    scale = min(800, max(420, width)) / width
    width, height = round(width * scale), max(1, round(height * scale))
    gap, head = 12, 34
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + head + gap)), "white")
    canvas = ImageDraw.Draw(sheet)
    for at, (title, image) in enumerate(panels):
        x, y = gap + at % columns * (width + gap), at // columns * (height + head + gap)
        write(canvas, x, y + head / 2, title, 19, "black")
        sheet.paste(image.resize((width, height)), (x, y + head))
    return sheet


def draw_layers(image: Image.Image, items: Sequence[Journey], objects: ImageObjects | None, top: int) -> Image.Image:
    """Annotated, proposal and final boxes, and an arrow between centres for each layer, of the `top` most confident."""
    scale = max(1.0, 1200 / max(image.size))
    drawn = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    drawn = Image.blend(drawn, Image.new("RGB", drawn.size, "white"), FADE)
    count, shown = len(items), sorted(items, key=lambda journey: -journey.score)[:top]
    canvas = ImageDraw.Draw(drawn)
    truths = [] if objects is None else objects.boxes.tolist()
    starts, ends = ([journey.boxes[at] for journey in shown] for at in (1, -1))
    for boxes, color, width in ((truths, TRUTH, 1), (starts, START, 1), (ends, END, 2)):
        for box in boxes:
            x0, y0, x1, y1 = (v * scale for v in box)
            canvas.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=color, width=width)
    distances = sorted(sum(journey.moved[1:]) * scale for journey in shown)
    median = distances[len(distances) // 2] if distances else 0.0
    # lengthen the arrows so that at least half of them are visible
    longer = next((times for times in (1, 2, 5, 10) if median * times >= 30), 20)
    tags = []
    for journey in shown:
        first, *others = [torch.tensor([x0 + x1, y0 + y1]) / 2 * scale for x0, y0, x1, y1 in journey.boxes[1:]]
        centers = [tuple((first + (center - first) * longer).tolist()) for center in (first, *others)]
        for layer, (start, end) in enumerate(pairwise(centers)):
            _arrow(canvas, start, end, _layer_color(layer))
        text = f"{sum(journey.moved[1:]):.0f} px"
        if journey.ious is not None:
            text = f"{journey.ious[1]:.2f} to {journey.ious[-1]:.2f}"
        tags.append(Tag(text, journey.boxes[-1][0] * scale, journey.boxes[-1][1] * scale - 19, "#FFFFFF"))
    put_tags(canvas, drawn.size, tags, 15, "#222222", END)
    layers = len(shown[0].boxes) - 2 if shown else 0
    notes = ["on boxes: distance in pixels" if objects is None else "on boxes: IoU of proposal to final box"]
    notes += [f"arrows lengthened {longer} x"] * (longer > 1)
    notes += [f"the {len(shown)} most confident of {count} queries"] * (len(shown) < count)
    marks = [("proposal", START), ("final box", END)] + [("annotated", TRUTH)] * (objects is not None)
    marks += [(f"layer {n}", _layer_color(n)) for n in range(layers)] + [(note, "#FFFFFF") for note in notes]
    return with_legend(drawn, marks)


def _layer_color(layer: int) -> str:
    return LAYER_COLORS[min(layer, len(LAYER_COLORS) - 1)]


def _arrow(canvas: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """Draw an arrow with a dark outline, visible on any background; none for less than a pixel."""
    length = math.dist(start, end)
    if length < 1:
        return
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    head = min(9.0, length)
    tips = [(end[0] - head * math.cos(angle + turn), end[1] - head * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
    canvas.line((start, end), "#222222", 4)
    canvas.polygon([end, *tips], fill=color, outline="#222222")
    canvas.line((start, end), color, 2)


def render_proposals(
    inspected: Sequence[Inspected], drawn: Sequence[Sequence[Image.Image]], rows: Sequence[Recall], top: int
) -> str:
    """The HTML page: the three views of the first images, the effect of each layer, and the recall of the proposals.

    Args:
        drawn: for each of the first images, its three views.
    """
    titles = ("anchors, proposals, final boxes", "scores of all tokens", "what each decoder layer did")
    galleries = [
        Gallery(title, [MarkedImage(one.file, image) for one, image in zip(inspected, images, strict=False)], columns=1)
        for title, images in zip(titles, zip(*drawn, strict=True), strict=True)
    ]
    steps = average([journey for one in inspected for journey in one.journeys])
    columns = ("stage", "moved, pixels", "IoU with the object", "gain")
    layers = Table("", columns, [tuple(step) for step in steps], "Averages over the boxes shown.")
    sections = [Section("Images", galleries), Section("Decoder layers", [layers])]
    if rows:
        counts = list(rows[0].shares)
        cells = [[r.iou, "all" if r.level is None else r.level, r.size or "all", r.objects, *r.shares.values()]
                 for r in rows]  # fmt: skip
        lines = [Curve(f"{r.size or 'all sizes'}, IoU {r.iou:.2f}", counts, list(r.shares.values()))
                 for r in rows if r.level is None]  # fmt: skip
        chart = Chart("Recall", "proposals of an image", "fraction of objects covered", lines)
        heads = ("IoU", "level", "size", "objects", *(f"first {count}" for count in counts))
        sections.append(Section("Recall of the proposals", [chart, Table("", heads, cells)]))
    listed = [(one.file, p.query, p.level, p.score, p.label, p.moved, p.iou, p.final_label, p.final_score)
              for one in inspected[:MAX_IMAGES] for p in one.proposals[:top]]  # fmt: skip
    heads = ("file", "query", "level", "score", "label", "moved, pixels", "IoU with final", "final label",
             "final score")  # fmt: skip
    sections.append(Section("Proposals", [Table("", heads, listed)]))
    return render_page(Page("Proposals", counted(len(inspected), "image"), sections))
